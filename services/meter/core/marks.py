"""Which events of every publisher were booked: tells duplicates, counts gaps. Pure.

In: event ids as they arrive, and marks as they were stored. Out: whether an event is new, and the marks to store with
its effect. At hand are the marks used latest; those of publishers that are long gone stay stored, and are asked for
(`absent`) when one of theirs comes after all. Of each publisher the last `WINDOW` numbers below its mark are kept apart
when missing, because an event that was given back comes again after its successors. What is missing for longer is given
up and counted as lost: a consumer has fewer events than that under way, so it cannot come any more.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.mesh.bus import EventId
from services.mesh.sequences import Ranges, SeenSequences, ranges_of

WINDOW: Final = 4096
UNKNOWN: Final = -1
MOST_AT_HAND: Final = 8192
MOST_MISSING: Final = 1 << 18  # numbers, of all publishers together: who begins late lacks a whole window

Source = tuple[str, str]  # publisher, epoch


@dataclass(slots=True)
class Mark(SeenSequences):
    """What was booked of one publisher in one epoch.

    Attributes:
        tokens: in the entries of its events; `UNKNOWN` where some were booked before this was counted.
    """

    tokens: int = 0


class Marks:
    """The marks of publishers, by when they were used last.

    Attributes:
        lost: events given up since the process started.
    """

    def __init__(self, stored: Iterable[tuple[Source, Mark]] = ()) -> None:
        self._marks: OrderedDict[Source, Mark] = OrderedDict(stored)
        self._changed: set[Source] = set()
        self._missing = sum(len(mark.missing) for mark in self._marks.values())
        self.lost = 0

    def absent(self, sources: Iterable[Source]) -> list[Source]:
        """Those of the publishers whose marks are not at hand: load them, and `adopt` what is stored of them."""
        return [source for source in dict.fromkeys(sources) if source not in self._marks]

    def adopt(self, stored: Iterable[tuple[Source, Mark]]) -> None:
        """Takes over stored marks."""
        for source, mark in stored:
            before = self._marks.get(source)
            self._missing += len(mark.missing) - (len(before.missing) if before else 0)
            self._marks[source] = mark

    def admit(self, event: EventId) -> bool:
        """Notes an event; False when it was noted before (or given up).

        A publisher without a mark at hand is a new one.
        """
        source = (event.publisher, event.epoch)
        mark = self._marks.get(source)
        if mark is None:
            mark = self._marks[source] = Mark()
        self._marks.move_to_end(source)
        floor, missing = event.sequence - WINDOW, len(mark.missing)
        if floor > mark.high_water:
            self.lost += len(mark.missing) + floor - mark.high_water
            mark.missing, mark.high_water = set(), floor
        new = mark.add(event.sequence)
        self._missing += len(mark.missing) - missing
        if not new:
            return False
        self._changed.add(source)
        return True

    def count(self, event: EventId, tokens: int) -> None:
        """Adds up the tokens in an event that was admitted."""
        mark = self._marks[event.publisher, event.epoch]
        if mark.tokens != UNKNOWN:
            mark.tokens += tokens

    def release(self, most: int = MOST_AT_HAND, most_missing: int = MOST_MISSING) -> None:
        """Lets go of the marks that were used longest ago, beyond `most`, or beyond `most_missing` numbers. What such a
        publisher lacks is given up, but booked if it comes after all: its mark is stored as it is."""
        assert not self._changed, "store what has changed first"
        while len(self._marks) > most or self._missing > most_missing:
            _, mark = self._marks.popitem(last=False)
            self._missing -= len(mark.missing)
            self.lost += len(mark.missing)

    def noted(self, event: EventId) -> bool:
        """Whether the event was booked, or given up: it will not be booked any more."""
        mark = self._marks.get((event.publisher, event.epoch))
        return mark is not None and event.sequence <= mark.high_water and event.sequence not in mark.missing

    def take_changed(self) -> list[tuple[Source, Mark]]:
        """The marks to store, which then count as stored."""
        changed = [(source, self._marks[source]) for source in sorted(self._changed)]
        self._changed.clear()
        for _, mark in changed:
            if mark.missing:
                given_up = mark.forget_missing_below(mark.high_water - WINDOW)
                self.lost += given_up
                self._missing -= given_up
        return changed

    def missing(self) -> dict[Source, int]:
        """Publishers with gaps, and how many events each lacks."""
        return {source: len(mark.missing) for source, mark in self._marks.items() if mark.missing}

    def gaps(self) -> dict[Source, Ranges]:
        """Publishers with gaps, and the numbers each lacks."""
        return {source: ranges_of(mark.missing) for source, mark in self._marks.items() if mark.missing}

    def tokens(self) -> dict[Source, int]:
        """Tokens in the booked events of each publisher that made any; `UNKNOWN` where that is not known."""
        return {source: mark.tokens for source, mark in self._marks.items() if mark.tokens}

    def high_water(self, source: Source) -> int:
        """The highest number seen of a publisher; 0 where none was."""
        mark = self._marks.get(source)
        return mark.high_water if mark else 0
