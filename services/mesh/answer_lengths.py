"""How long answers of one kind are: a distribution that is learnt online, forgets, and begins anew when it has changed.

Routers tell by it how long an answer may be, and what is left of one that goes on.

In: the tokens of answers that ended by themselves, one after the other. Out: expectations under a bound or from a token
on, and quantiles with the interval that the number of answers leaves open. Lengths are counted in buckets, each 1.2
times as wide as the one before, as sums that fade: an answer counts for half after about 140 more.

Drift: the mean of the logarithms of the last 16 answers is held against that of all. Where they differ by more than
4.5 of its standard errors, what is known is of another time: those of the last 16 remain that came since. By chance
that happens once in some hundred thousand answers.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log, sqrt
from typing import Final

_WIDER: Final = 1.2
_LONGEST: Final = 1 << 21  # tokens; longer counts as that
_FADES: Final = 1.0 - 1.0 / 200.0  # with each further answer
_RECENT: Final = 16
_CHANGED: Final = 4.5  # standard errors
_LEAST_LOG_SD: Final = 0.05  # answers that are all alike still differ by so much, or one odd one would be a change
_SUMMED_EVERY: Final = (8, 32)  # answers: where there are few yet, and later
_FEW: Final = 64
_LARGEST: Final = 1e100  # of weights, before they are scaled down


def _edges() -> tuple[float, ...]:
    edges = [0.5 + each for each in range(1, 9)]
    while edges[-1] < _LONGEST:
        edges.append(edges[-1] * _WIDER)
    return tuple(edges)


_EDGES: Final = _edges()  # upper ends of buckets; the first eight lengths have one each


@dataclass(frozen=True, slots=True)
class Quantile:
    """A length, and the interval that holds the true one in nine of ten cases, all in tokens."""

    tokens: float
    least: float
    most: float


class Lengths:
    """A distribution as it was at a moment; not to be changed.

    Attributes:
        answers: how many it rests on, those of wider kinds not counted; fades.
        mean: tokens.
    """

    __slots__ = ("_above", "_counts", "_sums", "_tokens", "answers", "mean")

    def __init__(self, tokens: Sequence[float], counts: Sequence[float], answers: float) -> None:
        """
        Args:
            tokens: mean lengths of parts of the answers, ascending, > 0.
            counts: their weights, > 0; as many.
        """
        self._tokens = tuple(tokens)
        self._counts = tuple(accumulate(counts))
        self._sums = tuple(accumulate(count * each for count, each in zip(counts, tokens, strict=True)))
        self.answers = answers
        self.mean = self._sums[-1] / self._counts[-1]

    def parts(self) -> list[tuple[float, float]]:
        """Lengths, ascending, each with the part of the answers that have about it; the parts add up to 1."""
        total = self._counts[-1]
        begins = (0.0, *self._counts)
        return [
            (tokens, (until - begin) / total)
            for tokens, begin, until in zip(self._tokens, begins, self._counts, strict=False)
        ]

    def mean_within(self, most: int) -> float:
        """The mean of answers that are cut off at `most` tokens."""
        place = bisect_right(self._tokens, most)
        if place == len(self._tokens):
            return self.mean
        below, tokens = (self._counts[place - 1], self._sums[place - 1]) if place else (0.0, 0.0)
        total = self._counts[-1]
        return (tokens + most * (total - below)) / total

    def mean_left(self, made: int) -> float:
        """Tokens still to come, on average, of an answer that has `made` and goes on; >= 1."""
        place = bisect_right(self._tokens, made)
        if place == len(self._tokens):
            return 1.0
        below, tokens = (self._counts[place - 1], self._sums[place - 1]) if place else (0.0, 0.0)
        return max(1.0, (self._sums[-1] - tokens) / (self._counts[-1] - below) - made)

    def quantile(self, part: float) -> Quantile:
        """The length that `part` (0 to 1) of the answers do not pass."""
        # Of n answers, between k - 1.64 s and k + 1.64 s are no longer than it, s being the binomial's deviation.
        off = 1.645 * sqrt(part * (1.0 - part) / max(1.0, self.answers))
        return Quantile(self._at(part), self._at(part - off), self._at(part + off))

    def _at(self, part: float) -> float:
        total = self._counts[-1]
        place = bisect_left(self._counts, min(max(part, 0.0), 1.0) * total)
        return self._tokens[min(place, len(self._tokens) - 1)]


class AnswerLengths:
    """Learns one kind's.

    Attributes:
        drifts: how often it began anew.
    """

    __slots__ = (
        "_counts",
        "_logs",
        "_recent",
        "_recent_logs",
        "_seen",
        "_squares",
        "_sums",
        "_total",
        "_weight",
        "drifts",
    )

    def __init__(self) -> None:
        self.drifts = 0
        self._recent: deque[int] = deque()
        self._recent_logs = 0.0
        self._begin()

    def _begin(self) -> None:
        self._counts: dict[int, float] = {}  # by bucket; so are the tokens
        self._sums: dict[int, float] = {}
        self._total = self._logs = self._squares = 0.0
        self._weight = 1.0  # of the next answer: it grows, rather than all that was fade
        self._seen = 0

    @property
    def recent(self) -> tuple[int, ...]:
        """The last answers, at most 16; after a drift, all that is known."""
        return tuple(self._recent)

    @property
    def answers(self) -> float:
        """How many it rests on; those long ago count less."""
        return self._total / self._weight if self._total else 0.0

    def add(self, tokens: int) -> bool:
        """Folds one answer in; whether the next `lengths` is worth working out."""
        tokens = min(max(1, tokens), _LONGEST)
        self._recent.append(tokens)
        self._recent_logs += log(tokens)
        if len(self._recent) > _RECENT:
            self._recent_logs -= log(self._recent.popleft())
        self._fold(tokens)
        if self._seen >= 2 * _RECENT and self._drifted():
            self._begin_anew()
            return True
        every = _SUMMED_EVERY[self._seen > _FEW]
        return self._seen <= _SUMMED_EVERY[0] or not self._seen % every

    def lengths(self, wider: Lengths | None, wider_answers: float) -> Lengths:
        """As it is now, at least one answer being in it.

        Args:
            wider: of a wider kind, that counts for `wider_answers` beside at first, and for less with each answer.
        """
        parts = {
            self._sums[bucket] / count: count / self._weight for bucket, count in self._counts.items() if count > 0.0
        }
        if wider is not None:
            scale = wider_answers * _FADES**self._seen
            for each, part in wider.parts():
                parts[each] = parts.get(each, 0.0) + part * scale
        tokens = sorted(parts)
        return Lengths(tokens, [parts[each] for each in tokens], self.answers)

    def _fold(self, tokens: int) -> None:
        self._weight /= _FADES
        weight, bucket, size = self._weight, bisect_left(_EDGES, tokens), log(tokens)
        self._counts[bucket] = self._counts.get(bucket, 0.0) + weight
        self._sums[bucket] = self._sums.get(bucket, 0.0) + weight * tokens
        self._total += weight
        self._logs += weight * size
        self._squares += weight * size * size
        self._seen += 1
        if weight > _LARGEST:
            self._scale_down()

    def _drifted(self) -> bool:
        mean = self._logs / self._total
        sd = max(_LEAST_LOG_SD, sqrt(max(0.0, self._squares / self._total - mean * mean)))
        return abs(self._recent_logs / len(self._recent) - mean) > _CHANGED * sd / sqrt(_RECENT)

    def _begin_anew(self) -> None:
        """With those of the last answers that are the most unlike what was: from the likeliest moment of the change."""
        mean, sizes = self._logs / self._total, [log(each) for each in self._recent]
        since = list(accumulate(size - mean for size in reversed(sizes)))
        kept = max(range(1, len(since) + 1), key=lambda count: abs(since[count - 1]) / sqrt(count))
        for _ in range(len(sizes) - kept):
            self._recent.popleft()
        self._recent_logs = sum(sizes[-kept:])
        self.drifts += 1
        self._begin()
        for each in self._recent:
            self._fold(each)

    def _scale_down(self) -> None:
        factor, self._weight = self._weight, 1.0
        for sums in (self._counts, self._sums):
            for bucket in sums:
                sums[bucket] /= factor
        self._total /= factor
        self._logs /= factor
        self._squares /= factor
