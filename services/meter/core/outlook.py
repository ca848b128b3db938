"""What comes: a forecast of amounts per step, with intervals, from their own history. Pure.

In: amounts of whole steps (hours or days), the oldest first. Out: an `Outlook`. Here is the plain method, which needs
no library and little history: each step is expected to be as that time of the day (or day of the week) was on average,
and errors are independent and normal, plus what is not known of the average. `forecaster.py` has a better one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean
from typing import Final, NamedTuple

SEASONAL: Final = "seasonal"
NONE: Final = "none"
_SEASONS: Final = 4  # that the average goes back
_TELLING: Final = 6  # steps; fewer say little of how amounts spread, which is then taken to be as much as they are


class Range(NamedTuple):
    """An amount that is expected, and the interval that it is to be in."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """A forecast.

    Attributes:
        because: why the method is not a better one; empty where there is none.
        steps: each step by itself.
        sums: from the first step up to each.
    """

    method: str
    because: str
    steps: Sequence[Range]
    sums: Sequence[Range]

    def total(self, steps: float) -> Range:
        """Of the first so many steps, the last maybe in part."""
        whole = min(int(steps), len(self.sums))
        done = self.sums[whole - 1] if whole else Range(0.0, 0.0, 0.0)
        if whole >= len(self.sums):
            return done
        part, after = steps - whole, self.sums[whole]
        return Range(*(here + part * (there - here) for here, there in zip(done, after, strict=True)))

    def steps_until(self, amount: float) -> tuple[float | None, float | None, float | None]:
        """Steps until the sum comes to an amount: as expected, at the soonest and at the latest; None: not in these."""
        expected, low, high = (_reached([each[bound] for each in self.sums], amount) for bound in range(3))
        return expected, high, low


def seasonal(history: Sequence[float], season: int, steps: int, level: float, because: str = "") -> Outlook:
    """The plain forecast.

    Args:
        season: steps after which it begins anew, >= 1; without two of them in the history, a flat average is used.
        level: of the interval, 0 to 1.
    """
    if not any(history):
        flat = [Range(0.0, 0.0, 0.0)] * steps
        return Outlook(NONE, "nothing was billed", flat, flat)
    known = list(history[-max(1, len(history) // season) * season :]) if len(history) >= 2 * season else list(history)
    known = known[-_SEASONS * season :]
    length = season if len(known) >= 2 * season else 1
    usual = [fmean(known[phase::length]) for phase in range(length)]
    errors = [amount - usual[index % length] for index, amount in enumerate(known)]
    freedom = max(1, len(known) - length)
    spread = sqrt(sum(error * error for error in errors) / freedom)
    if len(known) < _TELLING:
        spread = max(spread, fmean(known))
    z = NormalDist().inv_cdf((1 + level) / 2)
    per_phase = len(known) / length
    expected = [usual[(len(known) + index) % length] for index in range(steps)]
    sums, running = [], 0.0
    for index, amount in enumerate(expected, 1):
        running += amount
        # Each phase's average is not known better than its few samples tell; that error comes again each season.
        off = z * spread * sqrt(index * (1 + max(1.0, index / length) / per_phase))
        sums.append(Range(running, max(0.0, running - off), running + off))
    off = z * spread * sqrt(1 + 1 / per_phase)
    return Outlook(
        SEASONAL, because, [Range(each, max(0.0, each - off), each + off) for each in expected], _rising(sums)
    )


def of_paths(method: str, paths: Sequence[Sequence[float]], expected: Sequence[float], level: float) -> Outlook:
    """An outlook from what may come, each path as likely as the others; amounts below 0 count as 0."""
    tail = (1 - level) / 2
    steps, sums, running = [], [], 0.0
    totals = [0.0] * len(paths)
    for index, amount in enumerate(expected):
        here = sorted(max(0.0, path[index]) for path in paths)
        mean = max(0.0, amount)
        steps.append(Range(mean, min(mean, _at(here, tail)), max(mean, _at(here, 1 - tail))))
        running += mean
        totals = [total + max(0.0, path[index]) for total, path in zip(totals, paths, strict=True)]
        ordered = sorted(totals)
        sums.append(Range(running, min(running, _at(ordered, tail)), max(running, _at(ordered, 1 - tail))))
    return Outlook(method, "", steps, _rising(sums))


def _rising(sums: Sequence[Range]) -> list[Range]:
    """Sums of amounts that are not below 0 never fall, their bounds neither."""
    low, made = 0.0, []
    for each in sums:
        low = max(low, each.low)
        made.append(Range(each.expected, min(low, each.expected), each.high))
    return made


def _at(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


def _reached(sums: Sequence[float], amount: float) -> float | None:
    if amount <= 0:
        return 0.0
    before = 0.0
    for index, total in enumerate(sums):
        if total >= amount:
            return index + ((amount - before) / (total - before) if total > before else 0.0)
        before = total
    return None
