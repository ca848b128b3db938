"""What demand will be when something that is started now is ready.

In: requests per second with the second they were seen at (Unix time, for the hour of the day). Out: the rate to
expect a while ahead. Level and trend are Holt's (double exponential smoothing); beside them a profile of the day is
kept, in quarters of an hour, which says how much more or less is usual then than now. The higher of the two is
believed: too many for a few minutes cost little, too few break promises.

Source: C. C. Holt, "Forecasting seasonals and trends by exponentially weighted moving averages", 1957.
"""

import math
from dataclasses import dataclass, field
from typing import Final

_LEVEL_S: Final = 60.0  # time constants
_TREND_S: Final = 600.0
_DAY_S: Final = 86_400
_BINS: Final = 96
_NEW_DAY: Final = 0.5  # weight of a day in the profile beside those before
_MOST_TIMES: Final = 4.0  # by which a profile may raise what is there


@dataclass(slots=True)
class Forecast:
    """One rate's."""

    _level: float = 0.0
    _trend: float = 0.0  # per second
    _seen_s: float = -math.inf
    _profile: list[float] = field(default_factory=lambda: [-1.0] * _BINS)
    _bin: int = -1
    _sum: float = 0.0
    _count: int = 0

    def see(self, rps: float, now_s: float) -> None:
        """Folds the rate of now; `now_s` grows."""
        passed_s = now_s - self._seen_s
        if not passed_s > 0:
            return
        if math.isinf(passed_s):
            self._level = rps
        else:
            expected = self._level + self._trend * passed_s
            level = expected + (1 - math.exp(-passed_s / _LEVEL_S)) * (rps - expected)
            gain = 1 - math.exp(-passed_s / _TREND_S)
            self._trend += gain * ((level - self._level) / passed_s - self._trend)
            self._level = level
        self._seen_s = now_s
        self._note(rps, now_s)

    def at(self, ahead_s: float) -> float:
        """Requests per second to expect `ahead_s` seconds after the last was seen; >= 0."""
        if math.isinf(self._seen_s):
            return 0.0
        by_trend = self._level + self._trend * ahead_s
        usual_now, usual_then = self._usual(self._seen_s), self._usual(self._seen_s + ahead_s)
        if usual_now > 0 and usual_then >= 0:
            by_day = self._level * min(_MOST_TIMES, usual_then / usual_now)
            return max(0.0, by_trend, by_day)
        return max(0.0, by_trend)

    def most(self, ahead_s: float) -> float:
        """The highest to expect from now until then."""
        return max(self.at(ahead_s * part / 4) for part in range(5))

    def _note(self, rps: float, now_s: float) -> None:
        found = _bin_of(now_s)
        if found != self._bin:
            if self._count:
                mean, before = self._sum / self._count, self._profile[self._bin]
                self._profile[self._bin] = mean if before < 0 else before + _NEW_DAY * (mean - before)
            self._bin, self._sum, self._count = found, 0.0, 0
        self._sum += rps
        self._count += 1

    def _usual(self, at_s: float) -> float:
        """By the profile, between the middles of two bins; below 0 where a day has not shown it."""
        place = at_s % _DAY_S / _DAY_S * _BINS - 0.5
        first = math.floor(place)
        one, other = self._profile[first % _BINS], self._profile[(first + 1) % _BINS]
        return one + (other - one) * (place - first) if min(one, other) >= 0 else -1.0


def _bin_of(at_s: float) -> int:
    return int(at_s % _DAY_S / _DAY_S * _BINS)
