"""An engine's life: it dies, says why, is stopped, and another takes its place; its device's totals never go back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest

from services.mesh.clock import FakeClock
from services.mesh.errors import EngineFailed, SettingInvalid
from services.mesh.events import WorkerState
from services.mesh.settings import WorkerSettings
from services.worker.engine import EngineInfo, EngineRequest, EngineStats, OnFailure, OnStep, StepOutput
from services.worker.engine_life import EngineLife
from tests.unit.worker.waiting import until

STARTING, READY, FAILED = WorkerState.STARTING, WorkerState.READY, WorkerState.FAILED


class FakeEngine:
    """An engine that does what it is told.

    Args:
        refusal: what `start` raises.
    """

    def __init__(self, refusal: Exception | None = None, *, hangs_at: str = "") -> None:
        self.refusal = refusal
        self.hangs_at = hangs_at
        self.running = 0
        self.busy_ns = 0
        self.steps = 0
        self.started = self.stops = 0
        self.on_step: OnStep
        self.die: OnFailure

    async def start(self, on_step: OnStep, on_failure: OnFailure) -> EngineInfo:
        self.started += 1
        self.on_step, self.die = on_step, on_failure
        if self.refusal is not None:
            raise self.refusal
        if self.hangs_at == "start":
            await asyncio.Event().wait()
        return EngineInfo(
            engine="fake",
            simulated=True,
            models=("m",),
            context_tokens=1,
            max_batch=1,
            max_waiting=1,
            kv_capacity_tokens=1,
            prefill_chunk_tokens=1,
        )

    async def submit(self, request: EngineRequest) -> None:
        raise EngineFailed(request.request_id)

    def cancel(self, sequence: int) -> None:
        self.running -= 1

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self.running,
            waiting=0,
            waiting_prefill_tokens=0,
            kv_cache_usage=0.0,
            slowdown=1.0,
            power_w=0.0,
            busy_ns=self.busy_ns,
            energy_uj=2 * self.busy_ns,
            steps=self.steps,
        )

    async def stop(self, grace_s: float) -> None:
        self.stops += 1
        if self.hangs_at == "stop":
            raise RuntimeError("a driver does not answer")


class Watched:
    """An `EngineLife` with what it told."""

    def __init__(self, *engines: FakeEngine | Exception, **settings: Any) -> None:
        self.clock = FakeClock()
        self.changes: list[tuple[WorkerState, str]] = []
        self.steps: list[StepOutput] = []
        left = list(engines)

        def make() -> FakeEngine:
            made = left.pop(0)
            if isinstance(made, Exception):
                raise made
            return made

        base = {"engine_restart_s": 0.001, "engine_restart_longest_s": 0.002, "engine_hang_s": 0.0}
        self.life = EngineLife(make, WorkerSettings(**{**base, **settings}), self.clock)

    async def changed(self, state: WorkerState) -> None:
        assert state is self.life.state
        self.changes.append((state, self.life.failed_because))

    async def until(self, holds: Callable[[], bool]) -> None:
        await until(holds, "the engine's life went on as expected")


@asynccontextmanager
async def kept(*engines: FakeEngine | Exception, **settings: Any) -> AsyncIterator[Watched]:
    watched = Watched(*engines, **settings)
    await watched.life.start(watched.steps.extend, watched.changed)
    keeping = asyncio.create_task(watched.life.keep())
    try:
        yield watched
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        await watched.life.stop(0.0)


async def test_an_engine_that_dies_is_stopped_and_another_becomes_ready() -> None:
    first, second = FakeEngine(), FakeEngine()
    async with kept(first, second) as watched:
        first.die("CUDA error: out of memory")
        first.die("and again")
        await watched.until(lambda: len(watched.changes) == 4)
        reason = "CUDA error: out of memory"
        assert watched.changes == [(READY, ""), (FAILED, reason), (STARTING, reason), (READY, "")]
        assert (first.stops, second.started, watched.life.restarts) == (1, 1, 1)
        assert watched.life.engine is second
    assert (first.stops, second.stops) == (1, 1)


async def test_totals_go_on_from_engine_to_engine_and_never_go_back() -> None:
    first, second = FakeEngine(), FakeEngine()
    async with kept(first, second, engine_restart_s=0.1, engine_restart_longest_s=0.1) as watched:
        first.busy_ns, first.steps, first.running = 70, 7, 3
        first.die("gone")
        await watched.until(lambda: watched.life.state is FAILED)
        stats = watched.life.stats()
        assert (stats.running, stats.busy_ns, stats.energy_uj, stats.steps) == (0, 70, 140, 7)
        first.busy_ns = 90  # idle time is the device's too
        await watched.until(lambda: watched.life.state is READY)
        second.busy_ns, second.steps = 10, 1
        stats = watched.life.stats()
        assert (stats.busy_ns, stats.energy_uj, stats.steps) == (100, 200, 8)


async def test_what_a_replaced_engine_still_says_is_not_heard() -> None:
    first, second = FakeEngine(), FakeEngine()
    async with kept(first, second) as watched:
        step: Sequence[StepOutput] = [StepOutput(step_s=1.0, outputs=())]
        first.on_step(step)
        first.die("gone")
        await watched.until(lambda: watched.life.restarts == 1)
        first.on_step(step)
        first.die("gone again")
        second.on_step(step)
        assert len(watched.steps) == 2
        assert watched.life.state is READY


async def test_a_start_that_fails_is_tried_again() -> None:
    engines = [FakeEngine(EngineFailed("no such model")), FakeEngine(OSError("no driver")), FakeEngine()]
    async with kept(*engines) as watched:
        await watched.until(lambda: watched.life.state is READY)
        told = [reason for state, reason in watched.changes if state is FAILED]
        assert told == ["no such model", "it did not start: OSError('no driver')"]
        assert [engine.stops for engine in engines] == [1, 1, 0]


async def test_a_start_that_takes_too_long_has_failed() -> None:
    async with kept(FakeEngine(hangs_at="start"), FakeEngine(), engine_start_s=0.01) as watched:
        assert watched.changes == [(FAILED, "it was not ready within 0.01 s (worker.engine_start_s)")]
        await watched.until(lambda: watched.life.state is READY)


async def test_an_engine_that_stands_still_with_requests_is_dead() -> None:
    first, second = FakeEngine(), FakeEngine()
    async with kept(first, second, engine_hang_s=0.02) as watched:
        first.running = 2
        await watched.until(lambda: watched.life.restarts == 1)
        assert watched.changes[1] == (FAILED, "it hangs: no step for 0.02 s while 2 requests run")


async def test_a_dead_engine_that_cannot_be_stopped_is_left() -> None:
    async with kept(FakeEngine(hangs_at="stop"), FakeEngine()) as watched:
        watched.life.engine.die("gone")  # type: ignore[attr-defined]
        await watched.until(lambda: watched.life.restarts == 1)


async def test_after_too_many_deaths_in_a_row_the_worker_gives_up() -> None:
    watched = Watched(*[FakeEngine(EngineFailed("no such model")) for _ in range(3)], engine_restarts=2)
    await watched.life.start(watched.steps.extend, watched.changed)
    with pytest.raises(EngineFailed, match="3 times in a row, at last because of: no such model"):
        await watched.life.keep()


async def test_a_settled_engine_has_nothing_counted_against_it() -> None:
    engines = [FakeEngine() for _ in range(4)]
    async with kept(*engines, engine_restarts=1, engine_settled_s=60.0) as watched:
        for engine, successor in pairwise(engines):
            watched.clock.advance(60.0)
            engine.die("gone")
            await watched.until(lambda ready=successor: watched.life.engine is ready)  # type: ignore[misc]


async def test_a_wrong_setting_stops_the_first_start_and_later_leaves_the_worker_failed() -> None:
    with pytest.raises(SettingInvalid, match="no such accelerator"):
        Watched(SettingInvalid("no such accelerator"))
    first = FakeEngine(SettingInvalid("no such dialect"))
    with pytest.raises(SettingInvalid, match="no such dialect"):
        await Watched(first).life.start(lambda _: None, lambda _: asyncio.sleep(0))
    assert first.stops == 1
    first = FakeEngine()
    async with kept(first, SettingInvalid("no such dialect")) as watched:
        first.die("gone")
        await watched.until(lambda: watched.life.failed_because.startswith("no such dialect"))
        assert watched.life.state is FAILED
