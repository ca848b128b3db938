"""The usual pace of something, and whether it runs away from it. Pure.

In: amounts per bucket of time. Out: the pace that would be out of the ordinary, from a mean and a spread that forget.

Only buckets in which something happened count: a workload that sleeps all night has the pace of its days. While a pace
is out of the ordinary, its mean only drifts towards the threshold, so that a runaway does not become its own usual pace
in a moment, and a lasting change does in the end.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Final

LEAST_BUCKETS: Final = 12  # of its own, before a pace says what is usual
_FORGET: Final = 1 / 180  # weight of the newest bucket; half of what is known comes from the last 125
_SPREADS: Final = 6.0


@dataclass(slots=True)
class Pace:
    """A mean and a variance of amounts per active bucket, with forgetting: Welford's update, exponentially weighted."""

    buckets: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @property
    def known(self) -> bool:
        return self.buckets >= LEAST_BUCKETS

    def threshold(self, ratio: float, floor: float) -> float:
        """What is above this is out of the ordinary.

        Args:
            ratio: times the mean, > 1.
            floor: what is below this never is.
        """
        return max(floor, ratio * self.mean, self.mean + _SPREADS * sqrt(self.variance))

    def learn(self, amount: float) -> None:
        """Takes one more active bucket."""
        self.buckets += 1
        weight = max(_FORGET, 1 / self.buckets)
        step = amount - self.mean
        self.mean += weight * step
        self.variance = (1 - weight) * (self.variance + weight * step * step)

    def drift(self, threshold: float) -> None:
        """Takes a bucket that was out of the ordinary: the mean moves a little towards `threshold`."""
        self.buckets += 1
        self.mean += _FORGET * (threshold - self.mean)
