"""A worker scored for one request, in expected dollars, term by term; see `policy` for what the terms mean.

In: a worker's figures (`table.figure_names`), the numbers of a request. Out: the terms. The formulas stand here once. A
pick works the score out for all workers of a model at a time, compiled (`fused`, `ranking`); a record works all terms
out for one candidate, when somebody asks (`shortlist`).
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from services.mesh.confines import ANYWHERE, Confines
from services.mesh.priorities import RANKS, rank_of, yields
from services.mesh.timing import READING
from services.router.core.plans import Trial
from services.router.core.prefixes import NOTHING_CACHED, Cached
from services.router.core.request import Promise
from services.router.core.table import figure_names

HOP_S: Final = 0.002  # router to worker and back
_LOGISTIC: Final = 1.702  # with which a logistic curve follows the normal one within 0.01
_SIGMA: Final = 0.25  # relative error of a predicted TTFT
_SIGMA_S: Final = 0.003  # and its absolute part: scheduling, network
# The same of TPOT, which is a mean of many steps.
_SIGMA_TPOT: Final = 0.1
_SIGMA_TPOT_S: Final = 0.002
# And of what bounds it, where engines bound their steps: how long these take is known well, not what comes.
_SIGMA_BOUND: Final = 0.03
_SIGMA_BOUND_S: Final = 0.0005
# Times what computing a request costs that a late answer costs, beside what its class says: so the promises of long
# prompts, which few devices can keep, are not given up for being dear to keep.
_WASTED: Final = 10.0
_LATENESS: Final = 0.1  # of a miss, per promise that an answer is late
_LEAST_S: Final = 1e-9  # a fit may find that one more sequence adds nothing
_LEAST_CHUNK: Final = 16.0  # tokens
# What a second of a device costs doubles where so much of its time is promised, and rises with the 8th power: little
# below, so that the cheapest are filled first; beyond it by more than any device is dearer than another.
_PRESSED: Final = 0.8
_MOST_PRESSED: Final = 4.0
_DOUBLINGS: Final = 3  # of the exponent
_BUSIEST: Final = 0.9  # share of time that arriving prefills may be taken to occupy


@dataclass(slots=True, kw_only=True)  # not frozen: a frozen one costs three times as much to make
class Ask:
    """What is to be placed.

    Attributes:
        prompt_tokens, completion_tokens: expected, >= 1.
        fewest_prompt_tokens: a lower bound that holds for certain.
        mean_completion_tokens: of the model's other requests, >= 1.
        cached: what of the prompt is expected to be cached.
        excluded: names of workers that failed this request already.
        features: what a worker's engine must be able to do, see `mesh/features.py`.
        confines: what a worker must be.
        trial: the plan that it follows instead of the one in force.
    """

    prompt_tokens: int
    fewest_prompt_tokens: int
    completion_tokens: int
    mean_completion_tokens: float
    promise: Promise
    cached: Cached = NOTHING_CACHED
    excluded: Set[str] = frozenset()
    features: tuple[str, ...] = ()
    confines: Confines = ANYWHERE
    trial: Trial | None = None

    def numbers(self) -> tuple[float, ...]:
        """What a formula takes of a request, in the order of `ASKED`."""
        prompt, answer, mean, promise = (
            self.prompt_tokens,
            self.completion_tokens,
            self.mean_completion_tokens,
            self.promise,
        )
        return (
            prompt,
            answer,
            prompt + answer / 2,
            mean,
            answer if answer > mean else mean,
            1.0 if answer > 1 else 0.0,
            promise.ttft_promise_s(prompt),
            promise.tpot_s,
            promise.miss_usd,
            0.0 if yields(promise.priority) else 1.0,
            *_WAITS[rank_of(promise.priority)],
        )


_WAITS: Final = tuple(tuple(float(each == rank) for each in range(RANKS)) for rank in range(RANKS))
ASKED: Final = (
    "prompt",
    "answer",
    "length",  # tokens of KV cache that it holds on average
    "mean_answer",
    "long_answer",
    "gaps",  # 0 where there is no time between tokens to be late by, else 1
    "ttft_promise_s",
    "tpot_promise_s",
    "miss_usd",
    "precedes",  # 1 unless its tenant takes more than its share
    *(f"waits_{rank}" for rank in range(RANKS)),  # 1 for the rank of its priority, else 0
)


class Terms(NamedTuple):
    """What a formula gives for each worker: numbers, or the expression of them.

    Attributes:
        device_s: device-seconds it would take without a cached prefix.
        saved_s: device-seconds that the cached prefix saves.
        risk_usd: SLO risk, its own and of those it joins.
        harm_usd: of it, what is those others'.
        miss: probability that its own TTFT or TPOT is late.
        usd_per_s: of the device's time.
        soonest_s: about how long its first token takes, nothing being cached and slots and memory being free.
    """

    score_usd: Any
    device_s: Any
    saved_s: Any
    risk_usd: Any
    harm_usd: Any
    queue_s: Any
    ttft_s: Any
    tpot_s: Any
    miss: Any
    usd_per_s: Any
    soonest_s: Any


def work_out(of: Any, band_tpots_s: Sequence[float], f: Any) -> Terms:
    """The terms of a request on a worker.

    Args:
        of: has, by name, a worker's figures, the numbers of the ask, and `cached`, tokens of the prompt.
        f: has the functions that `fused.FUNCTIONS` has.
    """
    there, usd_per_s = _as_it_is(of, f), _usd_per_s(of, f)
    alone_s, _ = _prefill_s(of, there, of.prompt, f)
    alone_s = alone_s + there.attended_s * of.prompt * ((of.prompt + 1) / 2)
    fresh = of.prompt - of.cached
    fresh_s, chunks = _prefill_s(of, there, fresh, f)
    fresh_s = fresh_s + there.attended_s * fresh * ((of.prompt + 1 + of.cached) / 2)

    reads_s = there.read_s * of.length
    step_s = there.step_s + reads_s
    ahead_s, before = _ahead(of, there, f)
    queue_s = ahead_s + _wait_s(of, there, before, step_s, f)
    ttft_s = queue_s + fresh_s + there.riding_s * chunks
    most_s = _most_s(there, there.sequence_s * there.batch + there.reading_s + reads_s, f)
    tpot_s = f.minimum(step_s * there.stretch, most_s)
    each_s = there.sequence_s + reads_s
    batch = f.maximum(there.batch, _batch_within(of, there, each_s, f))
    decode_s = (there.weights_s / batch + each_s) * (of.answer - 1)

    late_ttft = _late(ttft_s, of.ttft_promise_s, f)
    late_tpot = of.gaps * _late_tpot(step_s * there.stretch, most_s, of.tpot_promise_s, f)
    miss = late_ttft + late_tpot - late_ttft * late_tpot
    later = _later(ttft_s, of.ttft_promise_s, f) + of.gaps * _later(tpot_s, of.tpot_promise_s, f)
    miss_usd = of.miss_usd + _WASTED * of.usd_per_s * (alone_s + decode_s)
    risk_usd = miss_usd * (miss + _LATENESS * later)
    own_usd = risk_usd
    kept_riding_s, kept_stretch = _kept(of, there, f)
    kept_tpot_s = (there.weights_s + kept_riding_s) * kept_stretch
    kept_most_s, then_most_s = _most_s(there, kept_riding_s, f), _most_s(there, kept_riding_s + each_s, f)
    then_tpot_s = kept_tpot_s + each_s + fresh_s / of.mean_answer
    spared = 1 - of.precedes * of.yielding  # those who take more than their share are not
    for band, tpot_promise_s in enumerate(band_tpots_s):
        late_then = _late_tpot(then_tpot_s, then_most_s, tpot_promise_s, f)
        more = late_then - _late_tpot(kept_tpot_s, kept_most_s, tpot_promise_s, f)
        risk_usd = risk_usd + getattr(of, f"at_stake_usd_{band}") * spared * more
    score_usd = (fresh_s + decode_s) * usd_per_s + risk_usd
    soonest_s = ahead_s + there.token_s * of.prompt
    return Terms(
        score_usd=score_usd,
        device_s=alone_s + decode_s,
        saved_s=alone_s - fresh_s,
        risk_usd=risk_usd,
        harm_usd=risk_usd - own_usd,
        queue_s=queue_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        miss=miss,
        usd_per_s=usd_per_s,
        soonest_s=soonest_s,
    )


class _AsItIs(NamedTuple):
    """A worker before the request comes; seconds are its own, slowness included.

    Attributes:
        token_s, attended_s, overhead_s: of a prefill: for each token, for each token attended to, for each chunk.
        weights_s: the part of a step that all its sequences share.
        sequence_s: what each sequence adds to a step; > 0.
        read_s: of a decode step, for each token of KV cache.
        batch: sequences of a step that one more joins; >= 1.
        chunk_tokens: of prompt, computed in one step at most; >= 1.
        limit_s: what steps that compute prompts take at most.
        step_s: of a decode step with one more sequence, which brings no KV tokens.
        reading_s: of a decode step, for the KV cache of those who are there.
        riding_s: what a chunk takes longer for the sequences that decode meanwhile.
        sureness: what prefills that keep arriving leave of the time.
        stretch: how much they stretch that between two tokens.
    """

    token_s: Any
    attended_s: Any
    overhead_s: Any
    weights_s: Any
    sequence_s: Any
    read_s: Any
    batch: Any
    chunk_tokens: Any
    limit_s: Any
    step_s: Any
    reading_s: Any
    riding_s: Any
    sureness: Any
    stretch: Any


def _as_it_is(of: Any, f: Any) -> _AsItIs:
    token_s, attended_s = of.slow * of.prefill_s_per_token, of.slow * of.prefill_s_per_attended_token
    overhead_s, weights_s = of.slow * of.prefill_overhead_s, of.slow * of.decode_base_s
    read_s, sequence_s = of.slow * of.decode_s_per_kv_token, of.slow * of.decode_s_per_sequence + _LEAST_S
    batch = f.minimum(of.running + f.maximum(of.waiting, 0.0) + 1, of.max_batch)
    reading_s = read_s * f.minimum(f.maximum(of.kv_tokens, 0.0), of.kv_capacity_tokens)
    riding_s = sequence_s * of.running + reading_s
    limit_s = of.slow * of.limit_s
    # An engine whose steps are bounded computes as many prompt tokens as its decodes leave time for.
    room_s = f.maximum(limit_s - riding_s, READING * weights_s) - overhead_s
    chunk_tokens = f.minimum(f.maximum(room_s / (token_s + _LEAST_S), _LEAST_CHUNK), of.chunk_tokens)
    sureness = 1 - f.minimum(token_s * of.arriving_tps, _BUSIEST)
    return _AsItIs(
        token_s=token_s,
        attended_s=attended_s,
        overhead_s=overhead_s,
        weights_s=weights_s,
        sequence_s=sequence_s,
        read_s=read_s,
        batch=batch,
        chunk_tokens=chunk_tokens,
        limit_s=limit_s,
        step_s=weights_s + sequence_s * batch + reading_s,
        reading_s=reading_s,
        riding_s=riding_s,
        sureness=sureness,
        stretch=1 / sureness,
    )


def _kept(of: Any, there: _AsItIs, f: Any) -> tuple[Any, Any]:
    """What those who are there add to a step, in seconds, and how much prefills stretch the time between two tokens;
    but for those that yield to the request: it is they who make the worker full, and fewer of them go there once the
    request has."""
    kept = 1 - of.precedes * of.yielding_there
    return there.riding_s * kept, 1 / (1 - f.minimum(there.token_s * of.arriving_tps * kept, _BUSIEST))


def _usd_per_s(of: Any, f: Any) -> Any:
    """Of a device's time, more the more of it is promised; what yields to the request makes it no dearer."""
    promised = of.promised - of.precedes * of.promised_yielding
    pressure = f.minimum(promised * (1 / _PRESSED), _MOST_PRESSED)
    for _ in range(_DOUBLINGS):
        pressure = pressure * pressure
    return of.usd_per_s * (1 + pressure)


def _most_s(there: _AsItIs, riding_s: Any, f: Any) -> Any:
    """Seconds that a step takes at most to which its decodes add `riding_s`, whatever prefills keep arriving: an engine
    whose steps are bounded computes no more of them (`Timing.prefill_room_s`)."""
    return f.maximum(there.limit_s, READING * there.weights_s + riding_s)


def _ahead(of: Any, there: _AsItIs, f: Any) -> tuple[Any, Any]:
    """Seconds until a request that came now would be computed, batch slots and KV cache being free; and how many go
    before it."""
    tokens, before = f.maximum(_of_rank(of, "ahead_tokens"), 0.0), f.maximum(_of_rank(of, "before"), 0.0)
    chunk_s = f.maximum(there.overhead_s + there.token_s * there.chunk_tokens, there.weights_s) + there.riding_s
    begins_s = f.where(of.running > 0.0, there.step_s / 2 + HOP_S, HOP_S)
    # Of the prompts ahead only the total is known: each is taken to attend to half of their mean length.
    attending_s = there.attended_s * tokens * tokens / (2 * f.maximum(before, 1.0))
    # More urgent ones go on passing it while it waits.
    passing = f.minimum(there.token_s * _of_rank(of, "passing_tps"), _BUSIEST)
    return begins_s + (tokens / there.chunk_tokens * chunk_s + attending_s) / (1 - passing), before


def _of_rank(of: Any, figure: str) -> Any:
    """A figure that there is for each rank of priority, as it is for the request's."""
    first, *others = (getattr(of, f"waits_{rank}") * getattr(of, f"{figure}_{rank}") for rank in range(RANKS))
    for each in others:
        first = first + each
    return first


def _prefill_s(of: Any, there: _AsItIs, tokens: Any, f: Any) -> tuple[Any, Any]:
    """Seconds to compute `tokens` in chunks, without attention; and the chunks."""
    chunks = f.ceil(tokens / there.chunk_tokens)
    return f.maximum(chunks * there.weights_s, chunks * there.overhead_s + tokens * there.token_s), chunks


def _batch_within(of: Any, there: _AsItIs, each_s: Any, f: Any) -> Any:
    """How many requests like this one a worker can run at once and keep their TPOT promise, by memory and by time."""
    # Prefills that keep arriving stretch no step beyond its bound.
    most_s = f.maximum(of.tpot_promise_s * there.sureness, f.minimum(of.tpot_promise_s, there.limit_s))
    by_time = (most_s - there.weights_s) / each_s
    return f.minimum(by_time, f.minimum(of.kv_capacity_tokens / of.length, of.max_batch))


def _wait_s(of: Any, there: _AsItIs, before: Any, step_s: Any, f: Any) -> Any:
    """Seconds until a batch slot and KV cache are free: answers that must end first, at the rate at which they do."""
    short_kv_tokens = f.maximum(of.kv_tokens, 0.0) + f.maximum(of.growth_tokens, 0.0) - of.kv_capacity_tokens
    short_kv = f.maximum(short_kv_tokens + (of.prompt + of.answer), 0.0)
    kv_share = short_kv / (there.batch * (of.prompt + of.long_answer))
    short_slots = f.maximum(of.running + before + 1 - of.max_batch, 0.0) / of.max_batch
    return of.long_answer * step_s * f.maximum(short_slots, kv_share)


def _later(predicted_s: Any, promise_s: Any, f: Any) -> Any:
    """By what part of the promise a predicted latency passes it."""
    return f.maximum(predicted_s / promise_s, 1.0) - 1.0


def _late(predicted_s: Any, promise_s: Any, f: Any) -> Any:
    """Probability, 0 to 1, that a TTFT predicted with `_SIGMA` passes its promise."""
    return f.logistic(_LOGISTIC * (predicted_s - promise_s) / (_SIGMA * predicted_s + _SIGMA_S))


def _late_tpot(predicted_s: Any, most_s: Any, promise_s: Any, f: Any) -> Any:
    """Probability, 0 to 1, that a TPOT passes its promise that is predicted with `_SIGMA_TPOT`, and not to pass
    `most_s`, with `_SIGMA_BOUND`."""
    late = (predicted_s - promise_s) / (_SIGMA_TPOT * predicted_s + _SIGMA_TPOT_S)
    at_most = (most_s - promise_s) / (_SIGMA_BOUND * most_s + _SIGMA_BOUND_S)
    return f.logistic(_LOGISTIC * f.minimum(late, at_most))


def _where(condition: bool, then: float, otherwise: float) -> float:
    return then if condition else otherwise


def _logistic(value: float) -> float:
    return 0.5 + 0.5 * math.tanh(value / 2)


PLAIN: Final = SimpleNamespace(maximum=max, minimum=min, ceil=math.ceil, logistic=_logistic, where=_where)
"""The functions for single numbers."""


def terms_of(figures: Sequence[float], ask: Ask, band_tpots_s: Sequence[float]) -> Terms:
    """The terms of one worker, as numbers; `figures` in the order of `figure_names`."""
    names = (*figure_names(len(band_tpots_s)), *ASKED)
    named = dict(zip(names, (*figures, *ask.numbers()), strict=True))
    return work_out(SimpleNamespace(**named), band_tpots_s, PLAIN)


def there_tpot_s(figures: Sequence[float], bands: int) -> float:
    """Seconds per token of those who run at one worker, as it is."""
    named = dict(zip(figure_names(bands), figures, strict=True))
    there = _as_it_is(SimpleNamespace(**named), PLAIN)
    return float(min((there.weights_s + there.riding_s) * there.stretch, _most_s(there, there.riding_s, PLAIN)))
