"""Which sequence numbers of a publisher were seen: tells a duplicate from a late arrival, and names the gaps.

Pure. A high-water mark alone would drop an event that was given back and came again after its successors; so the
numbers missing below the mark are kept beside it.

Numbers are told to others as ranges (`SequenceRange`): ascending, apart from each other. What others say is `merged`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from services.mesh.events import SequenceRange

Ranges = tuple[SequenceRange, ...]


@dataclass(slots=True)
class SeenSequences:
    """The numbers seen of one publisher in one epoch, counted from 1.

    Attributes:
        high_water: the highest number seen; 0 before the first.
        missing: numbers below `high_water` that were not seen.
    """

    high_water: int = 0
    missing: set[int] = field(default_factory=set)

    def add(self, sequence: int) -> bool:
        """Notes `sequence` (>= 1); True when it is new, False when it was seen before."""
        assert sequence >= 1, sequence
        if sequence > self.high_water:
            self.missing.update(range(self.high_water + 1, sequence))
            self.high_water = sequence
            return True
        if sequence in self.missing:
            self.missing.remove(sequence)
            return True
        return False

    def forget_missing_below(self, sequence: int) -> int:
        """Gives up on numbers below `sequence` that never came; returns how many. They count as seen from here on."""
        lost = {number for number in self.missing if number < sequence}
        self.missing -= lost
        return len(lost)


def ranges_of(numbers: Iterable[int]) -> Ranges:
    """The numbers as ranges."""
    return merged(SequenceRange(number, number) for number in set(numbers))


def merged(ranges: Iterable[SequenceRange]) -> Ranges:
    """Any ranges, in any order, as ascending ones that do not touch."""
    joined: list[SequenceRange] = []
    for each in sorted(ranges, key=lambda each: each.first):
        if joined and each.first <= joined[-1].last + 1:
            joined[-1] = SequenceRange(joined[-1].first, max(joined[-1].last, each.last))
        else:
            joined.append(each)
    return tuple(joined)


def count_of(ranges: Iterable[SequenceRange]) -> int:
    """How many numbers are in ranges that do not overlap."""
    return sum(each.count for each in ranges)


def common(some: Sequence[SequenceRange], others: Sequence[SequenceRange]) -> Ranges:
    """The numbers that are in both; both as `merged` gives them."""
    found: list[SequenceRange] = []
    at = 0
    for each in some:
        while at < len(others) and others[at].last < each.first:
            at += 1
        position = at
        while position < len(others) and others[position].first <= each.last:
            other = others[position]
            found.append(SequenceRange(max(each.first, other.first), min(each.last, other.last)))
            position += 1
    return tuple(found)


def without(some: Sequence[SequenceRange], others: Sequence[SequenceRange]) -> Ranges:
    """The numbers of `some` that are not in `others`; both as `merged` gives them."""
    left: list[SequenceRange] = []
    at = 0
    for each in some:
        first = each.first
        while at < len(others) and others[at].last < first:
            at += 1
        position = at
        while position < len(others) and others[position].first <= each.last:
            if others[position].first > first:
                left.append(SequenceRange(first, others[position].first - 1))
            first = others[position].last + 1
            position += 1
        if first <= each.last:
            left.append(SequenceRange(first, each.last))
    return tuple(left)
