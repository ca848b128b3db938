"""Sums and rates that forget: what came in counts less the older it is, by exp(-age / time constant).

In: amounts with the second they came at (one monotonic clock). Out: the decayed sum, or events per second.
"""

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class DecayedSum:
    """The sum of amounts, each worth exp(-age / time_constant_s) of itself.

    Attributes:
        time_constant_s: > 0.
    """

    time_constant_s: float
    _value: float = 0.0
    _at_s: float = -math.inf

    def add(self, amount: float, now_s: float) -> None:
        self._value = self.at(now_s) + amount
        self._at_s = max(now_s, self._at_s)

    def at(self, now_s: float) -> float:
        """The sum as of `now_s`; a clock that went back decays nothing."""
        if self._value == 0.0:
            return 0.0
        age_s = now_s - self._at_s
        return self._value * math.exp(-age_s / self.time_constant_s) if age_s > 0.0 else self._value


@dataclass(slots=True)
class DecayedRate:
    """Amount per second, exponentially weighted over `time_constant_s`.

    Attributes:
        started_s: when counting began: a short history is divided by its own length, not by the whole window.
    """

    time_constant_s: float
    started_s: float
    _sum: DecayedSum = field(init=False)

    def __post_init__(self) -> None:
        self._sum = DecayedSum(self.time_constant_s)

    def add(self, amount: float, now_s: float) -> None:
        self._sum.add(amount, now_s)

    def per_s(self, now_s: float) -> float:
        """>= 0; a history below a second counts as one of a second."""
        history_s = max(1.0, now_s - self.started_s)
        covered = 1.0 - math.exp(-history_s / self.time_constant_s)
        return self._sum.at(now_s) / (self.time_constant_s * covered)
