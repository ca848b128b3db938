"""How long the optimizer takes to plan: a full solve, and a repair after a worker is lost, with a thousand workers.

    python -m bench.plan [--workers 1000] [--pools 20] [--classes 50] [--rounds 20]

In: a fleet heard by heartbeats, and demand of so many workload classes. Out: seconds, by wall clock and by processor:
`solve`: the program from nothing; `repair`: from the news that a worker is gone to plans that say so, everything that
the optimizer does between the two.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from bench.made_up import idle_beat
from services.mesh.accelerators import load_catalogue
from services.mesh.events import RequestAdmitted, RequestFinished
from services.mesh.settings import Settings
from services.optimizer.core.beliefs import Beliefs, Trigger
from services.optimizer.core.plan import solve
from services.optimizer.core.planner import Planner
from services.optimizer.wiring import assumptions_of

_MODEL: Final = "llama-3.1-8b"
_KINDS: Final = ("nvidia-h100-sxm", "amd-mi300x", "nvidia-l4", "nvidia-l40s", "google-tpu-v6e")
_SLO_CLASSES: Final = ("interactive", "standard", "batch")
_PROMPTS: Final = (100, 400, 800, 1500, 3000, 6000, 12_000)
_ANSWERS: Final = (16, 80, 300)
_RPS_PER_WORKER: Final = 1.0
_HEARD_S: Final = 10.0


def requests(count: int, classes: int) -> Sequence[tuple[RequestAdmitted, RequestFinished]]:
    """Requests spread over so many workload classes."""
    rng = Random(1)
    kinds = [(slo, prompt, answer) for slo in _SLO_CLASSES for prompt in _PROMPTS for answer in _ANSWERS][:classes]
    found = []
    for number in range(count):
        slo_class, prompt_tokens, answer_tokens = rng.choice(kinds)
        admitted = RequestAdmitted(
            request_id=f"r{number}",
            router="router-0",
            tenant="t",
            workload="",
            model=_MODEL,
            slo_class=slo_class,
            prompt_tokens=prompt_tokens,
            max_tokens=1024,
            worker="w0",
            pool="pool-0",
            plan="",
            at_unix_ms=0,
            price_book="",
        )
        finished = RequestFinished(
            request_id=f"r{number}",
            router="router-0",
            tenant="t",
            workload="",
            model=_MODEL,
            slo_class=slo_class,
            worker="w0",
            pool="pool-0",
            accelerator=_KINDS[0],
            delivered_from=0,
            delivered_count=answer_tokens,
            prompt_tokens=prompt_tokens,
            cached_prompt_tokens=0,
            outcome="stop",
            ttft_s=0.1,
            tpot_s=0.01,
            e2e_s=1.0,
            slo_met=True,
            trace_id="",
            at_unix_ms=0,
            admitted_unix_ms=0,
            price_book="",
            plan="",
        )
        found.append((admitted, finished))
    return found


def taken(work: Callable[[int], object], rounds: int) -> dict[str, float]:
    """Milliseconds of the median and of the slowest round, and processor time of the mean."""
    walls_s, began_s = [], time.process_time()
    for number in range(rounds):
        started_s = time.perf_counter()
        work(number)
        walls_s.append(time.perf_counter() - started_s)
    cpu_s = (time.process_time() - began_s) / rounds
    walls_s.sort()
    return {
        "median_ms": round(walls_s[rounds // 2] * 1e3, 1),
        "slowest_ms": round(walls_s[-1] * 1e3, 1),
        "cpu_ms": round(cpu_s * 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--pools", type=int, default=20)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    beliefs, planner = Beliefs(load_catalogue(), assumptions_of(Settings()), 0.0), Planner()
    beats = [
        idle_beat(
            f"w{number}", f"pool-{number % asked.pools}", _KINDS[number % asked.pools % len(_KINDS)], _MODEL, sequence=1
        )
        for number in range(asked.workers)
    ]
    for beat in beats:
        beliefs.heard(beat, "", _HEARD_S)
    pairs = requests(int(asked.workers * _RPS_PER_WORKER * _HEARD_S), asked.classes)
    for number, (admitted, finished) in enumerate(pairs):
        at_s = number / len(pairs) * _HEARD_S
        beliefs.heard(admitted, "", at_s)
        beliefs.heard(finished, "", at_s)
    snapshot = beliefs.snapshot(_HEARD_S)
    solution = solve(snapshot.problem, {})

    def settle(trigger: Trigger) -> None:
        now = beliefs.snapshot(_HEARD_S)
        planner.settle(now, solve(now.problem, planner.shares), trigger, now_s=_HEARD_S, unix_ms=0, solve_s=0.0)

    def repair(number: int) -> None:
        beliefs.heard(replace(beats[number], state="failed", sequence=2), "", _HEARD_S)
        assert planner.basis is not None
        news = beliefs.changed(planner.basis, _HEARD_S)
        assert news is Trigger.FLEET
        settle(news)

    settle(Trigger.START)
    print(
        json.dumps(
            {
                "workers": asked.workers,
                "pools": len(snapshot.problem.pools),
                "classes": len(snapshot.problem.classes),
                "status": solution.status,
                "solve": taken(lambda _: solve(snapshot.problem, {}), asked.rounds),
                "repair": taken(repair, min(asked.rounds, asked.workers)),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
