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
that keep arriving there. `serving` derives a worker's figures, `ranking` applies them
to a request, and `scores` explains what came of it.

A pick among workers whose scores are within 2 % follows the plan's shares, then the shortest TTFT, then chance. Now and
then, within a budget, a worker that got nothing lately is tried instead (`exploration`).
"""

from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.mesh.errors import NoWorker, PromptTooLong, QueueFull, Unsupported
from services.router.core.exploration import MOST_LOSS, STALE_AFTER_S
from services.router.core.fleet import Fleet
from services.router.core.known_worker import KnownWorker
from services.router.core.plans import PlanInForce
from services.router.core.ranking import Ranking, Rows, rank, within_reach
from services.router.core.scores import Ask, Candidate, Shortlist
from services.router.core.table import Floats, ModelTable

CANDIDATES: Final = 16  # kept of each decision
_NEAR: Final = 0.02

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes, and against which alternatives; the shortlist includes the picked one.

    Attributes:
        place: of the picked worker in the shortlist.
        cached_tokens: of the prompt, expected to be cached there.
        workload_class: index into the plan's classes; None when it has none for the request.
        explored: the worker was tried, not picked for its score.
    """

    worker: KnownWorker
    place: int
    shortlist: Shortlist
    cached_tokens: int
    workload_class: int | None
    explored: bool

    @property
    def picked(self) -> Candidate:
        """The terms of the picked worker, worked out anew each time."""
        return self.shortlist.candidate(self.place)


@dataclass(frozen=True, slots=True)
class _Field:
    """One decision's view of a model's workers."""

    fleet: Fleet
    table: ModelTable
    ranking: Ranking
    ask: Ask
    max_queue_s: float
    up: Mask
    now_s: float

    def because(self, row: int) -> str:
        """Why a row is not feasible."""
        worker = self.table.serving[row].worker
        beat = worker.beat
        if worker.name in self.ask.excluded:
            return "failed this request already"
        if missing := _missing(worker, self.ask):
            return f"its engine has no {', '.join(missing)}"
        if self.fleet.lost(worker, self.now_s):
            return f"lost: no heartbeat for {self.now_s - worker.heard_s:.1f} s"
        if worker.closed_because:
            return worker.closed_because
        if (waiting := beat.waiting + worker.requests) >= max(1, beat.max_waiting):
            return f"{waiting} requests wait already"
        if self.table.room_tokens[row] <= self.ask.prompt_tokens:
            return f"takes {int(self.table.room_tokens[row])} tokens, prompt and answer together"
        return f"would queue {self.ranking.queue_s[row]:.1f} s, limit {self.max_queue_s:g} s"


def decide(fleet: Fleet, model: str, ask: Ask, *, max_queue_s: float, now_s: float, rng: Random) -> Decision:
    """Picks a worker that serves `model`.

    Args:
        max_queue_s: a worker predicted to queue the request longer is not picked.

    Raises:
        Unsupported: no worker of the model has an engine that can do what the request asks for.
        NoWorker: none is up, or all that are up failed this request already.
        PromptTooLong: no worker that is up takes so long a prompt.
        QueueFull: every worker that could is full; `retry_after_s` is when the least full may not be.
    """
    table = fleet.models.get(model)
    if table is None or not len(table):
        raise NoWorker(f"no worker serves model {model!r} at present; start one, or try again")
    ranking = rank(table, ask)
    up = table.linked > 0 if fleet.bus_silent(now_s) else table.heard_s >= now_s - fleet.heartbeat_timeout_s
    if ask.excluded:
        up &= np.array([each.worker.name not in ask.excluded for each in table.serving])
    if ask.features:
        up &= _able(table, ask)
    field = _Field(fleet, table, ranking, ask, max_queue_s, up, now_s)
    feasible = table.room_tokens > ask.prompt_tokens
    feasible &= up
    feasible &= ranking.queue_s <= max_queue_s
    if not feasible.any():  # the expected length may be wrong: only the lower bound refuses
        feasible = up & (table.room_tokens > ask.fewest_prompt_tokens) & (ranking.queue_s <= max_queue_s)
        if not feasible.any():
            raise _refusal(field)

    least_usd = ranking.least_usd
    least_usd[~feasible] = np.inf
    rows, usd = within_reach(ranking, least_usd, fleet.promises.band_tpots_s, _NEAR)
    plan = fleet.plans.get(model)
    workload_class = (
        plan.class_of(ask.promise.name, ask.prompt_tokens, ask.completion_tokens) if plan is not None else None
    )
    best_usd = float(usd.min())
    row = _pick(rows[usd <= best_usd * (1 + _NEAR)], ranking.ttft_s, table, plan, workload_class, rng=rng)
    explored = False
    if fleet.exploration.affordable:
        tried = _to_try(table, least_usd, best_usd, ask, now_s)
        explored = tried is not None and tried != row
        row = tried if tried is not None else row
    kept = _best_first(rows, usd, least_usd, row)
    shortlist = _shortlist(field, kept, feasible)
    place = kept.index(row)
    return Decision(table.serving[row].worker, place, shortlist, int(shortlist.cached[place]), workload_class, explored)


def _able(table: ModelTable, ask: Ask) -> Mask:
    """Who can do what the request asks for. Raises Unsupported: nobody."""
    able = np.array([not _missing(each.worker, ask) for each in table.serving])
    if not able.any():
        raise Unsupported(
            f"{', '.join(ask.features)}: no engine that serves model {table.model!r} does that at present; leave it"
            " out, or ask for another model"
        )
    return able


def _missing(worker: KnownWorker, ask: Ask) -> list[str]:
    return [each for each in ask.features if each not in worker.beat.features]


def _pick(
    near: Rows, ttft_s: Floats, table: ModelTable, plan: PlanInForce | None, workload_class: int | None, *, rng: Random
) -> int:
    if len(near) == 1:
        return int(near[0])
    if plan is not None and workload_class is not None:
        pools = table.pools[near]
        numbers = set(pools.tolist())
        if len(numbers) > 1:
            deficits = {each: plan.deficit(workload_class, table.pool_names[each]) for each in numbers}
            most = max(deficits.values()) - 1e-9
            near = near[np.isin(pools, [each for each, deficit in deficits.items() if deficit >= most])]
    times_s = ttft_s[near]
    near = near[times_s <= times_s.min() * (1 + _NEAR)]
    return int(near[int(rng.random() * len(near))])


def _to_try(table: ModelTable, least_usd: Floats, best_usd: float, ask: Ask, now_s: float) -> int | None:
    """The best of the workers that got nothing lately, where trying it costs little."""
    stale = (table.tried_s < now_s - STALE_AFTER_S) & (least_usd <= best_usd + MOST_LOSS * ask.promise.miss_usd)
    return int(np.argmin(np.where(stale, least_usd, np.inf))) if stale.any() else None


def _best_first(rows: Rows, usd: Floats, least_usd: Floats, picked: int) -> list[int]:
    """At most `CANDIDATES` rows: those within reach by their scores, then others by what theirs is at least."""
    if len(rows) > CANDIDATES:
        best = np.argpartition(usd, CANDIDATES)[:CANDIDATES]
        rows, usd = rows[best], usd[best]
    kept: list[int] = rows[usd.argsort(kind="stable")].tolist()
    if len(kept) < CANDIDATES and len(kept) < len(least_usd):
        if len(least_usd) > CANDIDATES:
            others = np.argpartition(least_usd, CANDIDATES)[:CANDIDATES]
            others = others[least_usd[others].argsort(kind="stable")]
        else:
            others = least_usd.argsort(kind="stable")
        seen = set(kept)
        kept += [row for row in others.tolist() if row not in seen][: CANDIDATES - len(kept)]
    if picked not in kept:
        kept[-1] = picked
    return kept


def _shortlist(field: _Field, kept: list[int], feasible: Mask) -> Shortlist:
    table, cached = field.table, field.ranking.cached
    fits: list[bool] = feasible[kept].tolist()
    return Shortlist(
        workers=tuple([(serving.worker, serving.price) for serving in [table.serving[row] for row in kept]]),
        reasons=tuple(["" if fit else field.because(row) for row, fit in zip(kept, fits, strict=True)]),
        cells=table.cells[:, kept],
        cached=tuple(cached[kept].tolist()) if cached is not None else (0.0,) * len(kept),
        ask=field.ask,
        band_tpots_s=field.fleet.promises.band_tpots_s,
    )


def _refusal(field: _Field) -> NoWorker | PromptTooLong | QueueFull:
    table, ask = field.table, field.ask
    takes = {row for row in range(len(table)) if field.up[row] and not table.serving[row].worker.closed_because}
    if not takes:
        states = ", ".join(
            f"{serving.worker.name} {field.because(row)}" for row, serving in enumerate(table.serving[:8])
        )
        return NoWorker(f"no worker that serves model {table.model!r} takes requests at present ({states}); try again")
    beats = [table.serving[row].worker.beat for row in takes]
    longest = max(min(beat.context_tokens, beat.kv_capacity_tokens) for beat in beats)
    if longest <= ask.fewest_prompt_tokens:
        return PromptTooLong(
            f"the prompt has at least {ask.fewest_prompt_tokens} tokens, and model {table.model!r} takes {longest},"
            " prompt and answer together; shorten the prompt"
        )
    queue_s = min(float(field.ranking.queue_s[row]) for row in takes)
    return QueueFull(
        f"every worker of model {table.model!r} is full (shortest predicted queue {queue_s:.1f} s, limit"
        f" {field.max_queue_s:g} s); try again",
        retry_after_s=min(30.0, max(1.0, queue_s - field.max_queue_s)),
    )
