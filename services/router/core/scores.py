"""Workers scored for one request, in expected dollars, term by term; see `policy` for what the terms mean.

In: rows of a model's table and the ask. Out: columns of seconds, probabilities and dollars, and the terms of single
rows. A pick goes by `ranking`, the same arithmetic made quick; this is what a record shows of a few candidates, worked
out when somebody asks.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.router.core.known_worker import KnownWorker
from services.router.core.prefixes import NOTHING_CACHED, Cached
from services.router.core.request import Promise
from services.router.core.serving import LOGISTIC, SIGMA, SIGMA_S, DevicePrice
from services.router.core.table import Columns, Floats

LATENESS: Final = 0.1  # of a miss, per promise that an answer is late


@dataclass(frozen=True, slots=True, kw_only=True)
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


class Scores:
    """Columns, each (rows,).

    Attributes:
        device_s: device-seconds it would take without a cached prefix.
        saved_s: device-seconds that the cached prefix saves.
        risk_usd: SLO risk, its own and of those it joins.
    """

    def __init__(self, table: Columns, band_tpots_s: Sequence[float], ask: Ask, cached: Floats | None) -> None:
        """`cached`: (rows,) tokens of the prompt expected to be cached; None where none are."""
        prompt, answer = ask.prompt_tokens, ask.completion_tokens
        alone_s, chunks = _prefill_s(table, prompt)
        alone_s += table.attended_s * prompt * ((prompt + 1) / 2)
        fresh_s = alone_s
        if cached is not None:
            fresh_s, chunks = _prefill_s(table, prompt - cached)
            fresh_s += table.attended_s * (prompt - cached) * ((prompt + 1 + cached) / 2)
        self.saved_s = alone_s - fresh_s

        length = prompt + answer / 2  # tokens of KV cache that it holds on average
        reads_s = table.read_s * length
        step_s = table.step_s + reads_s
        self.queue_s = table.queue_s + _wait_s(table, ask, step_s)
        self.ttft_s = self.queue_s + fresh_s + table.riding_s * chunks
        self.tpot_s = step_s * table.stretch
        each_s = table.sequence_s + reads_s
        batch = np.maximum(table.batch, _batch_within(table, ask.promise.tpot_s, each_s, length))
        self.device_s = alone_s + (table.weights_s / batch + each_s) * (answer - 1)

        ttft_promise_s = ask.promise.ttft_promise_s(prompt)
        miss = _late(self.ttft_s, ttft_promise_s)
        late = np.maximum(self.ttft_s / ttft_promise_s, 1.0)
        if answer > 1:
            late_tpot = _late(self.tpot_s, ask.promise.tpot_s)
            miss += late_tpot - miss * late_tpot
            late += np.maximum(self.tpot_s / ask.promise.tpot_s, 1.0) - 1.0
        self.miss = miss
        self.risk_usd = ask.promise.miss_usd * (miss + LATENESS * (late - 1.0))
        if table.at_stake_usd.any():
            there_s = table.there_tpot_s + each_s + fresh_s / ask.mean_completion_tokens
            late_after = _late(there_s, np.asarray(band_tpots_s)[:, np.newaxis])
            self.risk_usd += (table.at_stake_usd * (late_after - table.late_before)).sum(axis=0)
        self.score_usd = (self.device_s - self.saved_s) * table.usd_per_s + self.risk_usd


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Candidates, best first, as their figures were: what follows from them is worked out when somebody asks.

    Attributes:
        workers: each with its price then.
        reasons: why those that were not feasible were not; empty for those that were.
        cells: (columns, candidates) of the model's table then.
        cached: tokens of the prompt expected to be cached, by candidate.
    """

    workers: tuple[tuple[KnownWorker, DevicePrice], ...]
    reasons: tuple[str, ...]
    cells: Floats
    cached: tuple[float, ...]
    ask: Ask
    band_tpots_s: Sequence[float]

    def __len__(self) -> int:
        return len(self.workers)

    def names(self) -> list[str]:
        return [worker.name for worker, _ in self.workers]

    def candidate(self, place: int) -> Candidate:
        """The terms of the candidate at `place`, 0 being the best."""
        worker, price = self.workers[place]
        # The picked request takes all of this into account, so it is worked out with the precision of the record.
        columns = Columns(self.cells[:, place : place + 1].astype(np.float64), len(self.band_tpots_s))
        scores = Scores(columns, self.band_tpots_s, self.ask, np.array(self.cached[place : place + 1]))
        device_s, saved_s, risk_usd = float(scores.device_s[0]), float(scores.saved_s[0]), float(scores.risk_usd[0])
        use_usd = device_s * price.use_usd_per_s
        energy_usd = device_s * price.energy_usd_per_s
        shadow_usd = device_s * price.shadow_usd_per_s
        saving_usd = saved_s * price.usd_per_s
        return Candidate(
            worker=worker.name,
            pool=worker.pool,
            accelerator=worker.beat.accelerator,
            rejected_because=self.reasons[place],
            score_usd=use_usd + energy_usd + shadow_usd + risk_usd - saving_usd,
            use_usd=use_usd,
            energy_usd=energy_usd,
            shadow_usd=shadow_usd,
            slo_risk_usd=risk_usd,
            prefix_saving_usd=saving_usd,
            queue_s=float(scores.queue_s[0]),
            ttft_s=float(scores.ttft_s[0]),
            tpot_s=float(scores.tpot_s[0]),
            miss_probability=float(scores.miss[0]),
            cached_tokens=int(self.cached[place]),
        )


def _prefill_s(table: Columns, tokens: Floats | int) -> tuple[Floats, Floats]:
    """Seconds to compute `tokens` in chunks, without attention; and the chunks."""
    chunks = np.ceil(tokens * table.chunks_per_token)
    return np.maximum(chunks * table.weights_s, chunks * table.chunk_overhead_s + tokens * table.token_s), chunks


def _batch_within(table: Columns, tpot_s: float, each_s: Floats, length: float) -> Floats:
    """How many requests like this one a worker can run at once and keep their TPOT promise, by memory and by time."""
    by_time = (tpot_s * table.sureness - table.weights_s) / each_s
    by_memory = np.minimum(table.kv_capacity_tokens / length, table.max_batch)
    batch: Floats = np.maximum(np.minimum(by_time, by_memory), 1.0)
    return batch


def _wait_s(table: Columns, ask: Ask, step_s: Floats) -> Floats | float:
    """Seconds until a batch slot and KV cache are free: answers that must end first, at the rate at which they do."""
    short_kv = table.short_kv_tokens + (ask.prompt_tokens + ask.completion_tokens)
    if short_kv.max() <= 0 and not table.short_slots.any():
        return 0.0
    answer = max(float(ask.completion_tokens), ask.mean_completion_tokens)
    kv_share = np.maximum(short_kv, 0.0) / (table.batch * (ask.prompt_tokens + answer))
    wait_s: Floats = answer * step_s * np.maximum(table.short_slots, kv_share)
    return wait_s


def _late(predicted_s: Floats, promise_s: Floats | float) -> Floats:
    """`serving.late_probability` for columns."""
    return 0.5 + 0.5 * np.tanh(LOGISTIC * (predicted_s - promise_s) / (SIGMA * predicted_s + SIGMA_S))
