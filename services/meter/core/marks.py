"""Which events of every publisher were booked: tells duplicates, counts gaps. Pure.

In: event ids as they arrive, and marks as they were stored. Out: whether an event is new, and the marks to store with
its effect. Of each publisher the last `WINDOW` numbers below its mark are kept apart when missing, because an event
that was given back comes again after its successors. What is missing for longer is given up and counted as lost: a
consumer has fewer events than that under way, so it cannot come any more.
"""

from collections.abc import Iterable
from typing import Final

from services.mesh.bus import EventId
from services.mesh.sequences import SeenSequences

WINDOW: Final = 4096

Source = tuple[str, str]  # publisher, epoch


class Marks:
    """The marks of all publishers.

    Attributes:
        lost: events given up since the process started.
    """

    def __init__(self, stored: Iterable[tuple[Source, SeenSequences]] = ()) -> None:
        self._seen: dict[Source, SeenSequences] = dict(stored)
        self._changed: set[Source] = set()
        self.lost = 0

    def admit(self, event: EventId) -> bool:
        """Notes an event; False when it was noted before (or given up)."""
        source = (event.publisher, event.epoch)
        seen = self._seen.get(source)
        if seen is None:
            seen = self._seen[source] = SeenSequences()
        floor = event.sequence - WINDOW
        if floor > seen.high_water:
            self.lost += len(seen.missing) + floor - seen.high_water
            seen.missing, seen.high_water = set(), floor
        if not seen.add(event.sequence):
            return False
        self._changed.add(source)
        return True

    def take_changed(self) -> list[tuple[Source, SeenSequences]]:
        """The marks to store, which then count as stored."""
        changed = [(source, self._seen[source]) for source in sorted(self._changed)]
        self._changed.clear()
        for _, seen in changed:
            if seen.missing:
                self.lost += seen.forget_missing_below(seen.high_water - WINDOW)
        return changed

    def missing(self) -> dict[Source, int]:
        """Publishers with gaps, and how many events each lacks."""
        return {source: len(seen.missing) for source, seen in self._seen.items() if seen.missing}
