"""Stopping goes backwards, whatever fails on the way; the exit status is honest."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

from services.mesh.errors import BusUnavailable
from services.mesh.lifecycle import Lifecycle, serve


def _noting(done: list[str], name: str) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        done.append(name)

    return act


async def test_what_was_started_last_is_stopped_first() -> None:
    life, done = Lifecycle("x"), list[str]()
    for name in ("bus", "store", "server"):
        life.on_stop(name, _noting(done, name))
    await life.stop()
    assert done == ["server", "store", "bus"]


async def test_a_stop_step_that_fails_or_hangs_does_not_hold_up_the_rest() -> None:
    life, done = Lifecycle("x"), list[str]()

    async def fail() -> None:
        raise RuntimeError("no")

    async def hang() -> None:
        await asyncio.Event().wait()

    life.on_stop("first", _noting(done, "first"))
    life.on_stop("failing", fail)
    life.on_stop("hanging", hang, deadline_s=0.01)
    await life.stop()
    assert done == ["first"]


async def test_background_work_is_cancelled_after_the_stop_steps() -> None:
    life, done = Lifecycle("x"), list[str]()
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            done.append("work")

    life.spawn(work(), "work")
    await started.wait()
    life.on_stop("step", _noting(done, "step"))
    await life.stop()
    assert done == ["step", "work"]


async def test_listeners_hear_of_ready_and_of_draining() -> None:
    life, heard = Lifecycle("x"), list[bool]()

    async def listen(ready: bool) -> None:
        heard.append(ready)

    life.on_ready_changed(listen)
    await life.set_ready()
    await life.stop()
    assert heard == [True, False]
    assert life.draining


async def test_a_service_that_is_held_back_is_ready_once_it_is_released_and_each_change_is_told_once() -> None:
    life, heard = Lifecycle("x"), list[bool]()

    async def listen(ready: bool) -> None:
        heard.append(ready)

    life.on_ready_changed(listen)
    await life.hold("failed: out of memory")
    await life.set_ready()
    assert not life.ready
    await life.release()
    assert life.ready
    await life.hold("failed: out of memory")
    await life.hold("starting")
    assert life.held_because == "starting"
    await life.stop()
    await life.release()
    assert not life.ready
    assert heard == [True, False]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_service_with_status_0(signum: signal.Signals) -> None:
    async def wire(life: Lifecycle) -> None:
        async def send(_: bool) -> None:
            if not life.draining:
                os.kill(os.getpid(), signum)

        life.on_ready_changed(send)

    assert await serve("x", wire) == 0


async def test_background_work_that_fails_ends_the_service_with_status_1() -> None:
    async def wire(life: Lifecycle) -> None:
        async def fail() -> None:
            raise RuntimeError("the engine died")

        life.spawn(fail(), "engine")

    assert await serve("x", wire) == 1


async def test_a_service_that_cannot_start_stops_what_it_had_started_and_ends_with_status_1() -> None:
    done = list[str]()

    async def wire(life: Lifecycle) -> None:
        life.on_stop("telemetry", _noting(done, "telemetry"))
        raise BusUnavailable("no server")

    assert await serve("x", wire) == 1
    assert done == ["telemetry"]
