"""How long to wait before something that failed is started again: longer each time, up to a bound. Pure.

In: how long it was well before it failed, and a random draw. Out: a pause, or that it has failed too often.
"""


class Backoff:
    """Counts failures in a row; a failure after a settled time is the first of a new row.

    Pauses double from one failure to the next. Each is drawn from the upper half of what it may be, so that many that
    failed together (workers whose server went away) do not all come back together.
    """

    def __init__(self, first_s: float, longest_s: float, most: int, settled_s: float) -> None:
        """
        Args:
            first_s, longest_s: > 0, the first pause and the longest.
            most: >= 0, starts in a row; no pause is given after them.
            settled_s: >= 0, whoever was well for this long has nothing counted against it.
        """
        self._first_s = first_s
        self._longest_s = longest_s
        self._most = most
        self._settled_s = settled_s
        self._in_a_row = 0

    def pause_s(self, well_s: float, draw: float) -> float | None:
        """The pause before the next start; None when `most` starts in a row have failed.

        Args:
            well_s: how long it was well before this failure; 0 where it never was.
            draw: from 0 to 1, random.
        """
        if well_s > 0.0 and well_s >= self._settled_s:
            self._in_a_row = 0
        if self._in_a_row >= self._most:
            return None
        # The exponent is bounded as well, so that a long row does not overflow.
        longest_s = min(self._longest_s, self._first_s * 2.0 ** min(self._in_a_row, 64))
        self._in_a_row += 1
        return longest_s * (0.5 + 0.5 * draw)
