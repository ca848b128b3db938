"""A worker's watts, utilisation and energy, from now on: measured where a source tells, modelled elsewhere.

In: readings of the source, taken in the background; the engine's own figures, which are the catalogue's model. Out:
`Figures` for heartbeats and metrics, each with its source; measured energy for the reporter, who shares it among the
requests.

A source that fails, or takes too long, is let go: from then on all figures are the model's, and say so.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from services.mesh.clock import Clock
from services.mesh.events import MODELLED
from services.worker.core.devices import Reading, total
from services.worker.core.measured_energy import MeasuredEnergy
from services.worker.engine import EngineInfo, EngineStats
from services.worker.hardware.detection import Meters
from services.worker.hardware.machine import Machine
from services.worker.hardware.source import SourceUnavailable
from services.worker.hardware.sources import close

log = logging.getLogger(__name__)

_READ_DEADLINE_S: Final = 5.0
_LAST_DEADLINE_S: Final = 1.0  # for the reading taken at the end
_STANDSTILL_S: Final = 2.0
_BUSY_MEMORY_S: Final = 1.0  # over which modelled utilisation is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a worker draws and does, recently.

    Attributes:
        utilisation: 0 to 1; where it is not measured, the part of the last second or so in which the engine worked.
        energy_uj: in all, idling included.
        power_source, utilisation_source: what measured them, or `MODELLED`.
    """

    power_w: float
    utilisation: float
    energy_uj: int
    power_source: str
    utilisation_source: str


class Shares(Protocol):
    """What `EnergyShares` does with measured energy.

    Attributes:
        stepped_s: when the engine's last step ended, on the worker's clock.
        engine_source: what the engine's own figures come from.
    """

    stepped_s: float
    engine_source: str

    def measure(self, meter: str) -> None:
        """From here on energy comes from `meter`; empty: from the engine again, as does what waits for a meter."""
        ...

    def share(self, energy_uj: int, source: str) -> bool:
        """Shares energy among the requests worked for since the last time; False: there was none, nothing is taken."""
        ...


class PowerMeter:
    """The figures of one worker."""

    def __init__(self, machine: Machine, stats: Callable[[], EngineStats], clock: Clock, shares: Shares) -> None:
        """`stats`: the engine's, whenever asked."""
        self._machine = machine
        self._stats = stats
        self._clock = clock
        self._shares = shares
        self._meters = Meters()
        self._book: MeasuredEnergy | None = None  # while watts or energy are measured
        self._reading = Reading()
        self._energy_uj = 0  # counted until measuring began, or ended
        self._modelled_since_uj = 0  # the engine's own count when it ended
        self._read_s = 0.0
        self._shared_s = 0.0
        self._busy = _BusyTime()
        self._recent: list[tuple[float, float]] = []

    @property
    def source(self) -> str:
        """What watts come from."""
        return (
            self._meters.source.name if self._book is not None and self._meters.source else self._shares.engine_source
        )

    def figures(self) -> Figures:
        stats = self._stats()
        source = self._meters.source
        measured_w = self._reading.power_w if self._book is not None else None
        utilisation = self._reading.utilisation if source is not None else None
        return Figures(
            power_w=stats.power_w if measured_w is None else measured_w,
            utilisation=self._recently_busy(stats) if utilisation is None else utilisation,
            energy_uj=self._energy_so_far(stats),
            power_source=self._shares.engine_source if measured_w is None else self.source,
            utilisation_source=MODELLED if utilisation is None or source is None else source.name,
        )

    async def run(self, info: EngineInfo, interval_s: float) -> None:
        """Finds what to read and reads it until it fails or this is cancelled; ends early where there is nothing.

        Args:
            info: of the engine, which has started.
            interval_s: between two readings, at least; a source may want more.
        """
        self._shares.engine_source = info.power_source
        self._meters = await self._machine.meters(info)
        if self._meters.note:
            log.info("watts are %s: %s", "measured in part" if self._meters.source else "modelled", self._meters.note)
        source = self._meters.source
        if source is None:
            return
        pause_s = max(interval_s, source.interval_s)
        try:
            while True:
                async with asyncio.timeout(_READ_DEADLINE_S):
                    readings = await source.read(self._meters.devices)
                self._take(total(readings))
                await asyncio.sleep(pause_s)
        except SourceUnavailable as error:
            await self._let_go(str(error))
        except TimeoutError:
            await self._let_go(f"it has not answered in {_READ_DEADLINE_S:g} s")
        except Exception as error:  # a plug-in's or a library's: the worker goes on without it
            log.exception("%s fails", source.name)
            await self._let_go(repr(error))

    async def stop(self) -> None:
        """The last reading, so that all energy up to here is shared; call it when `run` is cancelled."""
        source = self._meters.source
        if source is None:
            return
        try:
            async with asyncio.timeout(_LAST_DEADLINE_S):
                self._take(total(await source.read(self._meters.devices)))
        except Exception as error:  # whatever it is, what waits is settled by the model
            log.warning("%s was not read a last time: %r", source.name, error)
        self._end_measuring()
        await close(source)

    def _take(self, reading: Reading) -> None:
        """Folds a reading: figures, and energy for those who caused it."""
        now_s, stats = self._clock.monotonic_s(), self._stats()
        if reading.power_w is None and reading.energy_uj is None:
            self._end_measuring()
            self._reading = reading
            return
        if self._book is None:
            self._energy_uj = self._energy_so_far(stats)
            self._book = MeasuredEnergy(self._machine.accelerator.idle_w)
            self._shares.measure(self.source)
        before_uj, before_s = self._book.measured_uj, self._read_s
        self._book.read(now_s, reading, self._busy.so_far_s(stats, now_s, self._shares.stepped_s))
        self._read_s = now_s
        if reading.power_w is None and self._reading.energy_uj is not None and now_s > before_s:
            # There is only a counter: its watts are what it grew by.
            reading = replace(reading, power_w=(self._book.measured_uj - before_uj) / 1e6 / (now_s - before_s))
        self._reading = reading
        # A counter that has not ticked gives nothing to share; one that stands still is not waited for forever.
        if self._book.waiting_uj or now_s - self._shared_s > _STANDSTILL_S:
            self._shared_s = now_s
            if self._shares.share(self._book.waiting_uj, self.source):
                self._book.take()
            elif not stats.running:
                self._book.give_up()

    async def _let_go(self, why: str) -> None:
        source = self._meters.source
        assert source is not None
        log.warning("%s is not read any more: %s; watts and energy are the catalogue's from here on", source.name, why)
        self._end_measuring()
        self._meters = Meters(note=f"{source.name}: {why}")
        await close(source)

    def _end_measuring(self) -> None:
        if self._book is None:
            return
        stats = self._stats()
        self._energy_uj = self._energy_so_far(stats)
        self._modelled_since_uj = stats.energy_uj
        self._book = None
        self._reading = Reading()
        self._shares.measure("")

    def _energy_so_far(self, stats: EngineStats) -> int:
        if self._book is not None:
            return self._energy_uj + self._book.measured_uj
        return self._energy_uj + max(0, stats.energy_uj - self._modelled_since_uj)

    def _recently_busy(self, stats: EngineStats) -> float:
        """The part of the last second or so that the engine has spent in steps."""
        now_s = self._clock.monotonic_s()
        self._recent.append((now_s, stats.busy_ns / 1e9))
        while len(self._recent) > 2 and now_s - self._recent[1][0] >= _BUSY_MEMORY_S:
            self._recent.pop(0)
        (since_s, before_s), (_, busy_s) = self._recent[0], self._recent[-1]
        if now_s <= since_s or busy_s < before_s:
            return 0.0
        return min(1.0, (busy_s - before_s) / (now_s - since_s))


class _BusyTime:
    """How long an engine has been busy, the step under way included."""

    def __init__(self) -> None:
        self._idle_seen_s = 0.0

    def so_far_s(self, stats: EngineStats, now_s: float, stepped_s: float) -> float:
        """`stepped_s`: when the last step ended. May guess too high until the step under way has ended."""
        under_way_s = 0.0
        if stats.running:
            under_way_s = max(0.0, now_s - max(stepped_s, self._idle_seen_s))
        else:
            self._idle_seen_s = now_s
        return stats.busy_ns / 1e9 + under_way_s
