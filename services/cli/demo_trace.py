"""Makes `demo_trace.csv`, the traffic that `tokenworks up` replays: `python -m services.cli.demo_trace`.

Synthetic, the same every time: three tenants with their workloads; conversations whose turns grow; a burst of long
documents in the middle, more than the cheapest accelerators can take within their promises; and real questions for the
model on the CPU. Lengths are those of published conversation traces in miniature (prompts of about a thousand tokens,
answers of about a hundred), drawn log-normally.
"""

import csv
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from random import Random
from typing import Final, TextIO

SEED: Final = 2026
SIMULATED_MODEL: Final = "llama-3.1-8b"
REAL_MODEL: Final = "smollm2-135m-instruct"
TENANTS: Final = ("local", "acme", "globex")
_SPAN_S: Final = 9.0
_BURST_S: Final = 3.0
_QUESTIONS: Final = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "What do bees make?",
    "Say hello in Spanish.",
    "What is two plus two?",
    "Which planet is the largest?",
    "What is ice made of?",
    "Who wrote Hamlet?",
    "What does a clock show?",
)


@dataclass(frozen=True, slots=True)
class Row:
    arrival_s: float
    tenant: str
    workload: str
    slo_class: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    session_id: str = ""
    prompt: str = ""


def rows() -> list[Row]:
    """The whole trace, by arrival."""
    drawn = Random(SEED)
    return sorted((*_conversations(drawn), *_documents(drawn), *_questions(drawn)), key=lambda row: row.arrival_s)


def write(file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(astuple(row) for row in rows())


def _conversations(drawn: Random) -> Iterator[Row]:
    for conversation in range(22):
        tenant = drawn.choice(TENANTS)
        at_s = drawn.uniform(0, _SPAN_S - 5.5)
        prompt_tokens = _length(drawn, 700, 0.6, 100, 3000)
        for _ in range(drawn.choice((2, 3))):
            answer_tokens = _length(drawn, 70, 0.6, 8, 220)
            yield Row(
                round(at_s, 3),
                tenant,
                "support/chat" if conversation % 3 else "agents/tools",
                "interactive" if conversation % 3 else "standard",
                SIMULATED_MODEL,
                prompt_tokens,
                answer_tokens,
                session_id=f"conversation-{conversation}",
            )
            # The next turn holds this one, its answer, and a new question.
            prompt_tokens += answer_tokens + _length(drawn, 60, 0.5, 10, 200)
            at_s += drawn.uniform(1.0, 2.7)


def _documents(drawn: Random) -> Iterator[Row]:
    for document in range(72):
        urgent = document % 4 == 0
        yield Row(
            round(_BURST_S + drawn.uniform(0, 0.6), 3),
            drawn.choice(TENANTS[1:]),
            "documents/answers" if urgent else "documents/summaries",
            "standard" if urgent else "batch",
            SIMULATED_MODEL,
            _length(drawn, 6000, 0.4, 2000, 14_000),
            _length(drawn, 30, 0.5, 8, 90),
        )


def _questions(drawn: Random) -> Iterator[Row]:
    for index, question in enumerate(_QUESTIONS):
        at_s = round(index * _SPAN_S / len(_QUESTIONS) + drawn.uniform(0, 0.5), 3)
        yield Row(at_s, TENANTS[index % 3], "assistant/questions", "standard", REAL_MODEL, 0, 16, prompt=question)


def _length(drawn: Random, median: int, sigma: float, least: int, most: int) -> int:
    return max(least, min(most, round(median * drawn.lognormvariate(0, sigma))))


if __name__ == "__main__":
    write(sys.stdout)
