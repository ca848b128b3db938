"""What clients saw of their streams, and whether it is what they should have seen. Pure.

In: pieces as they come, with the time of their coming. Out: an `Outcome` per stream. An answer is held against the
text that the same request got undisturbed; of what agrees only counts are kept.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Question:
    """A request that always gets the same answer.

    Attributes:
        number: names it.
        answer: its text, undisturbed; empty before it is known.
    """

    number: int
    text: str
    seed: int
    max_tokens: int
    answer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One stream as its client saw it.

    Attributes:
        direct: whether the client asked for placements; else the router relayed.
        tokens: that reached the client.
        price_nusd: as the client was told; 0 where the stream failed.
        longest_pause_s: between two pieces, from the first on; `ttft_s` is the time to the first, 0 where none came.
        pause_began_s, began_s, ended_s: seconds of one monotonic clock.
        worker: that made its first token; empty where that is not known.
        calls: made for it: 1 when nothing broke.
        refused_because: the reason's name where nothing was delivered and the mesh said that it would not serve it.
        wrong: what is not as it should be, in words; empty when all is well.
        unfunded: it ended with its budget.
    """

    request_id: str
    tenant: str
    question: int
    direct: bool
    tokens: int
    price_nusd: int
    ttft_s: float
    longest_pause_s: float
    pause_began_s: float
    calls: int
    began_s: float
    ended_s: float
    worker: str = ""
    refused_because: str = ""
    wrong: str = ""
    unfunded: bool = False

    @property
    def left_more_behind(self) -> bool:
        """Whether it may have been sent more than it has: it went on elsewhere, and its budget ended it there before it
        was as far. What was sent is billed."""
        return self.unfunded and self.calls > 1


@dataclass(slots=True)
class Heard:
    """What has come of one stream; times are seconds of one monotonic clock."""

    began_s: float
    tokens: int = 0
    texts: list[str] = field(default_factory=list)
    first_s: float = 0.0
    last_s: float = 0.0
    longest_pause_s: float = 0.0
    pause_began_s: float = 0.0
    gap: str = ""

    def piece(self, first_index: int, token_count: int, text: str, now_s: float) -> None:
        if first_index != self.tokens and not self.gap:
            self.gap = f"token {self.tokens} was due and token {first_index} came"
        self.tokens += token_count
        self.texts.append(text)
        if not self.first_s:
            self.first_s = now_s
        elif now_s - self.last_s > self.longest_pause_s:
            self.longest_pause_s, self.pause_began_s = now_s - self.last_s, self.last_s
        self.last_s = now_s

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.began_s if self.first_s else 0.0


def wrong_with(heard: Heard, expected: str, told_tokens: int, *, cut_short: bool = False) -> str:
    """What is wrong with a stream that ended well; empty when nothing is.

    Args:
        told_tokens: completion tokens as the stream's end told them.
        cut_short: it may end before its text does, as one does that is out of credit.
    """
    if heard.gap:
        return heard.gap
    if told_tokens != heard.tokens:
        return f"its end tells of {told_tokens} tokens, and {heard.tokens} came"
    if heard.text == expected or (cut_short and expected.startswith(heard.text)):
        return ""
    text = heard.text
    at = next((i for i, (one, other) in enumerate(zip(text, expected, strict=False)) if one != other), None)
    at = min(len(text), len(expected)) if at is None else at
    came, due = text[at : at + 40], expected[at : at + 40]
    return f"its text differs from the undisturbed one at character {at}: {came!r}, not {due!r}"
