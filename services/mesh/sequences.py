"""Which sequence numbers of a publisher were seen: tells a duplicate from a late arrival, and names the gaps.

Pure. A high-water mark alone would drop an event that was given back and came again after its successors; so the
numbers missing below the mark are kept beside it.
"""

from dataclasses import dataclass, field


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
