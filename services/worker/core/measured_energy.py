"""Measured energy, split between those who had work done and the house. Pure.

In: readings of a device, with how long its engine has been busy. Out: microjoules to share among the requests, and
microjoules of idling. To the microjoule, what was measured = what was given to requests + what idled + what waits to
be shared.

A window lies between two readings. What idling takes of it is the device's idle watts for the part of the window in
which the engine had nothing to do, and never more than the window's mean watts; the rest is work. Idle watts are those
of the last windows without work, and the catalogue's until there was one. Energy of work waits until steps end that it
can be shared among: a step may be longer than a window.
"""

from dataclasses import dataclass
from typing import Final

from services.worker.core.devices import Reading

_IDLE_GAIN: Final = 0.2  # of the newest window without work in the mean
_NO_WORK: Final = 0.01  # the busy part of a window below which its watts are idle ones


@dataclass(frozen=True, slots=True)
class _Seen:
    at_s: float
    busy_s: float
    power_w: float | None
    energy_uj: int | None


class MeasuredEnergy:
    """The energy of one worker's devices, since the first reading.

    Attributes:
        measured_uj: in all.
        idle_uj: the house's part.
        waiting_uj: of work, not taken yet.
        idle_w: watts without work.
    """

    def __init__(self, idle_w: float) -> None:
        """`idle_w`: the catalogue's, >= 0."""
        self.measured_uj = 0
        self.idle_uj = 0
        self.waiting_uj = 0
        self.idle_w = idle_w
        self._last: _Seen | None = None

    def read(self, now_s: float, reading: Reading, busy_s: float) -> None:
        """Takes a reading.

        Args:
            now_s: of a clock that never goes back.
            reading: of all the devices together; has watts, or a counter, or both. The counter is what counts where
                both readings of a window have it; otherwise the mean of the watts at its two ends.
            busy_s: how long the engine has worked, steps under way included. May fall behind itself when a guess about
                a step under way was too high: the windows that follow make up for it.
        """
        before, now = self._last, _Seen(now_s, busy_s, reading.power_w, reading.energy_uj)
        if before is None:
            self._last = now
            return
        window_s = now_s - before.at_s
        energy_uj = _energy_uj(before, now, window_s)
        if energy_uj is None or window_s <= 0.0:
            return
        # What lies beyond the window is left to the next one, so that busy time adds up.
        worked_s = min(max(0.0, busy_s - before.busy_s), window_s)
        self._last = _Seen(now_s, before.busy_s + worked_s, now.power_w, now.energy_uj)
        idle_s = window_s - worked_s
        if worked_s <= _NO_WORK * window_s and busy_s >= before.busy_s:
            self.idle_w += _IDLE_GAIN * (energy_uj / 1e6 / window_s - self.idle_w)
        idle_uj = min(round(self.idle_w * idle_s * 1e6), int(energy_uj * idle_s / window_s), energy_uj)
        self.measured_uj += energy_uj
        self.idle_uj += idle_uj
        self.waiting_uj += energy_uj - idle_uj

    def take(self) -> int:
        """The energy of work, handed over to be shared."""
        taken, self.waiting_uj = self.waiting_uj, 0
        return taken

    def give_up(self) -> None:
        """Nobody is left to share the energy of work among: it is the house's."""
        self.idle_uj += self.take()


def _energy_uj(before: _Seen, now: _Seen, window_s: float) -> int | None:
    """Energy of the window; None when the two readings do not tell."""
    if before.energy_uj is not None and now.energy_uj is not None:
        # A counter that went back was reset, with its driver: what it shows is the least that was used since.
        return now.energy_uj - before.energy_uj if now.energy_uj >= before.energy_uj else now.energy_uj
    if before.power_w is None or now.power_w is None:
        return None
    return round((before.power_w + now.power_w) / 2 * window_s * 1e6)
