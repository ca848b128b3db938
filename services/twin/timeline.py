"""Virtual time: what happens when, in order. Pure.

In: things to do, each at a second. Out: they are done in order of time; of one time, those of lower rank first, and
those of one rank in the order in which they were asked for, so that a run is the same every time.
"""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Final

LAST: Final = 1 << 30  # the rank of whatever has none of its own


class Timeline:
    """Runs what is due, one after the other.

    Attributes:
        now_s: virtual seconds since the start.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, int, Callable[[], None]]] = []
        self._order = count()
        self._stopped = False

    def at(self, when_s: float, action: Callable[[], None], rank: int = LAST) -> None:
        """Does `action` at `when_s`; at once after what is due now where that is past."""
        heapq.heappush(self._due, (max(when_s, self.now_s), rank, next(self._order), action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now_s + delay_s, LAST, next(self._order), action))

    def stop(self) -> None:
        """Nothing more is done."""
        self._stopped = True

    def run(self, until_s: float = float("inf")) -> None:
        """Does all that is due until `until_s`, which it is then; or until nothing is left, or it is stopped."""
        due = self._due
        while due and due[0][0] <= until_s and not self._stopped:
            self.now_s, _, _, action = heapq.heappop(due)
            action()
        if due and not self._stopped:
            self.now_s = until_s
