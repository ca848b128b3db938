"""A worker scored for one request, in expected dollars, term by term; see `policy` for what the terms mean.

In: a worker's figures (`table.FIGURES`), the numbers of a request. Out: the terms. The formulas stand here once. A pick
works the score out for a few dozen workers at a time, compiled (`fused`, `ranking`); a record works all terms out for
one candidate, when somebody asks.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from services.mesh.priorities import RANKS, rank_of
from services.router.core.floors import LATENESS, LOGISTIC, SIGMA, SIGMA_S
from services.router.core.known_worker import KnownWorker
from services.router.core.prefixes import NOTHING_CACHED, Cached
from services.router.core.request import Promise
from services.router.core.serving import DevicePrice
from services.router.core.table import Singles, figure_names


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
    """

    prompt_tokens: int
    fewest_prompt_tokens: int
    completion_tokens: int
    mean_completion_tokens: float
    promise: Promise
    cached: Cached = NOTHING_CACHED
    excluded: Set[str] = frozenset()
    features: tuple[str, ...] = ()

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
    *(f"waits_{rank}" for rank in range(RANKS)),  # 1 for the rank of its priority, else 0
)


class Terms(NamedTuple):
    """What a formula gives for each worker: numbers, or the expression of them.

    Attributes:
        device_s: device-seconds it would take without a cached prefix.
        saved_s: device-seconds that the cached prefix saves.
        risk_usd: SLO risk, its own and of those it joins.
        miss: probability that its own TTFT or TPOT is late.
    """

    score_usd: Any
    device_s: Any
    saved_s: Any
    risk_usd: Any
    queue_s: Any
    ttft_s: Any
    tpot_s: Any
    miss: Any


def work_out(of: Any, band_tpots_s: Sequence[float], f: Any, *, staked: bool = True) -> Terms:
    """The terms of a request on a worker.

    Args:
        of: has, by name, a worker's figures, the numbers of the ask, and `cached`, tokens of the prompt.
        f: has the functions that `fused.FUNCTIONS` has.
        staked: False leaves out those that it joins, where none of them has anything at stake.
    """
    alone_s, _ = _prefill_s(of, of.prompt, f)
    alone_s = alone_s + of.attended_s * of.prompt * ((of.prompt + 1) / 2)
    fresh = of.prompt - of.cached
    fresh_s, chunks = _prefill_s(of, fresh, f)
    fresh_s = fresh_s + of.attended_s * fresh * ((of.prompt + 1 + of.cached) / 2)

    reads_s = of.read_s * of.length
    step_s = of.step_s + reads_s
    queue_s = _of_rank(of, "queue_s") + _wait_s(of, step_s, f)
    ttft_s = queue_s + fresh_s + of.riding_s * chunks
    tpot_s = step_s * of.stretch
    each_s = of.sequence_s + reads_s
    batch = f.maximum(of.batch, _batch_within(of, each_s, f))
    decode_s = (of.weights_s / batch + each_s) * (of.answer - 1)

    kept_ttft, later_ttft = _held_against(ttft_s, of.ttft_promise_s, f)
    kept_tpot, later_tpot = _held_against(tpot_s, of.tpot_promise_s, f)
    miss = 1 - kept_ttft * (1 - of.gaps * (1 - kept_tpot))
    risk_usd = of.miss_usd * (miss + LATENESS * (later_ttft + of.gaps * later_tpot))
    if staked:
        there_s = of.there_tpot_s + each_s + fresh_s / of.mean_answer
        for band, tpot_promise_s in enumerate(band_tpots_s):
            kept, _ = _held_against(there_s, tpot_promise_s, f)
            late_before = getattr(of, f"late_before_{band}")
            risk_usd = risk_usd + getattr(of, f"at_stake_usd_{band}") * (1 - kept - late_before)
    score_usd = (fresh_s + decode_s) * of.usd_per_s + risk_usd
    return Terms(score_usd, alone_s + decode_s, alone_s - fresh_s, risk_usd, queue_s, ttft_s, tpot_s, miss)


def _prefill_s(of: Any, tokens: Any, f: Any) -> tuple[Any, Any]:
    """Seconds to compute `tokens` in chunks, without attention; and the chunks."""
    chunks = f.ceil(tokens * of.chunks_per_token)
    return f.maximum(chunks * of.weights_s, chunks * of.chunk_overhead_s + tokens * of.token_s), chunks


def _batch_within(of: Any, each_s: Any, f: Any) -> Any:
    """How many requests like this one a worker can run at once and keep their TPOT promise, by memory and by time."""
    by_time = (of.tpot_promise_s * of.sureness - of.weights_s) / each_s
    return f.minimum(by_time, f.minimum(of.kv_capacity_tokens / of.length, of.max_batch))


def _wait_s(of: Any, step_s: Any, f: Any) -> Any:
    """Seconds until a batch slot and KV cache are free: answers that must end first, at the rate at which they do."""
    short_kv = f.maximum(of.short_kv_tokens + (of.prompt + of.answer), 0.0)
    kv_share = short_kv / (of.batch * (of.prompt + of.long_answer))
    return of.long_answer * step_s * f.maximum(_of_rank(of, "short_slots"), kv_share)


def _of_rank(of: Any, figure: str) -> Any:
    """A figure that there is for each rank of priority, as it is for the request's."""
    first, *others = (getattr(of, f"waits_{rank}") * getattr(of, f"{figure}_{rank}") for rank in range(RANKS))
    for each in others:
        first = first + each
    return first


def _held_against(predicted_s: Any, promise_s: Any, f: Any) -> tuple[Any, Any]:
    """How probably a predicted latency keeps its promise, see `floors.late_probability`; and how much later it is."""
    late = f.tanh(LOGISTIC * (predicted_s - promise_s) / (SIGMA * predicted_s + SIGMA_S))
    return 0.5 - 0.5 * late, f.maximum(predicted_s / promise_s, 1.0) - 1.0


PLAIN: Final = SimpleNamespace(maximum=max, minimum=min, ceil=math.ceil, tanh=math.tanh)
"""The functions for single numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One worker's case; dollars for this one request. `rejected_because` is empty when it was feasible."""

    worker: str
    pool: str
    accelerator: str
    rejected_because: str
    score_usd: float
    use_usd: float
    energy_usd: float
    shadow_usd: float
    slo_risk_usd: float
    prefix_saving_usd: float
    queue_s: float
    ttft_s: float
    tpot_s: float
    miss_probability: float
    cached_tokens: int


@dataclass(slots=True)
class Shortlist:
    """Candidates, best first, as their figures were: what follows from them is worked out when somebody asks.

    Attributes:
        workers: each with its price then.
        reasons: why those that were not feasible were not, by their place.
        figures: (candidates, columns) of the model's table then.
        cached: tokens of the prompt expected to be cached, by candidate.
    """

    workers: list[tuple[KnownWorker, DevicePrice]]
    reasons: dict[int, str]
    figures: Singles
    cached: list[float]
    ask: Ask
    band_tpots_s: Sequence[float]

    def __len__(self) -> int:
        return len(self.workers)

    def candidate(self, place: int) -> Candidate:
        """The terms of the candidate at `place`, 0 being the best."""
        worker, price = self.workers[place]
        terms = terms_of(self.figures[place].tolist(), self.ask, self.cached[place], self.band_tpots_s)
        use_usd = terms.device_s * price.use_usd_per_s
        energy_usd = terms.device_s * price.energy_usd_per_s
        shadow_usd = terms.device_s * price.shadow_usd_per_s
        saving_usd = terms.saved_s * price.usd_per_s
        return Candidate(
            worker=worker.name,
            pool=worker.pool,
            accelerator=worker.beat.accelerator,
            rejected_because=self.reasons.get(place, ""),
            score_usd=use_usd + energy_usd + shadow_usd + terms.risk_usd - saving_usd,
            use_usd=use_usd,
            energy_usd=energy_usd,
            shadow_usd=shadow_usd,
            slo_risk_usd=terms.risk_usd,
            prefix_saving_usd=saving_usd,
            queue_s=terms.queue_s,
            ttft_s=terms.ttft_s,
            tpot_s=terms.tpot_s,
            miss_probability=terms.miss,
            cached_tokens=int(self.cached[place]),
        )


def terms_of(figures: Sequence[float], ask: Ask, cached: float, band_tpots_s: Sequence[float]) -> Terms:
    """The terms of one worker, as numbers; `figures` in the order of `figure_names`."""
    names = (*figure_names(len(band_tpots_s)), *ASKED, "cached")
    named = dict(zip(names, (*figures, *ask.numbers(), cached), strict=True))
    return work_out(SimpleNamespace(**named), band_tpots_s, PLAIN)
