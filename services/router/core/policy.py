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

A pick among workers whose scores are within 2 % follows the plan's shares, then who begins soonest, then chance. Now
and then, within a budget, a worker that got nothing lately is tried instead (`exploration`).
"""

from dataclasses import dataclass
from math import inf
from random import Random
from typing import Final

import numpy as np

from services.mesh.errors import NoWorker, PromptTooLong, QueueFull, Unsupported
from services.router.core.exploration import MOST_LOSS, STALE_AFTER_S
from services.router.core.fleet import Fleet
from services.router.core.known_worker import KnownWorker
from services.router.core.plans import PlanInForce
from services.router.core.ranking import Circumstances, Ranking, rank, score
from services.router.core.scores import Ask, Candidate, Shortlist, terms_of
from services.router.core.table import ModelTable

CANDIDATES: Final = 16  # kept of each decision
_NEAR: Final = 0.02
_TRIALS: Final = 16  # looked at when a worker is to be tried


@dataclass(slots=True)  # not frozen: a frozen one costs three times as much to make
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


@dataclass(slots=True)
class _Field:
    """One decision's view of a model's workers."""

    fleet: Fleet
    table: ModelTable
    ask: Ask
    around: Circumstances
    now_s: float

    def because(self, row: int) -> str:
        """Why a row is not feasible."""
        worker = self.table.serving[row].worker
        beat = worker.beat
        if row in self.around.excluded:
            return "failed this request already"
        if missing := [each for each in self.ask.features if each not in beat.features]:
            return f"its engine has no {', '.join(missing)}"
        if self.fleet.lost(worker, self.now_s):
            return f"lost: no heartbeat for {self.now_s - worker.heard_s:.1f} s"
        if worker.closed_because:
            return worker.closed_because
        if (waiting := beat.waiting + worker.requests) >= max(1, beat.max_waiting):
            return f"{waiting} requests wait already"
        if (room := min(beat.context_tokens, beat.kv_capacity_tokens)) <= self.ask.prompt_tokens:
            return f"takes {room} tokens, prompt and answer together"
        return f"would queue {self.queue_s(row):.1f} s, limit {self.around.max_queue_s:g} s"

    def queue_s(self, row: int) -> float:
        """How long a row is predicted to queue the request."""
        band_tpots_s = self.fleet.promises.band_tpots_s
        return float(terms_of(self.table.figures[row].tolist(), self.ask, 0.0, band_tpots_s).queue_s)


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
    if ask.features and not table.able(ask.features).any():
        raise Unsupported(
            f"{', '.join(ask.features)}: no engine that serves model {model!r} does that at present; leave it out, or"
            " ask for another model"
        )
    promises = fleet.promises
    silent = fleet.bus_silent(now_s)  # then sessions tell who lives
    around = Circumstances(
        ask.prompt_tokens,
        max_queue_s,
        -inf if silent else now_s - fleet.heartbeat_timeout_s,
        1.0 if silent else 0.0,
        [row for row, each in enumerate(table.serving) if each.worker.name in ask.excluded] if ask.excluded else (),
    )
    field = _Field(fleet, table, ask, around, now_s)
    ranking = rank(table, ask, promises, around)
    best_usd = min(ranking.usd)
    if best_usd == inf:  # the expected length may be wrong: only the lower bound refuses
        around.prompt_tokens = ask.fewest_prompt_tokens
        ranking = score(table, ask, promises, around, np.arange(len(table)))
        best_usd = min(ranking.usd)
        if best_usd == inf:
            raise _refusal(field)

    plan = fleet.plans.get(model)
    workload_class = (
        plan.class_of(ask.promise.name, ask.prompt_tokens, ask.completion_tokens) if plan is not None else None
    )
    place = _pick(field, ranking, best_usd * (1 + _NEAR), plan=plan, workload_class=workload_class, rng=rng)
    explored = False
    if fleet.exploration.due():
        tried = _to_try(field, best_usd + MOST_LOSS * ask.promise.miss_usd, rng)
        if tried is not None and tried != ranking.rows[place]:
            explored = True
            rows = np.append(ranking.rows[ranking.rows != tried], tried)
            ranking, place = score(table, ask, promises, around, rows), len(rows) - 1
    shortlist, place = _shortlist(field, ranking, place)
    worker, _ = shortlist.workers[place]
    return Decision(worker, place, shortlist, int(shortlist.cached[place]), workload_class, explored)


def _pick(
    field: _Field,
    ranking: Ranking,
    near_usd: float,
    *,
    plan: PlanInForce | None,
    workload_class: int | None,
    rng: Random,
) -> int:
    """The place in the ranking of one whose score is not above `near_usd`."""
    near = [place for place, usd in enumerate(ranking.usd) if usd <= near_usd]
    if len(near) == 1:
        return near[0]
    table = field.table
    if plan is not None and workload_class is not None:
        pools: list[int] = table.pools[ranking.rows].tolist()
        deficits = {
            pool: plan.deficit(workload_class, table.pool_names[pool]) for pool in {pools[place] for place in near}
        }
        most = max(deficits.values()) - 1e-9
        near = [place for place in near if deficits[pools[place]] >= most]
    soonest_s = ranking.soonest_s(field.ask)
    soon_s = min([soonest_s[place] for place in near]) * (1 + _NEAR)
    soon = [place for place in near if soonest_s[place] <= soon_s]
    return soon[int(rng.random() * len(soon))]


def _to_try(field: _Field, most_usd: float, rng: Random) -> int | None:
    """The best of some of the workers that got nothing lately, where trying it costs little."""
    rows = np.flatnonzero(field.table.tried_s < field.now_s - STALE_AFTER_S)
    if len(rows) > _TRIALS:
        start = int(rng.random() * len(rows))
        rows = rows.take(range(start, start + _TRIALS), mode="wrap")
    if not len(rows):
        return None
    stale = score(field.table, field.ask, field.fleet.promises, field.around, rows)
    best_usd = min(stale.usd)
    return int(stale.rows[stale.usd.index(best_usd)]) if best_usd <= most_usd else None


def _shortlist(field: _Field, ranking: Ranking, picked: int) -> tuple[Shortlist, int]:
    """The best of those that were scored, and the place of the picked one among them."""
    usd = ranking.usd
    kept = sorted(range(len(usd)), key=usd.__getitem__)[:CANDIDATES]
    if picked not in kept:
        kept[-1] = picked
    order, cached = np.array(kept), ranking.cached
    rows: list[int] = ranking.rows[order].tolist()
    serving = field.table.serving
    return Shortlist(
        [(each.worker, each.price) for each in [serving[row] for row in rows]],
        {place: field.because(row) for place, row in enumerate(rows) if usd[kept[place]] == inf},
        ranking.figures.take(order, axis=0).astype(np.float32),
        [0.0] * len(kept) if cached is None else [cached[place] for place in kept],
        field.ask,
        field.fleet.promises.band_tpots_s,
    ), kept.index(picked)


def _refusal(field: _Field) -> NoWorker | PromptTooLong | QueueFull:
    table, ask = field.table, field.ask
    workers = [serving.worker for serving in table.serving]
    takes = [
        row
        for row, worker in enumerate(workers)
        if row not in field.around.excluded
        and not field.fleet.lost(worker, field.now_s)
        and not worker.closed_because
        and set(ask.features) <= set(worker.beat.features)
    ]
    if not takes:
        states = ", ".join(f"{worker.name} {field.because(row)}" for row, worker in enumerate(workers[:8]))
        return NoWorker(f"no worker that serves model {table.model!r} takes requests at present ({states}); try again")
    beats = [workers[row].beat for row in takes]
    longest = max(min(beat.context_tokens, beat.kv_capacity_tokens) for beat in beats)
    if longest <= ask.fewest_prompt_tokens:
        return PromptTooLong(
            f"the prompt has at least {ask.fewest_prompt_tokens} tokens, and model {table.model!r} takes {longest},"
            " prompt and answer together; shorten the prompt"
        )
    queue_s = min(field.queue_s(row) for row in takes)
    return QueueFull(
        f"every worker of model {table.model!r} is full (shortest predicted queue {queue_s:.1f} s, limit"
        f" {field.around.max_queue_s:g} s); try again",
        retry_after_s=min(30.0, max(1.0, queue_s - field.around.max_queue_s)),
    )
