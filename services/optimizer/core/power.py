"""Watts of a worker, idle and loaded, from its heartbeats.

In: two heartbeats in a row. Out: the watts it draws when nothing runs and when it is busy all the time. Started from
the catalogue; a worker that reports no watts keeps those.
"""

from dataclasses import dataclass
from typing import Final

from services.mesh.events import WorkerHeartbeat

_GAIN: Final = 0.05  # per heartbeat: about five seconds at four a second
_BUSY_ENOUGH: Final = 0.3  # utilisation from which the loaded watts can be told from the idle ones
_IDLE_ENOUGH: Final = 0.02
_MOST_OF_START: Final = 3.0  # a figure beyond this many times the catalogue's is a broken sensor


@dataclass(slots=True)
class Power:
    """`idle_w` <= `loaded_w`, both >= 0."""

    idle_w: float
    loaded_w: float
    _most_w: float = 0.0

    def __post_init__(self) -> None:
        self._most_w = self.loaded_w * _MOST_OF_START

    def observe(self, before: WorkerHeartbeat, now: WorkerHeartbeat) -> None:
        """Learns from two heartbeats of one epoch; heartbeats without watts or out of order teach nothing."""
        passed_ms = now.at_unix_ms - before.at_unix_ms
        busy_ns = now.busy_ns - before.busy_ns
        if before.epoch != now.epoch or passed_ms <= 0 or busy_ns < 0 or not 0 < now.power_w <= self._most_w:
            return
        utilisation = min(1.0, busy_ns / (passed_ms * 1_000_000))
        if utilisation <= _IDLE_ENOUGH:
            self.idle_w += _GAIN * (now.power_w - self.idle_w)
            self.loaded_w = max(self.loaded_w, self.idle_w)
        elif utilisation >= _BUSY_ENOUGH:
            loaded_w = self.idle_w + max(0.0, now.power_w - self.idle_w) / utilisation
            self.loaded_w += _GAIN * (min(loaded_w, self._most_w) - self.loaded_w)
