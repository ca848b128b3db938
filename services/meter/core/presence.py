"""What workers are paid for: the time in which they were there, whether they worked or not, by their heartbeats. Pure.

A start of a worker (its epoch) is there from its first heartbeat to its latest; what lies between two heartbeats
counts, however long it is, up to a month: the same process was there before and after. Beyond that its host's clock was
set, and it counts anew from there. A worker that dies stops being paid for with
its last heartbeat, up to a quarter of a second early. Until it is ready, it warms up. Energy between two heartbeats is
spread over the time between them.

In: heartbeats. Out: what each start was paid for in each hour, cumulative, to be stored over what was stored before;
and taken over again when the meter starts anew, so that a meter's own absence costs nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

MS_PER_HOUR: Final = 3_600_000
NS_PER_MS: Final = 1_000_000
_LONGEST_GAP_MS: Final = 31 * 24 * MS_PER_HOUR
_MOST_UJ_PER_MS: Final = 10**9  # a megawatt: no worker draws it
_MOST_UNHEARD_UJ: Final = 10**17  # before the first heartbeat that is heard
_MOST_COUNTED_UJ: Final = 1 << 62


class Start(NamedTuple):
    """One start of a worker's process."""

    worker: str
    epoch: str


@dataclass(slots=True)
class WorkerHour:
    """What one start of a worker was paid for in an hour since 1970.

    Attributes:
        warm_up_ns: of `paid_ns`, before it was ready.
        heard_unix_ms, heard_energy_uj: its latest heartbeat.
    """

    hour: int
    start: Start
    pool: str
    accelerator: str
    paid_ns: int = 0
    warm_up_ns: int = 0
    energy_uj: int = 0
    heard_unix_ms: int = 0
    heard_energy_uj: int = 0


class Presence:
    """The starts of workers that were heard of. Lives in the event loop."""

    def __init__(self, kept: int = 4096) -> None:
        self._kept = kept
        self._latest: dict[Start, WorkerHour] = {}
        self._changed: dict[tuple[int, Start], WorkerHour] = {}

    def restore(self, stored: Iterable[WorkerHour]) -> None:
        """Takes over the latest hour of each start that is stored."""
        for each in stored:
            known = self._latest.get(each.start)
            if known is None or known.hour < each.hour:
                self._latest[each.start] = each

    def beat(
        self, start: Start, pool: str, accelerator: str, *, warming_up: bool, at_unix_ms: int, energy_uj: int
    ) -> None:
        """Takes a heartbeat in; one that is older than the last changes nothing.

        Args:
            warming_up: it is not ready to serve yet.
            energy_uj: since the start.
        """
        latest = self._latest.get(start)
        if latest is None:
            hour = at_unix_ms // MS_PER_HOUR
            latest = WorkerHour(hour, start, pool, accelerator, heard_unix_ms=at_unix_ms)
            self._latest[start] = latest
            while len(self._latest) > self._kept:
                del self._latest[min(self._latest, key=lambda each: self._latest[each].heard_unix_ms)]
        elif at_unix_ms <= latest.heard_unix_ms:
            return
        elif at_unix_ms - latest.heard_unix_ms > _LONGEST_GAP_MS:
            hour = at_unix_ms // MS_PER_HOUR
            latest = self._latest[start] = WorkerHour(
                hour, start, pool, accelerator, heard_unix_ms=at_unix_ms, heard_energy_uj=latest.heard_energy_uj
            )
        span_ms = at_unix_ms - latest.heard_unix_ms
        spent_uj = max(0, energy_uj - latest.heard_energy_uj)
        if spent_uj > (_MOST_UJ_PER_MS * span_ms if span_ms else _MOST_UNHEARD_UJ):  # a counter that jumped
            latest.heard_energy_uj, spent_uj = min(energy_uj, _MOST_COUNTED_UJ), 0
            energy_uj = latest.heard_energy_uj
        done_ms = done_uj = 0
        while True:
            end_ms = min(at_unix_ms, (latest.hour + 1) * MS_PER_HOUR)
            part_ms = end_ms - latest.heard_unix_ms
            done_ms += part_ms
            reached_uj = spent_uj * done_ms // span_ms if span_ms else spent_uj
            latest.paid_ns += part_ms * NS_PER_MS
            latest.warm_up_ns += part_ms * NS_PER_MS if warming_up else 0
            latest.energy_uj += reached_uj - done_uj
            latest.heard_energy_uj += reached_uj - done_uj
            latest.heard_unix_ms = end_ms
            done_uj = reached_uj
            self._changed[latest.hour, start] = latest
            if end_ms == at_unix_ms and end_ms < (latest.hour + 1) * MS_PER_HOUR:
                latest.heard_energy_uj = max(energy_uj, latest.heard_energy_uj)
                return
            latest = self._latest[start] = WorkerHour(
                latest.hour + 1,
                start,
                pool,
                accelerator,
                heard_unix_ms=end_ms,
                heard_energy_uj=latest.heard_energy_uj,
            )

    def take_changed(self) -> list[WorkerHour]:
        """What changed since the last call, to be stored over what was stored of it."""
        changed, self._changed = list(self._changed.values()), {}
        return changed
