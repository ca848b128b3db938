"""Fuzzes every target of a mesh with a number of messages each; says what was sent, what came of it, what was wrong.

In: messages per target and a seed. Out: a `Report`, as JSON and as one line. Targets take turns in rounds: after each
round the mesh must serve who asks rightly, and nothing may be left of what was sent.
"""

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc

from tests.fuzz.bus_targets import bus_targets
from tests.fuzz.grpc_targets import grpc_targets
from tests.fuzz.http_targets import http_targets
from tests.fuzz.target import Target, Wrong
from tests.fuzz.watch import Complaints, Footprint
from tests.fuzz.world import World, running_world

ROUND: Final = 500  # messages to one target before the next has its turn
_AT_ONCE: Final = 32
_FINDINGS_SHOWN: Final = 20
_STREAM_KEEPS: Final = 256  # messages, dead letters too: what the fuzzer itself holds is soon as much as it will be
_SPARE_FILES: Final = 24
_SETTLING_S: Final = 5.0


@dataclass(slots=True)
class Tally:
    """What came of one target's messages."""

    messages: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: int = 0


@dataclass(slots=True)
class Report:
    """A whole run.

    Attributes:
        findings: what was wrong, each kind once, with how often it came.
        details: of some findings, a trace.
    """

    seed: int
    targets: dict[str, Tally] = field(default_factory=dict)
    findings: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_growth_mib: float = 0.0

    @property
    def messages(self) -> int:
        return sum(each.messages for each in self.targets.values())

    def line(self) -> str:
        """The whole run in one line."""
        least = min((each.messages for each in self.targets.values()), default=0)
        return (
            f"fuzz: {self.messages} messages to {len(self.targets)} targets, {least} or more to each, seed {self.seed},"
            f" {self.wall_s:.0f} s, memory +{self.memory_growth_mib:.0f} MiB: {sum(self.findings.values())} violations"
        )

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seed": self.seed,
            "messages": self.messages,
            "violations": sum(self.findings.values()),
            "findings": dict(self.findings.most_common(_FINDINGS_SHOWN)),
            "rounds": self.rounds,
            "wall_s": round(self.wall_s, 1),
            "cpu_s": round(self.cpu_s, 1),
            "memory_growth_mib": round(self.memory_growth_mib, 1),
            "targets": {
                name: {"messages": each.messages, "wrong": each.wrong, "outcomes": dict(each.outcomes.most_common(12))}
                for name, each in sorted(self.targets.items())
            },
        }


async def fuzz(
    messages: int,
    seed: int,
    *,
    only: Callable[[str], bool] = lambda name: True,
    until_s: float = float("inf"),
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Sends that many messages to each target.

    Args:
        only: which targets, by name.
        until_s: `time.monotonic()` at which no further round begins.
    """
    report, began_s, began_cpu_s = Report(seed), time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, Complaints() as complaints:
        async with running_world(Path(folder)) as world:
            targets = [each for each in await _targets(world) if only(each.name)]
            await _round(
                world, targets, report, Random(seed), 16
            )  # what is made at first use is there before it counts
            await world.settled()
            before = Footprint.now()
            left = messages
            while left > 0 and time.monotonic() < until_s:
                count = min(ROUND, left)
                await _round(world, targets, report, Random(f"{seed}:{left}"), count)
                left -= count
                await _check(world, report, before)
                report.memory_growth_mib = (Footprint.now().memory_bytes - before.memory_bytes) / 2**20
                say(
                    f"{report.rounds} rounds, {report.messages} messages, memory +{report.memory_growth_mib:.0f} MiB:"
                    f" {sum(report.findings.values())} violations"
                )
    for place, count in complaints.counts.items():
        report.findings[f"logged a traceback: {place}"] += count
    report.details |= complaints.traces
    report.wall_s, report.cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    return report


async def _targets(world: World) -> Sequence[Target]:
    return [*await grpc_targets(world), *http_targets(world), *bus_targets(world)]


async def _round(world: World, targets: Sequence[Target], report: Report, rng: Random, count: int) -> None:
    for target in targets:
        await _send(target, report, rng, count)
        await target.rest()
        try:
            await world.taken()
        except Wrong as wrong:
            report.findings[f"after {target.name}: {wrong}"] += 1
    report.rounds += 1


async def _send(target: Target, report: Report, rng: Random, count: int) -> None:
    """Some messages at a time; each has a source of randomness of its own, so that their order does not matter."""
    tally = report.targets.setdefault(target.name, Tally())
    seeds = [rng.getrandbits(64) for _ in range(count)]

    async def some() -> None:
        while seeds:
            seed = seeds.pop()
            tally.messages += 1
            try:
                tally.outcomes[await target.one(Random(seed))] += 1
            except Wrong as wrong:
                _note(report, tally, target, seed, str(wrong))
            except Exception as error:
                _note(report, tally, target, seed, f"the fuzzer met {error!r}")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(_AT_ONCE, count)):
            tasks.create_task(some())


def _note(report: Report, tally: Tally, target: Target, seed: int, what: str) -> None:
    tally.wrong += 1
    finding = f"{target.name}: {what}"[:400]
    report.findings[finding] += 1
    report.details.setdefault(finding, f"seed {seed}")


async def _check(world: World, report: Report, before: Footprint) -> None:
    try:
        await world.until_serving()
    except grpc.aio.AioRpcError as error:
        report.findings[f"a good request failed after a round: {error.code().name}, {error.details()}"[:600]] += 1
    except Exception as error:
        report.findings[f"a good request failed after a round: {error!r}"[:600]] += 1
    for held in await world.settled():
        report.findings[held] += 1
    world.broker.expire(_STREAM_KEEPS)
    ends_s = time.monotonic() + _SETTLING_S
    while grown := Footprint.now().grown_since(before, spare_files=_SPARE_FILES):
        if time.monotonic() > ends_s:
            report.findings.update(grown)
            return
        await asyncio.sleep(0.1)  # what was cancelled ends in its own time


def write(report: Report, path: Path) -> None:
    """The report as a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.document(), indent=1) + "\n", encoding="utf-8")
