"""Every worker of one model scored for one request, in expected dollars; see `policy` for what the terms mean.

In: the model's table and the ask. Out: columns of seconds, probabilities and dollars, and the terms of single rows.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.router.core.known_worker import KnownWorker
from services.router.core.request import Promise
from services.router.core.serving import LOGISTIC, SIGMA, SIGMA_S, DevicePrice
from services.router.core.table import Floats, ModelTable

_LATENESS: Final = 0.1  # of a miss, per promise that an answer is late


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is to be placed.

    Attributes:
        prompt_tokens, completion_tokens: expected, >= 1.
        fewest_prompt_tokens: a lower bound that holds for certain.
        mean_completion_tokens: of the model's other requests, >= 1.
        cached_tokens: expected, by incarnation of worker.
        excluded: names of workers that failed this request already.
    """

    prompt_tokens: int
    fewest_prompt_tokens: int
    completion_tokens: int
    mean_completion_tokens: float
    promise: Promise
    cached_tokens: Mapping[int, int]
    excluded: Set[str] = frozenset()


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

    def __init__(self, table: ModelTable, band_tpots_s: Floats, ask: Ask) -> None:
        prompt, answer = ask.prompt_tokens, ask.completion_tokens
        alone_s, chunks = _prefill_s(table, prompt)
        alone_s += table.attended_s * prompt * ((prompt + 1) / 2)
        self.cached: Floats | None = None
        fresh_s = alone_s
        if ask.cached_tokens:
            self.cached = _cached(table, ask)
            fresh_s, chunks = _prefill_s(table, prompt - self.cached)
            fresh_s += table.attended_s * (prompt - self.cached) * ((prompt + 1 + self.cached) / 2)
        self.saved_s = alone_s - fresh_s

        length = prompt + answer / 2  # tokens of KV cache that it holds on average
        reads_s = table.step_s_per_kv_token * length
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
        self.risk_usd = ask.promise.miss_usd * (miss + _LATENESS * (late - 1.0))
        if table.at_stake_usd.any():
            there_s = table.there_tpot_s + each_s + fresh_s / ask.mean_completion_tokens
            late_after = _late(there_s, band_tpots_s[:, np.newaxis])
            self.risk_usd += (table.at_stake_usd * (late_after - table.late_before)).sum(axis=0)
        self.score_usd = (self.device_s - self.saved_s) * table.usd_per_s + self.risk_usd

    def shortlist(self, table: ModelTable, rows: Sequence[int], reasons: Sequence[str]) -> "Shortlist":
        """What a record keeps of the rows, and why those that were not feasible were not."""
        every = (self.device_s, self.saved_s, self.risk_usd, self.queue_s, self.ttft_s, self.tpot_s, self.miss)
        terms = np.array(every)[:, rows]
        workers = tuple((table.serving[row].worker, table.serving[row].price) for row in rows)
        cached = tuple(self.cached[list(rows)].tolist()) if self.cached is not None else (0,) * len(rows)
        return Shortlist(workers, tuple(reasons), terms, cached)


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Candidates, best first, in the form that costs least to keep: most are never asked for."""

    _workers: tuple[tuple[KnownWorker, DevicePrice], ...]
    _reasons: tuple[str, ...]
    _terms: Floats
    _cached: tuple[float, ...]

    def __len__(self) -> int:
        return len(self._workers)

    def names(self) -> list[str]:
        return [worker.name for worker, _ in self._workers]

    def candidate(self, place: int) -> Candidate:
        """The terms of the candidate at `place`, 0 being the best."""
        worker, price = self._workers[place]
        device_s, saved_s, risk_usd, queue_s, ttft_s, tpot_s, miss = self._terms[:, place].tolist()
        use_usd = device_s * price.use_usd_per_s
        energy_usd = device_s * price.energy_usd_per_s
        shadow_usd = device_s * price.shadow_usd_per_s
        saving_usd = saved_s * price.usd_per_s
        return Candidate(
            worker=worker.name,
            pool=worker.pool,
            accelerator=worker.beat.accelerator,
            rejected_because=self._reasons[place],
            score_usd=use_usd + energy_usd + shadow_usd + risk_usd - saving_usd,
            use_usd=use_usd,
            energy_usd=energy_usd,
            shadow_usd=shadow_usd,
            slo_risk_usd=risk_usd,
            prefix_saving_usd=saving_usd,
            queue_s=queue_s,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            miss_probability=miss,
            cached_tokens=int(self._cached[place]),
        )


def _cached(table: ModelTable, ask: Ask) -> Floats:
    most = ask.prompt_tokens - 1  # the last token is always computed: its output is the first answer token
    held = ask.cached_tokens
    return np.array([min(most, held.get(each.worker.incarnation, 0)) for each in table.serving], dtype=np.float64)


def _prefill_s(table: ModelTable, tokens: Floats | int) -> tuple[Floats, Floats]:
    """Seconds to compute `tokens` in chunks, without attention; and the chunks."""
    chunks = np.ceil(tokens * table.chunks_per_token)
    return np.maximum(chunks * table.weights_s, chunks * table.chunk_overhead_s + tokens * table.token_s), chunks


def _batch_within(table: ModelTable, tpot_s: float, each_s: Floats, length: float) -> Floats:
    """How many requests like this one a worker can run at once and keep their TPOT promise, by memory and by time."""
    by_time = (tpot_s / table.stretch - table.weights_s) / (each_s + 1e-9)  # a fit may find that they add nothing
    by_memory = np.minimum(table.kv_capacity_tokens / length, table.max_batch)
    return np.maximum(np.minimum(by_time, by_memory), 1.0)


def _wait_s(table: ModelTable, ask: Ask, step_s: Floats) -> Floats | float:
    """Seconds until a batch slot and KV cache are free: answers that must end first, at the rate at which they do."""
    short_kv = table.short_kv_tokens + (ask.prompt_tokens + ask.completion_tokens)
    if short_kv.max() <= 0 and not table.short_slots.any():
        return 0.0
    answer = max(float(ask.completion_tokens), ask.mean_completion_tokens)
    kv_share = np.maximum(short_kv, 0.0) / (table.batch * (ask.prompt_tokens + answer))
    return answer * step_s * np.maximum(table.short_slots, kv_share)


def _late(predicted_s: Floats, promise_s: Floats | float) -> Floats:
    """`serving.late_probability` for columns."""
    return 0.5 + 0.5 * np.tanh(LOGISTIC * (predicted_s - promise_s) / (SIGMA * predicted_s + SIGMA_S))
