"""Everything measured of one subject, kept in a file, so that a run that was broken off goes on where it stopped.

In: a subject and a plan. Out: a dict of figures, plain enough for JSON; `summary` draws the table's from it.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.datapath.fit import Spread, spread
from bench.datapath.scenarios import (
    STEPS_MS,
    STREAMS,
    Bench,
    Load,
    at_rest,
    cost,
    first_token,
    hold,
    kill_backend,
    slow_reader,
    throughput,
)
from bench.datapath.subject import SCENARIOS, Running, Subject

ROOT: Final = Path(__file__).resolve().parents[2]
KEPT: Final = ROOT / ".bench" / "results"
_KEPT_S: Final = 12 * 3600.0
_SATURATED_ROUND_S: Final = 60.0

Say = Callable[[str], None]
_Figures = TypeVar("_Figures")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done.

    Attributes:
        hold_streams: at once in the scenario `hold`; 0 leaves it out. slow_streams: likewise.
    """

    repetitions: int = 3
    streams: tuple[int, ...] = STREAMS
    steps_ms: tuple[float, ...] = STEPS_MS
    hold_streams: int = 2000
    slow_streams: int = 500
    ttft_requests: int = 80
    throughput_streams: int = 128


QUICK: Final = Plan(repetitions=1, streams=(8,), hold_streams=200, slow_streams=50, ttft_requests=20)


def measured(subject: Subject, plan: Plan, say: Say, *, fresh: bool, only: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of a subject: those kept, where neither it nor the harness has changed; else measured now.

    Args:
        only: names of scenarios ("kill", "hold", "slow", "cost", "ttft", "throughput"); empty: all.
    """
    facts = dict(subject.facts())
    key = _key(facts, plan, only)
    kept = KEPT / f"{re.sub(r'[^a-z0-9]+', '-', subject.name.lower())}.json"
    if not fresh and kept.exists():
        figures: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if figures["key"] == key and time.time() - figures["at_unix_s"] < _KEPT_S:
            say(f"{subject.name}: kept from {figures['at']}")
            return figures
    started_s = time.monotonic()
    say(f"{subject.name} {facts.get('version', '')}")
    figures = _Measuring(subject, plan, say).run(only)
    figures |= {
        "name": subject.name,
        **facts,
        "key": key,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "at_unix_s": time.time(),
        "took_s": round(time.monotonic() - started_s, 1),
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


class _Measuring:
    """One subject's scenarios, each on a router that was started for it."""

    def __init__(self, subject: Subject, plan: Plan, say: Say) -> None:
        self._subject = subject
        self._plan = plan
        self._say = say
        self._folder = ROOT / ".bench" / "run" / re.sub(r"[^a-z0-9]+", "-", subject.name.lower())

    def run(self, only: Sequence[str]) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        wanted = set(only or SCENARIOS) & set(self._subject.scenarios)
        if wanted & {"cost", "ttft"}:
            figures |= self._with_router("cost", lambda bench: self._costs(bench, wanted))
        if "hold" in wanted and self._plan.hold_streams:
            figures["hold"] = self._with_router("hold", lambda bench: hold(bench, self._plan.hold_streams))
        if "slow" in wanted and self._plan.slow_streams:
            figures["slow"] = self._with_router("slow", lambda bench: slow_reader(bench, self._plan.slow_streams))
        if "throughput" in wanted:
            figures["throughput"] = self._with_router("throughput", self._throughputs)
        if "kill" in wanted:
            figures["kill"] = [
                self._with_router(f"kill-{each}", kill_backend) for each in range(self._plan.repetitions)
            ]
        return figures

    def _throughputs(self, bench: Bench) -> list[dict[str, Any]]:
        return [throughput(bench, self._plan.throughput_streams) for _ in range(self._plan.repetitions)]

    def _costs(self, bench: Bench, wanted: set[str]) -> dict[str, Any]:
        rest = at_rest(bench)
        costs: list[dict[str, Any]] = []
        ttft: list[dict[str, Any]] = []
        for round_number in range(self._plan.repetitions):
            started_s = time.monotonic()
            if "ttft" in wanted:
                ttft.append(first_token(bench, self._plan.ttft_requests))
            if "cost" in wanted:
                costs += self._round(bench, rest["us_per_s"])
            took_s = time.monotonic() - started_s
            self._say(f"  round {round_number + 1} of {self._plan.repetitions} took {took_s:.0f} s")
            if took_s > _SATURATED_ROUND_S:
                self._say("  it is saturated: no further rounds")
                break
        return {"at_rest": rest, "costs": costs, "ttft": ttft}

    def _round(self, bench: Bench, at_rest_us_per_s: float) -> list[dict[str, Any]]:
        costs = []
        for step_ms in self._plan.steps_ms:
            for streams in self._plan.streams:
                measured = cost(bench, streams, step_ms, at_rest_us_per_s)
                costs.append(measured)
                if measured["unfinished"]:  # more at once would only wait
                    break
        return costs

    def _with_router(self, what: str, scenario: Callable[[Bench], _Figures]) -> _Figures:
        folder = self._folder / what
        running: Running | None = None
        load = Load(folder / "load.log")
        try:
            running = self._subject.start(folder, paced=scenario is kill_backend)
            bench = Bench(running, load)
            bench.warm_up()
            started_s = time.monotonic()
            figures = scenario(bench)
            self._say(f"  {what}: {time.monotonic() - started_s:.0f} s")
            return figures
        finally:
            load.stop()
            if running is not None:
                running.stop()


def _key(facts: Mapping[str, Any], plan: Plan, only: Sequence[str]) -> str:
    """Changes with what is measured and how."""
    told = hashlib.sha256(json.dumps([dict(facts), asdict(plan), list(only)], default=str).encode())
    for path in sorted((ROOT / "bench" / "datapath").glob("*.py")):
        told.update(path.read_bytes())
    return told.hexdigest()[:16]


def cost_of(figures: Mapping[str, Any], streams: int, step_ms: float, what: str) -> Spread | None:
    """A figure of `cost` over the repetitions; None where it was not measured."""
    values = [
        each[what] for each in figures.get("costs", ()) if each["streams"] == streams and each["step_ms"] == step_ms
    ]
    return spread(values) if values else None


def added_ttft(figures: Mapping[str, Any], plain: Mapping[str, Any], percentile: int) -> Spread | None:
    """Milliseconds beyond what a client without a router waits for its first token."""
    what = f"ttft_p{percentile}_ms"
    those = [each[what] for each in figures.get("ttft", ()) if each[what] is not None]
    without = [each[what] for each in plain.get("ttft", ()) if each[what] is not None]
    return spread([each - spread(without).median for each in those]) if those and without else None
