"""Which worker gets a request: filter, score in expected dollars for this one request, pick.

    score = use + energy + shadow + SLO risk - prefix saving

    use            device-seconds it will take * the worker's rate, under the timing in force and the worker's slowness:
                   its prefill alone, and of each decode step what it adds and its share of reading the weights. They
                   are shared by the batch it joins, or by as many requests like it as the worker can run within the
                   TPOT promise where that is more: what a worker could do for the money, so that an idle one is no
                   dearer than a busy one like it, and one that can batch little within the promise is.
    energy         the same seconds * watts * tariff.
    shadow         the same seconds * what one more device-second there is worth to others: as the plan says, and as it
                   rises between plans with how much of the worker's time is promised (`arrivals`).
    SLO risk       what a late answer costs the house * the probability that TTFT or TPOT passes its promise, plus the
                   same for the requests it joins, as far as it makes them later. A late answer costs what its class
                   says, and a multiple of what computing it takes. Beyond certainty it goes on growing
                   with lateness, so that among late workers the least late wins.
    prefix saving  the device-seconds that its cached prefix saves, in the same dollars.

Seconds are predicted for each worker, so unlike devices compare: the queue from the prompt tokens ahead (in chunks,
decode steps riding along), batch slots and KV cache that must come free; TPOT from the batch it joins and the prefills
that keep arriving there. `serving` writes down what is known of a worker, `scores` says what follows from it for a
request, and `ranking` works that out for all.

A pick among workers whose scores are within 2 % follows the plan's shares, then who begins soonest, then chance; where
many are, it looks at some of them, so that routers that know the same don't all pick the same. Now and then, within a
budget, a worker that got nothing lately is tried instead (`exploration`).
"""

from bisect import bisect_right
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Final

import numpy as np

from services.mesh.confines import Confines
from services.mesh.errors import NoWorker, NoWorkerAllowed, PromptTooLong, QueueFull, Unsupported
from services.router.core.exploration import MOST_LOSS, STALE_AFTER_S
from services.router.core.fleet import Fleet
from services.router.core.known_worker import KnownWorker
from services.router.core.lowest import lowest
from services.router.core.plans import PlanInForce
from services.router.core.promises import Promises
from services.router.core.ranking import Circumstances, outlook, rank, ranking_loop
from services.router.core.scores import Ask, Terms, terms_of
from services.router.core.shortlist import Candidate, Shortlist
from services.router.core.table import ModelTable, Rows

CANDIDATES: Final = 16  # kept of each decision
_NEAR: Final = 0.02
_LOOKED_AT: Final = 32  # of the rows that are near the best, or are to be tried


@dataclass(slots=True)  # not frozen: a frozen one costs three times as much to make
class Decision:
    """Where a request goes, and against which alternatives; the shortlist includes the picked one.

    Attributes:
        place: of the picked worker in the shortlist.
        cached_tokens: of the prompt, expected to be cached there.
        workload_class: index into the plan's classes; None when it has none for the request.
        plan: that it follows; None when there is none.
        explored: the worker was tried, not picked for its score.
    """

    worker: KnownWorker
    place: int
    shortlist: Shortlist
    cached_tokens: int
    workload_class: int | None
    explored: bool
    plan: PlanInForce | None = None

    @property
    def picked(self) -> Candidate:
        """The terms of the picked worker, worked out anew each time."""
        return self.shortlist.candidate(self.place)

    @property
    def outlook(self) -> Terms:
        """What the formulas say of it, to single precision."""
        shortlist = self.shortlist
        return outlook(shortlist.band_tpots_s).of(shortlist.figures, self.place, shortlist.ask)


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
        if outside := self.ask.confines.missing(worker.site):
            return f"is not within {outside}"
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
        return float(terms_of(self.table.figures[:, row].tolist(), self.ask, band_tpots_s).queue_s)


def make_ready(promises: Promises) -> None:
    """Compiles what a pick calls, within a tenth of a second, so that no request waits for it."""
    ranking_loop(promises.band_tpots_s)
    outlook(promises.band_tpots_s)
    lowest(CANDIDATES)


def decide(
    fleet: Fleet, model: str, ask: Ask, *, max_queue_s: float, now_s: float, rng: Random, least_spare: float = 0.0
) -> Decision:
    """Picks a worker that serves `model`.

    Args:
        max_queue_s: a worker predicted to queue the request longer is not picked.
        least_spare: 0 to 1; nor is one that would have less of its KV cache or of its batch slots left.

    Raises:
        Unsupported: no worker of the model has an engine that can do what the request asks for.
        NoWorkerAllowed: none of the model's is where the request may be computed; counts those that keep each
            constraint.
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
    if ask.confines and not table.admitted(ask.confines).any():
        raise _outside(table, ask.confines)
    fleet.write_down(now_s)
    if ask.trial is None:
        return _decide(fleet, table, ask, max_queue_s, least_spare, now_s=now_s, rng=rng)
    with table.dearer(ask.trial.dearer_usd_per_s(table.pool_names)):
        return _decide(fleet, table, ask, max_queue_s, least_spare, now_s=now_s, rng=rng)


def _decide(
    fleet: Fleet, table: ModelTable, ask: Ask, max_queue_s: float, least_spare: float, *, now_s: float, rng: Random
) -> Decision:
    promises = fleet.promises
    silent = fleet.bus_silent(now_s)  # then sessions tell who lives
    around = Circumstances(
        ask.prompt_tokens,
        max_queue_s,
        -inf if silent else now_s - fleet.heartbeat_timeout_s,
        silent,
        [row for row, each in enumerate(table.serving) if each.worker.name in ask.excluded] if ask.excluded else (),
        least_spare,
    )
    field = _Field(fleet, table, ask, around, now_s)
    rank(table, ask, promises, around)
    rows, best_usd = _best(table)
    if best_usd[0] == inf:  # the expected length may be wrong: only the lower bound refuses
        around.prompt_tokens = ask.fewest_prompt_tokens
        rank(table, ask, promises, around)
        rows, best_usd = _best(table)
        if best_usd[0] == inf:
            raise _refusal(field)

    plan = ask.trial.plan if ask.trial is not None else fleet.plans.get(table.model)
    workload_class = (
        plan.class_of(
            ask.promise.name, ask.prompt_tokens, ask.completion_tokens, str(ask.confines) if ask.confines else ""
        )
        if plan is not None
        else None
    )
    near_usd = best_usd[0] * (1 + _NEAR)
    if best_usd[-1] > near_usd or len(rows) == len(table):
        near = sorted(rows[: bisect_right(best_usd, near_usd)])  # so that chance goes by rows, not by scores
    else:
        near = _some(np.flatnonzero(table.usd <= near_usd), rng)
    row = near[0] if len(near) == 1 else _pick(table, near, plan, workload_class, rng)
    explored = False
    if fleet.exploration.due():
        tried = _to_try(table, best_usd[0] + MOST_LOSS * ask.promise.miss_usd, now_s, rng)
        if tried is not None and tried != row:
            explored, row = True, tried

    if row not in rows:
        rows[-1], best_usd[-1] = row, table.usd.item(row)
    place, serving = rows.index(row), table.serving
    shortlist = Shortlist(
        [serving[each].worker for each in rows],
        [serving[each].price for each in rows],
        {at: field.because(rows[at]) for at, usd in enumerate(best_usd) if usd == inf} if best_usd[-1] == inf else {},
        table.shown(rows),
        ask,
        promises.band_tpots_s,
    )
    cached_tokens = shortlist.cached_tokens(place)
    return Decision(serving[row].worker, place, shortlist, cached_tokens, workload_class, explored, plan)


def _best(table: ModelTable) -> tuple[list[int], list[float]]:
    """The best rows, best first, with their scores; then those that are not feasible, where there is room."""
    count = len(table)
    rows, usd = lowest(CANDIDATES)(table.results_at[0], count)
    if (missing := min(CANDIDATES, count) - len(rows)) > 0:
        rows += np.flatnonzero(table.usd == inf)[:missing].tolist()
        usd += [inf] * missing
    return rows, usd


def _pick(table: ModelTable, near: list[int], plan: PlanInForce | None, workload_class: int | None, rng: Random) -> int:
    """One of the rows that are about as good."""
    if plan is not None and workload_class is not None:
        pools, names = table.pools[near].tolist(), table.pool_names
        if len(there := set(pools)) > 1:
            deficits = {pool: plan.deficit(workload_class, names[pool]) for pool in there}
            most = max(deficits.values()) - 1e-9
            near = [row for row, pool in zip(near, pools, strict=True) if deficits[pool] >= most]
    soonest_s = list(map(table.soonest_s.item, near))
    soon_s = min(soonest_s) * (1 + _NEAR)
    soon = [row for row, each in zip(near, soonest_s, strict=True) if each <= soon_s]
    return soon[int(rng.random() * len(soon))]


def _to_try(table: ModelTable, most_usd: float, now_s: float, rng: Random) -> int | None:
    """The best of some of the workers that got nothing lately, where trying it costs little."""
    rows = _some(np.flatnonzero(table.tried_s < now_s - STALE_AFTER_S), rng)
    if not rows:
        return None
    usd = table.usd[rows].tolist()
    best_usd = min(usd)
    return rows[usd.index(best_usd)] if best_usd <= most_usd else None


def _some(rows: Rows, rng: Random) -> list[int]:
    """As many as are looked at one by one, from all over the table: workers of a pool may stand side by side."""
    if len(rows) > _LOOKED_AT:
        step = -(-len(rows) // _LOOKED_AT)
        rows = rows[int(rng.random() * step) :: step]
    some: list[int] = rows.tolist()
    return some


def _outside(table: ModelTable, confines: Confines) -> NoWorkerAllowed:
    workers = len(table)
    kept = [f"{each} is kept by {int(table.admitted(each).sum())} of {workers} workers" for each in confines.parts()]
    together = "" if len(kept) == 1 else ", together by none"
    return NoWorkerAllowed(
        f"no worker of model {table.model!r} may serve this request, which its tenant or key confines to {confines}:"
        f" {'; '.join(kept)}{together}; start one there, or have the confines changed"
    )


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
        and ask.confines.admits(worker.site)
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
