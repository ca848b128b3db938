"""Token indexes that were generated, or delivered: a set of integers as disjoint half-open ranges. Pure.

Adding is a union, so it does not matter how often or in which order a range is reported.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator


class Ranges:
    """A set of indexes >= 0; `count` is its size. Adding at the end, the usual case, takes constant time."""

    __slots__ = ("_ends", "_starts", "count")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.count = 0
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Adds the indexes from `start` up to and without `end`."""
        assert 0 <= start <= end, (start, end)
        if start == end:
            return
        starts, ends = self._starts, self._ends
        if not ends or start > ends[-1]:
            starts.append(start)
            ends.append(end)
            self.count += end - start
            return
        if start == ends[-1]:
            ends[-1] = end
            self.count += end - start
            return
        # Every range from `first` up to and without `last` touches the new one and is merged into it.
        first = bisect_left(ends, start)
        last = first
        while last < len(starts) and starts[last] <= end:
            start, end = min(start, starts[last]), max(end, ends[last])
            self.count -= ends[last] - starts[last]
            last += 1
        starts[first:last], ends[first:last] = [start], [end]
        self.count += end - start

    def union(self, *others: "Ranges") -> "Ranges":
        """A new set with the indexes of all."""
        return Ranges(sorted(each for ranges in (self, *others) for each in ranges))

    def covers(self, other: "Ranges") -> bool:
        """Whether every index of `other` is in this set."""
        if not other.count:
            return True
        if len(self._starts) == 1:
            return self._starts[0] <= other._starts[0] and other._ends[-1] <= self._ends[0]
        return self.union(other).count == self.count

    @property
    def first(self) -> int:
        """The lowest index; 0 when there is none."""
        return self._starts[0] if self._starts else 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(start, end) of each range, ascending."""
        return zip(self._starts, self._ends, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Ranges({self})"

    def __str__(self) -> str:
        """The form that `parse` reads: `0-60,80-100`."""
        if len(self._starts) == 1:
            return f"{self._starts[0]}-{self._ends[0]}"
        return ",".join(f"{start}-{end}" for start, end in self)

    @classmethod
    def parse(cls, text: str) -> "Ranges":
        """The inverse of `str`."""
        ranges = cls()
        for part in text.split(",") if text else ():
            start, _, end = part.partition("-")
            ranges.add(int(start), int(end))
        return ranges
