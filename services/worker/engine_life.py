"""The life of a worker's engine: started, watched, and when it dies replaced by a new one.

In: how an engine is made; its failures. Out: changes of the worker's state, each with its reason, and one set of
statistics that goes on from engine to engine.

    starting ──▶ ready ──▶ failed ──▶ starting ──▶ ready …

An engine is dead when it says so, or when it hangs: requests run in it, and no step ends for `worker.engine_hang_s`.
Its worker tells everybody at once, so that its streams go on elsewhere; the dead engine is stopped, within a deadline;
and after a pause a new one is made and started (`core/backoff.py`). A start that fails counts as a death. When
`worker.engine_restarts` starts in a row have failed the worker gives up and its process ends, since what is broken may
be the process itself (a CUDA context, memory that was never given back), and whoever supervises it starts a fresh one.
A setting that is wrong cannot heal: the worker then stays failed and says why.

The device is the same whichever engine uses it: its totals (seconds, joules, steps) are of the worker's epoch and never
go back.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Final

from services.mesh.clock import Clock
from services.mesh.errors import EngineFailed, SettingInvalid, TokenworksError
from services.mesh.events import WorkerState
from services.mesh.settings import WorkerSettings
from services.worker.core.backoff import Backoff
from services.worker.core.stillness import LOOKS, Stillness
from services.worker.engine import Engine, EngineInfo, EngineRequest, EngineStats, OnStep, StepOutput

log = logging.getLogger(__name__)

_STOP_S: Final = 5.0  # for a dead engine to give back what it holds

OnChange = Callable[[WorkerState], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Incarnation:
    """One engine, from its making to its end.

    Attributes:
        died: set once, with the reason in `died_because`.
        stopped: it was asked to give back what it holds.
    """

    engine: Engine
    died: asyncio.Event = field(default_factory=asyncio.Event)
    died_because: str = ""
    stopped: bool = False

    def die(self, reason: str) -> None:
        """The first reason counts."""
        if not self.died.is_set():
            self.died_because = reason or "it gave no reason"
            self.died.set()


class EngineLife:
    """The engine of one worker, whichever it is at the moment.

    Attributes:
        state: STARTING, READY or FAILED.
        failed_because: why the last engine died; empty once another is ready.
        info: fixed facts of the engine; None before the first was ready.
        restarts: engines that became ready in place of a dead one.
    """

    def __init__(
        self, make: Callable[[], Engine], settings: WorkerSettings, clock: Clock, rng: Random | None = None
    ) -> None:
        """
        Args:
            make: an engine that was not started, a new one at each call; raises SettingInvalid.
            rng: for the pauses between starts.

        Raises:
            SettingInvalid: says `make`.
        """
        self.state = WorkerState.STARTING
        self.failed_because = ""
        self.info: EngineInfo | None = None
        self.restarts = 0
        self._make = make
        self._settings = settings
        self._clock = clock
        self._rng = rng or Random()
        self._backoff = Backoff(
            settings.engine_restart_s,
            settings.engine_restart_longest_s,
            settings.engine_restarts,
            settings.engine_settled_s,
        )
        self._now = _Incarnation(make())
        self._before = (0, 0, 0)  # busy_ns, energy_uj, steps of the engines before
        self._on_step: OnStep = _nobody
        self._on_change: OnChange = _noone

    @property
    def engine(self) -> Engine:
        """The engine in force; another object after each restart."""
        return self._now.engine

    async def start(self, on_step: OnStep, on_change: OnChange) -> None:
        """Starts the first engine; where it fails, `keep` goes on from there.

        Args:
            on_change: awaited after each change of `state`.

        Raises:
            SettingInvalid: the engine cannot start with these settings.
        """
        self._on_step, self._on_change = on_step, on_change
        await self._start(self._now)

    async def keep(self) -> None:
        """Watches the engine and replaces it when it dies, until cancelled, or until that cannot help.

        Raises:
            EngineFailed: it died too often in a row.
        """
        while True:
            well_s = 0.0
            if self.state is WorkerState.READY:
                well_s = await self._until_dead(self._now)
                await self._failed(self._now.died_because)
                await _stop(self._now, _STOP_S)
            pause_s = self._backoff.pause_s(well_s, self._rng.random())
            if pause_s is None:
                raise EngineFailed(
                    f"the engine failed {self._settings.engine_restarts + 1} times in a row, at last because of:"
                    f" {self.failed_because}"
                )
            log.warning("another engine is started in %.1f s", pause_s)
            await asyncio.sleep(pause_s)
            try:
                await self._restart()
            except SettingInvalid as error:
                await self._failed(f"{error}; change the setting and start the worker again")
                return

    async def submit(self, request: EngineRequest) -> None:
        """See `Engine.submit`."""
        await self._now.engine.submit(request)

    def cancel(self, sequence: int) -> None:
        """See `Engine.cancel`."""
        self._now.engine.cancel(sequence)

    def stats(self) -> EngineStats:
        """Of the engine in force; totals are of all engines since the worker started."""
        stats = self._now.engine.stats()
        if self.state is not WorkerState.READY:
            stats = replace(
                stats,
                running=0,
                waiting=0,
                waiting_prefill_tokens=0,
                kv_cache_usage=0.0,
                waiting_by_priority=(),
                prefill_tokens_by_priority=(),
            )
        if not self.restarts:
            return stats
        busy_ns, energy_uj, steps = self._before
        return replace(
            stats, busy_ns=stats.busy_ns + busy_ns, energy_uj=stats.energy_uj + energy_uj, steps=stats.steps + steps
        )

    async def stop(self, grace_s: float) -> None:
        """Stops the engine in force, once `keep` has ended."""
        if not self._now.stopped:
            await self._now.engine.stop(grace_s)

    async def _until_dead(self, alive: _Incarnation) -> float:
        """How long it lived, seconds since it was ready."""
        ready_s, stillness, hang_s = self._clock.monotonic_s(), Stillness(), self._settings.engine_hang_s
        while not alive.died.is_set():
            try:
                async with asyncio.timeout(hang_s / LOOKS if hang_s else None):
                    await alive.died.wait()
            except TimeoutError:
                stats = alive.engine.stats()
                if stillness.hangs(stats.running, stats.steps):
                    alive.die(f"it hangs: no step for {hang_s:g} s while {stats.running} requests run")
        return self._clock.monotonic_s() - ready_s

    async def _restart(self) -> None:
        """Another engine; when it does not become ready, that is a death of the one in force. Raises SettingInvalid."""
        self.state = WorkerState.STARTING
        await self._on_change(self.state)
        made = _Incarnation(self._make())
        # The dead one stays in force until then: its device is still there, and idle time is energy too.
        await self._start(made)

    async def _start(self, starting: _Incarnation) -> None:
        """Starts an engine and puts it in force. Raises SettingInvalid."""
        engine, within_s = starting.engine, self._settings.engine_start_s
        try:
            async with asyncio.timeout(within_s):
                info = await engine.start(partial(self._stepped, starting), starting.die)
        except TimeoutError:
            starting.die(f"it was not ready within {within_s:g} s (worker.engine_start_s)")
        except SettingInvalid:
            await _stop(starting, _STOP_S)
            raise
        except asyncio.CancelledError:
            await _stop(starting, _STOP_S)
            raise
        except TokenworksError as error:
            starting.die(str(error))
        except Exception as error:
            log.exception("the engine did not start")
            starting.die(f"it did not start: {error!r}")
        if starting.died.is_set():
            await _stop(starting, _STOP_S)
            await self._failed(starting.died_because)
            return
        if starting is not self._now:
            stats, (busy_ns, energy_uj, steps) = self._now.engine.stats(), self._before
            self._before = (busy_ns + stats.busy_ns, energy_uj + stats.energy_uj, steps + stats.steps)
            self._now = starting
            self.restarts += 1
        self.info, self.failed_because, self.state = info, "", WorkerState.READY
        await self._on_change(self.state)

    async def _failed(self, reason: str) -> None:
        log.error("the engine has failed: %s", reason)
        self.state, self.failed_because = WorkerState.FAILED, reason
        await self._on_change(self.state)

    def _stepped(self, by: _Incarnation, steps: Sequence[StepOutput]) -> None:
        if by is self._now:  # an engine that could not be stopped has nothing to say any more
            self._on_step(steps)


async def _stop(dead: _Incarnation, within_s: float) -> None:
    """Stops an engine that is of no use any more; what it holds on to is left to it."""
    dead.stopped = True
    try:
        async with asyncio.timeout(within_s):
            await dead.engine.stop(0.0)
    except TimeoutError:
        log.error("the dead engine did not stop within %g s; it is left as it is", within_s)
    except Exception:
        log.exception("the dead engine did not stop cleanly")


def _nobody(_: object) -> None:
    """Stands in until `start` says who listens."""


async def _noone(_: object) -> None:
    """Stands in until `start` says who listens."""
