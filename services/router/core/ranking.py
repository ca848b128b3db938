"""The workers of one model ranked for one request, by the formulas of `scores`, for as few workers as need it.

In: the model's table and the ask. Out: the rows that can be the best, with their scores.

Of a thousand rows, most are dearer than the best one in the device-seconds alone that the request would take there. So
a bound comes first, for all rows: those dollars, and the least that lateness costs there (`floors`). Then the rows of
the lowest bounds are scored. When no other row's bound is below the best score found by more than a hundredth, none of
them can be better by more; else those that could are scored too. So the result is that of scoring every row, to a
hundredth; a test holds it against just that.

A prompt that is cached somewhere is cheaper there than its bound says. The rows of the few that hold most of it are
always scored; where many hold a part of it, that part is left out of the bound.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf
from typing import Any, Final

import numpy as np

from services.mesh.priorities import rank_of
from services.router.core.floors import BUCKETS, bucket_of
from services.router.core.fused import FUNCTIONS, Program
from services.router.core.promises import Promises
from services.router.core.scores import ASKED, Ask, work_out
from services.router.core.table import BOUNDS, FIGURES, Floats, ModelTable, Rows, Singles, figure_names

_ALL: Final = 192  # up to so many rows, scoring all takes no longer than bounding them first
_FIRST: Final = 32  # rows that are scored at first
_LOSS: Final = 0.01  # of a score, that is not looked for in rows that have not been scored
_FEATURES: Final = 8  # the first columns of a table's bounds: see `bounds_usd`
_FLOORS: Final = len(BOUNDS)  # where they begin
_WEIGHTS: Final = BOUNDS.index("weights_usd")
_QUEUE: Final = FIGURES.index("queue_s_0")  # and those of the other ranks after it
_TOKEN: Final = FIGURES.index("token_s")
_FEW_HOLDERS: Final = 16
_AROUND: Final = ("must_take", "max_queue_s", "heard_since_s", "least_linked")  # of `Circumstances`


@dataclass(slots=True)
class Circumstances:
    """What beside scores decides whether a row is feasible.

    Attributes:
        prompt_tokens: that it must take.
        max_queue_s: a row that is predicted to queue the request longer is not feasible.
        heard_since_s: nor one that was not heard since.
        least_linked: 1: nor one to which no session stands; else 0.
        excluded: rows that failed the request already.
    """

    prompt_tokens: int
    max_queue_s: float
    heard_since_s: float
    least_linked: float = 0.0
    excluded: Collection[int] = ()


@dataclass(slots=True)
class Ranking:
    """Rows that were scored, in no order; no row is in it twice.

    Attributes:
        rows: (rows,) their numbers in the table.
        usd: scores; infinite where a row is not feasible.
        cached: tokens of the prompt expected to be cached; None where none are anywhere.
        figures: (rows, columns) of the table.
    """

    rows: Rows
    usd: list[float]
    cached: list[float] | None
    figures: Floats

    def soonest_s(self, ask: Ask) -> list[float]:
        """About how long the first token takes."""
        queue_s = self.figures[:, _QUEUE + rank_of(ask.promise.priority)]
        soonest: list[float] = (queue_s + self.figures[:, _TOKEN] * ask.prompt_tokens).tolist()
        return soonest


def rank(table: ModelTable, ask: Ask, promises: Promises, around: Circumstances) -> Ranking:
    """Scores the rows that may be the best; at least `_FIRST` of them, or all."""
    count = len(table)
    if count <= _ALL or ask.completion_tokens == 1:  # a floor holds for answers of more than one token
        return score(table, ask, promises, around, np.arange(count))
    holders, shared_tokens = holders_of(table, ask)
    bound_usd = bounds_usd(table, ask, promises, shared_tokens)
    lowest = bound_usd.argpartition(_FIRST)
    limit_usd = float(bound_usd[lowest[_FIRST]])
    ranking = score(table, ask, promises, around, _with(lowest[:_FIRST], holders))
    reach_usd = min(ranking.usd) * (1 - _LOSS)
    if reach_usd <= limit_usd:
        return ranking
    return score(table, ask, promises, around, _with(np.flatnonzero(bound_usd <= reach_usd), holders))


def score(table: ModelTable, ask: Ask, promises: Promises, around: Circumstances, rows: Rows) -> Ranking:
    """Scores some rows."""
    figures = table.figures.take(rows, axis=0)
    cached = ask.cached.among(table.slots[rows], ask.prompt_tokens - 1) if ask.cached.depths else None
    values = (
        *figures.T,
        *ask.numbers(),
        0.0 if cached is None else np.array(cached),
        around.prompt_tokens,
        around.max_queue_s,
        around.heard_since_s,
        around.least_linked,
    )
    usd = _score_usd(promises.band_tpots_s, table.staked > 0)(values)
    if ask.features:
        usd[~table.able(ask.features)[rows]] = inf
    if around.excluded:
        usd[np.isin(rows, list(around.excluded))] = inf
    return Ranking(rows, usd.tolist(), cached, figures)


def bounds_usd(table: ModelTable, ask: Ask, promises: Promises, shared_tokens: float) -> Singles:
    """(rows,) dollars that no score is below; `shared_tokens`: of the prompt that many have in their caches."""
    prompt, gaps, columns = ask.prompt_tokens, ask.completion_tokens - 1, table.bounds
    length = prompt + ask.completion_tokens / 2
    fresh = prompt - shared_tokens
    attended = fresh * ((prompt + 1 + shared_tokens) / 2)
    chunks = ceil(fresh / table.longest_chunk_tokens)
    brought = np.array(
        (fresh, attended, chunks, length * gaps, gaps, gaps, ask.promise.tpot_s * gaps, 1 / length), np.float32
    )
    # Dollars of the prefill, in three; of what every step reads and computes for the sequence, over all its steps; of
    # the weights in these; of the promised time of these; and how many like it the memory holds.
    prefill, attending, overhead, sequence, own, weights, within, batch = columns[:_FEATURES] * brought[:, np.newaxis]
    max_batch, least_batch, closed = columns[_FEATURES:_FLOORS]
    prefill += attending
    prefill += overhead
    np.maximum(prefill, columns[_WEIGHTS], out=prefill)
    sequence += own
    within -= weights
    within /= sequence
    np.minimum(batch, max_batch, out=batch)
    np.minimum(batch, within, out=batch)
    np.maximum(batch, least_batch, out=batch)
    usd: Singles = np.divide(weights, batch, out=batch)
    usd += sequence
    usd += prefill
    bucket = bucket_of(prompt) if not shared_tokens else None
    if bucket is None:
        usd += closed
    else:
        usd += columns[_FLOORS + promises.band_of(ask.promise.name) * len(BUCKETS) + bucket]
    return usd


def holders_of(table: ModelTable, ask: Ask) -> tuple[list[int], float]:
    """Rows of the few that hold most of the prompt; and the tokens that many hold, which is no less than others do."""
    holders: list[int] = []
    depths = ask.cached.depths
    for place in range(len(depths) - 1, -1, -1):
        bits = depths[place][1]
        if len(holders) + bits.bit_count() > _FEW_HOLDERS:
            return holders, min(ask.prompt_tokens - 1, max(tokens for tokens, _ in depths[: place + 1]))
        while bits:
            lowest = bits & -bits
            if (row := table.row_of.get(lowest.bit_length() - 1)) is not None:
                holders.append(row)
            bits ^= lowest
    return holders, 0.0


def _with(rows: Rows, holders: list[int]) -> Rows:
    """The rows, and those of the holders that are not among them."""
    if holders:
        known = set(rows.tolist())
        if others := [row for row in holders if row not in known]:
            return np.concatenate((rows, others))
    return rows


@lru_cache
def _score_usd(band_tpots_s: Sequence[float], staked: bool) -> Program:
    """Compiled: the score, infinite where a row is not feasible."""

    def feasible_usd(of: Any) -> object:
        terms = work_out(of, band_tpots_s, FUNCTIONS, staked=staked)
        lost = (of.heard_s < of.heard_since_s) | (of.linked < of.least_linked)
        closed = (of.room_tokens <= of.must_take) | (terms.queue_s > of.max_queue_s)
        return FUNCTIONS.where(lost | closed, inf, terms.score_usd)

    return Program(feasible_usd, _names(len(band_tpots_s)))


def _names(bands: int) -> tuple[str, ...]:
    return (*figure_names(bands), *ASKED, "cached", *_AROUND)
