"""Whether an answer goes round in circles: its end is one piece, said again and again. Pure.

In: a stream's token ids as they are made (characters, where an engine reports no ids). Out: a `Loop`, once its end is
periodic for long enough.

A string reversed has a prefix of length L with period p = L - f(L), where f is its prefix function (Knuth, Morris and
Pratt, 1977); so one pass over the reversed tail gives the shortest period of every ending of the stream. That pass is
made once in `_LOOK_EVERY` units, over at most `_TAIL`, and only where the last units were said before: what a token
costs is appending it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LOOK_EVERY: Final = 128
_TAIL: Final = 1024
_LAST: Final = 16


@dataclass(frozen=True, slots=True)
class Loop:
    """The end of a stream is `period` units, `repeats` times, as far back as was looked."""

    period: int
    repeats: int


def loop_at_end(units: Sequence[int], *, least_repeats: int, least_units: int) -> Loop | None:
    """The loop that covers most of the end of `units`; None where nothing repeats so long.

    Args:
        least_repeats: of one piece, >= 2.
        least_units: that the repeats must cover together.
    """
    reverse = units[::-1]
    if not _recurs(reverse, least_repeats, least_units):
        return None
    longest: Loop | None = None
    covered = 0
    prefix = [0] * len(units)
    match = 0
    for at in range(1, len(reverse)):
        unit = reverse[at]
        while match and unit != reverse[match]:
            match = prefix[match - 1]
        if unit == reverse[match]:
            match += 1
        prefix[at] = match
        length = at + 1
        period = length - match
        if length >= least_units and length >= least_repeats * period and length > covered:
            longest, covered = Loop(period, length // period), length
    return longest


def _recurs(reverse: Sequence[int], least_repeats: int, least_units: int) -> bool:
    """Whether the last units were said before where a loop would say them: else there is none, and that is quick."""
    furthest = len(reverse) // least_repeats  # the longest period that could repeat often enough
    last = reverse[: min(_LAST, least_units - least_units // least_repeats)]
    at = 0
    while True:
        try:
            at = reverse.index(reverse[0], at + 1, furthest + 1)
        except (ValueError, IndexError):
            return False
        if reverse[at : at + len(last)] == last:
            return True


class Repetition:
    """Watches one stream.

    Attributes:
        loop: the one it was in when it was last looked at; None while it goes forward.
        in_characters: the engine reports no token ids, so characters are counted.
    """

    def __init__(self, *, least_repeats: int, least_units: int) -> None:
        self.loop: Loop | None = None
        self.in_characters = False
        self._least_repeats = least_repeats
        self._least_units = least_units
        self._tail: list[int] = []
        self._unseen = 0

    def add(self, token_ids: Sequence[int], text: str) -> bool:
        """Takes what one step made; whether it was looked at again, so that `loop` is news."""
        if token_ids:
            self._tail += token_ids
            self._unseen += len(token_ids)
        else:
            self.in_characters = True
            self._tail += map(ord, text)
            self._unseen += len(text)
        if self._unseen < _LOOK_EVERY:
            return False
        self._unseen = 0
        del self._tail[:-_TAIL]
        self.loop = loop_at_end(self._tail, least_repeats=self._least_repeats, least_units=self._least_units)
        return True
