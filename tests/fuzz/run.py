"""Fuzzes every target of a mesh with a number of messages each; says what was sent, what came of it, what was wrong.

In: messages per target and a seed. Out: a `Report`. Targets take turns, a batch each, hundreds of messages at once.
After each batch the mesh must serve who asks rightly, and nothing may be left of what was sent; where something is, the
batch is halved in meshes of their own until one message is named. A message is made from the seed, its target's name
and its number alone.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import grpc

from tests.fuzz.bus_targets import bus_targets
from tests.fuzz.grpc_targets import grpc_targets
from tests.fuzz.http_targets import http_targets
from tests.fuzz.report import Report, Tally
from tests.fuzz.target import Target, Wrong
from tests.fuzz.watch import Complaints, Footprint, let_go, resident_bytes
from tests.fuzz.world import World, running_world

BATCH: Final = 1000  # messages to one target before the next has its turn
WARM_UP: Final = 16  # to each, so that what is made at first use is there before it counts
_WARM_UP_FROM: Final = 1 << 40  # numbers that no run comes to
_STREAM_KEEPS: Final = 256  # messages, dead letters too: what the fuzzer itself holds is soon as much as it will be
_SPARE_FILES: Final = 24
_SETTLING_S: Final = 30.0


async def fuzz(
    messages: int,
    seed: int,
    *,
    first: int = 0,
    only: Callable[[str], bool] = lambda name: True,
    until_s: float = float("inf"),
    batch: int = BATCH,
    halve: int = 3,
    say: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Sends messages `first` to `messages` to each target.

    Args:
        only: which targets, by name.
        halve: findings for which one message is looked for; each takes a dozen meshes.
        until_s: `time.monotonic()` at which no further round begins.
        say: is called after each round.
    """
    report, began_s, began_cpu_s = Report(seed, first), time.monotonic(), time.process_time()
    with Complaints() as complaints:
        async with _mesh(seed, only) as (world, targets):
            let_go()
            before = Footprint.now()
            for start in range(first, messages, batch):
                if time.monotonic() > until_s:
                    break
                numbers = range(start, min(start + batch, messages))
                for target in targets:
                    tally = report.targets.setdefault(target.name, Tally())
                    memory_bytes, cpu_s = resident_bytes(), time.process_time()
                    await _send(target, report, tally, numbers)
                    found = await _amiss(world, target, before)
                    tally.grown_bytes.append(resident_bytes() - memory_bytes)
                    tally.cpu_s += time.process_time() - cpu_s
                    report.findings.update(found)
                    said = complaints.take()
                    report.findings.update({f"after {target.name}: {each}": count for each, count in said.items()})
                    report.details |= complaints.traces
                    if (found or said) and halve > 0:
                        halve -= 1
                        memory_bytes = resident_bytes()
                        key = f"{target.name}, messages {numbers[0]} to {numbers[-1]}"
                        found_in = await culprit(numbers, partial(_harms, seed, target.name, complaints))
                        report.details[key] = (
                            f"FROM={found_in[0]} MESSAGES={found_in[-1] + 1} ONLY={target.name!r} SEED={seed}"
                        )
                        complaints.take()
                        let_go()  # the meshes that this took are no growth
                        before = replace(before, memory_bytes=before.memory_bytes + resident_bytes() - memory_bytes)
                let_go()
                report.findings.update(Footprint.now().memory_grown_since(before))
                report.memory_mib.append((resident_bytes() - before.memory_bytes) / 2**20)
                report.wall_s, report.cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
                say(report)
        report.findings.update(complaints.take())
        report.details |= complaints.traces
    return report


@asynccontextmanager
async def _mesh(seed: int, only: Callable[[str], bool]) -> AsyncIterator[tuple[World, list[Target]]]:
    """A mesh of its own and its targets, each of which was used before."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_world(Path(folder)) as world:
            found: list[Target] = [*await grpc_targets(world), *http_targets(world), *bus_targets(world)]
            targets = [each for each in found if only(each.name)]
            unsaid = Report(seed)
            for target in targets:
                await _send(target, unsaid, Tally(), range(_WARM_UP_FROM, _WARM_UP_FROM + WARM_UP))
                await target.rest()
                await world.taken()
            await world.settled()
            yield world, targets


async def _send(target: Target, report: Report, tally: Tally, numbers: Sequence[int]) -> None:
    """Many messages at a time; each has a source of randomness of its own, so that their order does not matter."""
    left = iter(numbers)

    async def some() -> None:
        for number in left:
            tally.messages += 1
            try:
                tally.outcomes[await target.one(Random(f"{report.seed}:{target.name}:{number}"), number)] += 1
            except Wrong as wrong:
                _note(report, tally, target, number, str(wrong))
            except Exception as error:
                _note(report, tally, target, number, f"the fuzzer met {error!r}")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(target.at_once, len(numbers))):
            tasks.create_task(some())


def _note(report: Report, tally: Tally, target: Target, number: int, what: str) -> None:
    tally.wrong += 1
    finding = f"{target.name}: {what}"[:400]
    report.findings[finding] += 1
    report.details.setdefault(finding, f"REPLAY={number} ONLY={target.name!r} seed {report.seed}")


async def _amiss(world: World, target: Target, before: Footprint) -> list[str]:
    """What is wrong with the mesh after a batch, by the target that had it."""
    await target.rest()
    found = []
    try:
        await world.taken()
        await world.until_serving()
    except Wrong as wrong:
        found.append(str(wrong))
    except grpc.aio.AioRpcError as error:
        found.append(f"a good request fails: {error.code().name}, {error.details()}"[:600])
    except Exception as error:
        found.append(f"a good request fails: {error!r}"[:600])
    found += await world.settled()
    world.broker.expire(_STREAM_KEEPS)
    ends_s = time.monotonic() + _SETTLING_S
    while grown := Footprint.now().more_than(before, spare_files=_SPARE_FILES):
        if time.monotonic() > ends_s:
            found += grown
            break
        await asyncio.sleep(0.1)  # what was cancelled ends in its own time
    return [f"after {target.name}: {each}" for each in found]


async def culprit(numbers: Sequence[int], harms: Callable[[Sequence[int]], Awaitable[bool]]) -> Sequence[int]:
    """The fewest messages of a batch, found by halves, that are known to do harm by themselves: one, where one does."""
    while len(numbers) > 1:
        half = len(numbers) // 2
        for part in (numbers[:half], numbers[half:]):
            if await harms(part):
                numbers = part
                break
        else:
            break
    return numbers


async def _harms(seed: int, name: str, complaints: Complaints, numbers: Sequence[int]) -> bool:
    async with _mesh(seed, lambda each: each == name) as (world, (target,)):
        before = Footprint.now()
        complaints.take()
        await _send(target, Report(seed), Tally(), numbers)
        return bool(await _amiss(world, target, before)) or bool(complaints.take())
