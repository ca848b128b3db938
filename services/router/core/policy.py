"""Which worker gets a request: filter, score in expected dollars for this one request, pick.

    score = use + energy + shadow + SLO risk - prefix saving

    use            device-seconds it will take * the worker's rate, under the timing in force and the worker's slowness:
                   its prefill alone, and of each decode step what it adds and its share of reading the weights. They
                   are shared by the batch it joins, or by as many requests like it as the worker can run within the
                   TPOT promise where that is more: what a worker could do for the money, so that an idle one is no
                   dearer than a busy one like it, and one that can batch little within the promise is.
    energy         the same seconds * watts * tariff.
    shadow         the same seconds * what the plan says one more device-second there is worth to others.
    SLO risk       what a late answer costs the house * the probability that TTFT or TPOT passes its promise, plus the
                   same for the requests it joins, as far as it makes them later. Beyond certainty it goes on growing
                   with lateness, so that among late workers the least late wins.
    prefix saving  the device-seconds that its cached prefix saves, in the same dollars.

Seconds are predicted for each worker, so unlike devices compare: the queue from the prompt tokens ahead (in chunks,
decode steps riding along), batch slots and KV cache that must come free; TPOT from the batch it joins and the prefills
that keep arriving there. `serving` derives a worker's figures, `scores` applies them to a request.

A pick among workers whose scores are within 2 % follows the plan's shares, then the shortest TTFT, then chance. Now and
then, within a budget, a worker that got nothing lately is tried instead (`exploration`).
"""

from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.mesh.errors import NoWorker, PromptTooLong, QueueFull
from services.router.core.exploration import MOST_LOSS, STALE_AFTER_S
from services.router.core.fleet import Fleet
from services.router.core.known_worker import KnownWorker
from services.router.core.plans import PlanInForce
from services.router.core.scores import Ask, Candidate, Scores, Shortlist
from services.router.core.table import Floats, ModelTable

CANDIDATES: Final = 16  # kept of each decision
_NEAR: Final = 0.02

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes, and against which alternatives; the shortlist includes the picked one.

    Attributes:
        workload_class: index into the plan's classes; None when it has none for the request.
        explored: the worker was tried, not picked for its score.
    """

    worker: KnownWorker
    picked: Candidate
    shortlist: Shortlist
    workload_class: int | None
    explored: bool


@dataclass(frozen=True, slots=True)
class _Field:
    """One decision's view of a model's workers."""

    table: ModelTable
    scores: Scores
    ask: Ask
    max_queue_s: float
    up: Mask
    now_s: float

    def because(self, row: int, lost: bool) -> str:
        """Why a row is not feasible."""
        worker = self.table.serving[row].worker
        beat = worker.beat
        if worker.name in self.ask.excluded:
            return "failed this request already"
        if lost:
            return f"lost: no heartbeat for {self.now_s - worker.heard_s:.1f} s"
        if worker.closed_because:
            return worker.closed_because
        if (waiting := beat.waiting + worker.requests) >= max(1, beat.max_waiting):
            return f"{waiting} requests wait already"
        if self.table.room_tokens[row] <= self.ask.prompt_tokens:
            return f"takes {int(self.table.room_tokens[row])} tokens, prompt and answer together"
        return f"would queue {self.scores.queue_s[row]:.1f} s, limit {self.max_queue_s:g} s"


def decide(fleet: Fleet, model: str, ask: Ask, *, max_queue_s: float, now_s: float, rng: Random) -> Decision:
    """Picks a worker that serves `model`.

    Args:
        max_queue_s: a worker predicted to queue the request longer is not picked.

    Raises:
        NoWorker: none is up, or all that are up failed this request already.
        PromptTooLong: no worker that is up takes so long a prompt.
        QueueFull: every worker that could is full; `retry_after_s` is when the least full may not be.
    """
    table = fleet.models.get(model)
    if table is None or not len(table):
        raise NoWorker(f"no worker serves model {model!r} at present; start one, or try again")
    scores = Scores(table, np.asarray(fleet.promises.band_tpots_s), ask)
    up = table.heard_s >= now_s - fleet.heartbeat_timeout_s
    if fleet.bus_silent(now_s):
        up = table.linked > 0
    if ask.excluded:
        up &= np.array([each.worker.name not in ask.excluded for each in table.serving])
    field = _Field(table, scores, ask, max_queue_s, up, now_s)
    feasible = up & (table.room_tokens > ask.prompt_tokens) & (scores.queue_s <= max_queue_s)
    if not feasible.any():  # the expected length may be wrong: only the lower bound refuses
        feasible = up & (table.room_tokens > ask.fewest_prompt_tokens) & (scores.queue_s <= max_queue_s)
        if not feasible.any():
            raise _refusal(fleet, field)

    ranked = np.where(feasible, scores.score_usd, np.inf)
    plan = fleet.plans.get(model)
    workload_class = (
        plan.class_of(ask.promise.name, ask.prompt_tokens, ask.completion_tokens) if plan is not None else None
    )
    tried = _to_try(table, ranked, ask, now_s) if fleet.exploration.affordable else None
    row = _pick(ranked, scores.ttft_s, table, plan=plan, workload_class=workload_class, rng=rng)
    explored = tried is not None and tried != row
    if explored and tried is not None:
        row = tried
    kept = _best_first(ranked, row)
    reasons = ["" if feasible[each] else field.because(each, _lost(fleet, field, each)) for each in kept]
    shortlist = scores.shortlist(table, kept, reasons)
    return Decision(
        table.serving[row].worker, shortlist.candidate(kept.index(row)), shortlist, workload_class, explored
    )


def _pick(
    ranked: Floats,
    ttft_s: Floats,
    table: ModelTable,
    *,
    plan: PlanInForce | None,
    workload_class: int | None,
    rng: Random,
) -> int:
    best = float(ranked.min())
    near: list[int] = np.flatnonzero(ranked <= best + _NEAR * abs(best)).tolist()
    if len(near) == 1:
        return near[0]
    if plan is not None and workload_class is not None:
        deficits = [plan.deficit(workload_class, table.serving[row].worker.pool) for row in near]
        most = max(deficits)
        near = [row for row, deficit in zip(near, deficits, strict=True) if deficit >= most - 1e-9]
    times_s: list[float] = ttft_s[near].tolist()
    soon_s = min(times_s) * (1 + _NEAR)
    near = [row for row, time_s in zip(near, times_s, strict=True) if time_s <= soon_s]
    return near[int(rng.random() * len(near))]


def _to_try(table: ModelTable, ranked: Floats, ask: Ask, now_s: float) -> int | None:
    """The best of the workers that got nothing lately, where trying it costs little."""
    most_usd = float(ranked.min()) + MOST_LOSS * ask.promise.miss_usd
    stale = (table.tried_s < now_s - STALE_AFTER_S) & (ranked <= most_usd)
    return int(np.argmin(np.where(stale, ranked, np.inf))) if stale.any() else None


def _best_first(ranked: Floats, picked: int) -> list[int]:
    rows = np.argpartition(ranked, CANDIDATES)[:CANDIDATES] if len(ranked) > CANDIDATES else np.arange(len(ranked))
    kept: list[int] = rows[np.argsort(ranked[rows], kind="stable")].tolist()
    if picked not in kept:
        kept[-1] = picked
    return kept


def _lost(fleet: Fleet, field: _Field, row: int) -> bool:
    return fleet.lost(field.table.serving[row].worker, field.now_s)


def _refusal(fleet: Fleet, field: _Field) -> NoWorker | PromptTooLong | QueueFull:
    table, ask = field.table, field.ask
    takes = {row for row in range(len(table)) if field.up[row] and not table.serving[row].worker.closed_because}
    if not takes:
        states = ", ".join(
            f"{serving.worker.name} {field.because(row, _lost(fleet, field, row))}"
            for row, serving in enumerate(table.serving[:8])
        )
        return NoWorker(f"no worker that serves model {table.model!r} takes requests at present ({states}); try again")
    beats = [table.serving[row].worker.beat for row in takes]
    longest = max(min(beat.context_tokens, beat.kv_capacity_tokens) for beat in beats)
    if longest <= ask.fewest_prompt_tokens:
        return PromptTooLong(
            f"the prompt has at least {ask.fewest_prompt_tokens} tokens, and model {table.model!r} takes {longest},"
            " prompt and answer together; shorten the prompt"
        )
    queue_s = min(float(field.scores.queue_s[row]) for row in takes)
    return QueueFull(
        f"every worker of model {table.model!r} is full (shortest predicted queue {queue_s:.1f} s, limit"
        f" {field.max_queue_s:g} s); try again",
        retry_after_s=min(30.0, max(1.0, queue_s - field.max_queue_s)),
    )
