"""Every worker of one model ranked for one request: the formulas of `scores`, arranged to take as little as they can.

In: the model's table and the ask. Out: each row's score and what a pick among the best needs to know. `scores` is the
same arithmetic to be read, and computes what a record shows; a test holds the two together.

Of a thousand rows each NumPy call takes about as long to begin as to do, so there are few: what a request brings is
multiplied into five columns at once, TTFT and TPOT are held against their promises together, and what is the same in
all rows is a number. The lateness of those that a request joins would take as long as all the rest, and can only make a
score worse. So it is left out at first; the row that is best without it bounds, with it, the best score from above; and
it is computed for the rows within reach of that bound. No other row can be the best or near it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.router.core.scores import LATENESS, Ask
from services.router.core.serving import LOGISTIC, SIGMA, SIGMA_S, late_probability
from services.router.core.table import Floats, ModelTable

_STEEP: Final = LOGISTIC / SIGMA
_SOFT_S: Final = SIGMA_S / SIGMA
_FEATURED: Final = 5  # the first columns of a table: multiplied by what a request brings

Rows = NDArray[np.intp]


@dataclass(slots=True)
class Ranking:
    """One ask held against a table; columns, each (rows,).

    Attributes:
        queue_s, ttft_s: as predicted.
        least_usd: the score without the lateness of those that the request joins.
        cached: tokens expected to be cached; None where none are.
        each_s, fresh_s: what it adds to a decode step, and its prefill.
    """

    table: ModelTable
    ask: Ask
    queue_s: Floats
    ttft_s: Floats
    least_usd: Floats
    cached: Floats | None
    each_s: Floats
    fresh_s: Floats


def rank(table: ModelTable, ask: Ask) -> Ranking:
    """Ranks every row, whether it is feasible or not."""
    prompt, answer = ask.prompt_tokens, ask.completion_tokens
    length = prompt + answer / 2
    attended = prompt * ((prompt + 1) / 2)
    brought = np.array((prompt, attended, length, ask.promise.tpot_s, 1 / length), np.float32)
    tokens_s, attended_s, read_s, budget_s, by_memory = table.cells[:_FEATURED] * brought[:, np.newaxis]
    cached = fresh = None
    if ask.cached:
        cached = ask.cached.column(table.slots, prompt - 1).astype(np.float32)
        fresh = prompt - cached
        tokens_s = table.token_s * fresh
        attended_s = table.attended_s * (fresh * (cached + (prompt + 1))) / 2
    fresh_s, riding_s = _prefill_s(table, prompt, fresh, tokens_s)
    fresh_s += attended_s
    step_s = table.step_s + read_s
    each_s = table.sequence_s + read_s

    wait_s = _wait_s(table, ask, step_s)
    queue_s = table.queue_s if wait_s is None else table.queue_s + wait_s
    times_s = np.empty((2 if answer > 1 else 1, len(table)), np.float32)  # TTFT and TPOT
    ttft_s = times_s[0]
    np.add(queue_s, fresh_s, out=ttft_s)
    ttft_s += riding_s
    if answer > 1:
        np.multiply(step_s, table.stretch, out=times_s[1])

    # Requests like this one that run there at once within their promise, by time and by memory.
    budget_s -= table.weights_s
    budget_s /= each_s
    batch = np.minimum(by_memory, table.max_batch, out=by_memory)
    np.minimum(batch, budget_s, out=batch)
    np.maximum(batch, table.batch, out=batch)
    usd = np.divide(table.weights_s, batch, out=batch)
    usd += each_s
    usd *= answer - 1
    usd += fresh_s
    usd *= table.usd_per_s
    _add_risk(usd, times_s, ask)
    return Ranking(table, ask, queue_s, ttft_s, usd, cached, each_s, fresh_s)


def within_reach(
    ranking: Ranking, least_usd: Floats, band_tpots_s: Sequence[float], near: float
) -> tuple[Rows, Floats]:
    """The rows that may be within `near` of the best score, as a part of it, and their scores.

    Args:
        least_usd: of the ranking, infinite where a row is not feasible; at least one is.
    """
    staked = ranking.table.staked
    first = int(least_usd.argmin())
    reach_usd = float(least_usd[first])
    if staked:
        reach_usd += _harm_at(ranking, first, band_tpots_s)
    rows = np.flatnonzero(least_usd <= reach_usd * (1 + near) + 1e-12)
    usd = least_usd[rows]
    if staked:
        usd += harm_usd(ranking, rows, band_tpots_s)
    return rows, usd


def harm_usd(ranking: Ranking, rows: Rows, band_tpots_s: Sequence[float]) -> Floats:
    """What the lateness costs that the request causes to those that run there, for each of `rows`."""
    table = ranking.table
    there_s = table.there_tpot_s[rows] + ranking.each_s[rows]
    there_s += ranking.fresh_s[rows] / ranking.ask.mean_completion_tokens
    stakes = table.at_stake_usd[:, rows]
    late = _lateness(there_s, np.array(band_tpots_s, np.float32)[:, np.newaxis])
    late *= 0.5
    late += 0.5
    late -= table.late_before[:, rows]
    late *= stakes
    harm: Floats = late.sum(axis=0)
    return harm


def _prefill_s(table: ModelTable, prompt: int, fresh: Floats | None, tokens_s: Floats) -> tuple[Floats, Floats]:
    """Seconds to compute the fresh tokens in chunks, without attention, and for the sequences that ride along."""
    if prompt * float(table.chunks_per_token.max()) <= 1.0:  # one chunk, anywhere
        tokens_s += table.chunk_overhead_s
        return np.maximum(tokens_s, table.weights_s, out=tokens_s), table.riding_s
    chunks = np.ceil(table.chunks_per_token * (prompt if fresh is None else fresh))
    tokens_s += chunks * table.chunk_overhead_s
    return np.maximum(tokens_s, chunks * table.weights_s, out=tokens_s), chunks * table.riding_s


def _wait_s(table: ModelTable, ask: Ask, step_s: Floats) -> Floats | None:
    """Seconds until a batch slot and KV cache are free: answers that must end first, at the rate at which they do."""
    wanted = ask.prompt_tokens + ask.completion_tokens
    if table.short_kv_tokens.max() + wanted <= 0 and not table.short_slots.any():
        return None
    answer = max(float(ask.completion_tokens), ask.mean_completion_tokens)
    short = np.maximum(table.short_kv_tokens + wanted, 0.0)
    short /= table.batch
    short *= 1 / (ask.prompt_tokens + answer)
    np.maximum(short, table.short_slots, out=short)
    short *= step_s
    short *= answer
    return short


def _add_risk(usd: Floats, times_s: Floats, ask: Ask) -> None:
    """Adds what the request's own lateness costs, by its TTFT and, where there is a second row, its TPOT."""
    promise = ask.promise
    promises_s = np.array(((promise.ttft_promise_s(ask.prompt_tokens),), (promise.tpot_s,)), np.float32)[: len(times_s)]
    kept = _lateness(times_s, promises_s)
    np.subtract(1.0, kept, out=kept)  # twice the probability that each promise is kept
    late = times_s * (LATENESS * promise.miss_usd / promises_s)
    np.maximum(late, LATENESS * promise.miss_usd, out=late)
    usd += late[0]
    if len(times_s) == 1:
        usd -= kept[0] * (promise.miss_usd / 2)
        usd += promise.miss_usd * (1 - LATENESS)
        return
    usd += late[1]
    both = np.multiply(kept[0], kept[1], out=kept[0])
    both *= promise.miss_usd / 4
    usd -= both
    usd += promise.miss_usd * (1 - 2 * LATENESS)


def _lateness(times_s: Floats, promises_s: Floats) -> Floats:
    """Twice `serving.late_probability`, less 1; (promises, rows)."""
    # tanh(L (t - p) / (S t + s)) = tanh(L/S - L/S (p + s/S) / (t + s/S)): one division, and nothing added after it.
    late = (_STEEP * (promises_s + _SOFT_S)) / (times_s + _SOFT_S)
    np.subtract(_STEEP, late, out=late)
    return np.tanh(late, out=late)


def _harm_at(ranking: Ranking, row: int, band_tpots_s: Sequence[float]) -> float:
    """`harm_usd` of one row."""
    table = ranking.table
    there_s = float(table.there_tpot_s[row]) + float(ranking.each_s[row])
    there_s += float(ranking.fresh_s[row]) / ranking.ask.mean_completion_tokens
    bands = zip(band_tpots_s, table.at_stake_usd[:, row].tolist(), table.late_before[:, row].tolist(), strict=True)
    harm = 0.0
    for tpot_s, usd, late_before in bands:
        if usd:
            harm += usd * (late_probability(there_s, tpot_s) - late_before)
    return harm
