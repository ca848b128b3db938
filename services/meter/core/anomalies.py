"""Hours in which far more was billed than is usual: found against their own history, by a robust seasonal score. Pure.

In: nano-dollars per hour. Out: what is ordinary for an hour, and whether another was out of the ordinary.

Amounts are compared as logarithms (spending varies by parts of itself), a small constant added so that quiet hours do
not count for much. What is usual is the median at that hour of the day; the spread is the median absolute difference to
the day before, so no single day shifts either. An hour is out of the ordinary when it is more than `SCORE` spreads
above what is usual, `ratio` times it, `least_nusd` more than it, and above what has come three times before. Where
nothing is usual, it is also so many spreads above what there was when there was something: work that runs now and then
is no anomaly. Only more is looked for; what an hour under way has spent can only grow, so it is
judged at any time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, median
from typing import Final, NamedTuple

DAY: Final = 24
LEAST_HOURS: Final = 3 * DAY  # of history, before an hour is judged
SCORE: Final = 6.0
_MAD_OF_NORMAL: Final = 1.4826
_LEAST_SPREAD: Final = 0.1  # a tenth of the amount
_QUIET: Final = 0.05  # of the mean, what is added to all
_COMES_AGAIN: Final = 3
_ABOVE_BEFORE: Final = 1.25
_MEDIAN_ERROR: Final = 1.57  # variance of a median over that of one sample, times their number


class Rules(NamedTuple):
    """ratio: times what is usual; least_nusd: more than it."""

    ratio: float
    least_nusd: float


class Ordinary(NamedTuple):
    """What an hour's amounts are held against, nano-dollars."""

    usual_nusd: float
    threshold_nusd: float
    spread: float  # of logarithms
    added_nusd: float
    hours: int

    def score(self, nusd: float) -> float:
        """How many spreads an amount is above what is usual."""
        return (log(nusd + self.added_nusd) - log(self.usual_nusd + self.added_nusd)) / self.spread


def ordinary(history: Sequence[float], rules: Rules) -> Ordinary | None:
    """What is ordinary for the hour that follows; None before there is history enough.

    Args:
        history: nano-dollars of whole hours without a gap, the oldest first, each >= 0.
    """
    hours = len(history)
    if hours < LEAST_HOURS:
        return None
    added = max(rules.least_nusd / 10, _QUIET * fmean(history), 1.0)
    logs = [log(nusd + added) for nusd in history]
    same_time = logs[hours % DAY :: DAY]
    differences = [abs(logs[index] - logs[index - DAY]) for index in range(DAY, hours)]
    spread = max(_LEAST_SPREAD, _MAD_OF_NORMAL * median(differences) / sqrt(2))
    spread *= sqrt(1 + _MEDIAN_ERROR / len(same_time))
    usual = median(same_time)
    usual_nusd = max(0.0, exp(usual) - added)
    threshold = max(
        exp(usual + SCORE * spread) - added,
        rules.ratio * usual_nusd,
        usual_nusd + rules.least_nusd,
        _ABOVE_BEFORE * sorted(history)[-_COMES_AGAIN],
        _above_what_comes(history) if usual_nusd < 1 else 0.0,
    )
    return Ordinary(usual_nusd, threshold, spread, added, hours)


def _above_what_comes(history: Sequence[float]) -> float:
    """`SCORE` spreads above what there was in the hours that had something; 0 where there were none."""
    logs = [log(nusd) for nusd in history if nusd]
    if not logs:
        return 0.0
    middle = median(logs)
    spread = max(_LEAST_SPREAD, _MAD_OF_NORMAL * median(abs(each - middle) for each in logs))
    return exp(middle + SCORE * spread)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """An hour out of the ordinary: its place in the series that was judged."""

    index: int
    spent_nusd: float
    ordinary: Ordinary


def anomalies(series: Sequence[float], first: int, rules: Rules, most_history: int = 28 * DAY) -> list[Anomaly]:
    """Those of the hours from `first` on that were out of the ordinary, each by the hours before it."""
    found = []
    for index in range(max(first, LEAST_HOURS), len(series)):
        if series[index] < rules.least_nusd:
            continue
        known = ordinary(series[max(0, index - most_history) : index], rules)
        if known is not None and series[index] > known.threshold_nusd:
            found.append(Anomaly(index, series[index], known))
    return found
