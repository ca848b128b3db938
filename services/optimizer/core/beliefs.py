"""What the optimizer believes at a moment, folded from every event it hears, and whether that calls for a new plan.

In: events of the bus with the second they arrived at. Out: a `Snapshot` to plan from; and, against the `Basis` of the
plan in force, the reason to plan again at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from services.mesh.accelerators import Catalogue
from services.mesh.cost_settings import Tariff, tariff_of
from services.mesh.events import (
    Event,
    LatencyObserved,
    RequestAdmitted,
    RequestFinished,
    RoutingPlan,
    TokensGenerated,
    WorkerHeartbeat,
)
from services.mesh.settings import ElasticPool
from services.mesh.timing import Timing
from services.optimizer.core.capacity import Capacity, Pace, typical_request_s
from services.optimizer.core.caps import NO_CAPS, Caps
from services.optimizer.core.decisions import Decisions
from services.optimizer.core.demand import Demand, Group
from services.optimizer.core.elastic import Elasticity
from services.optimizer.core.fleet import Fleet, Roster
from services.optimizer.core.plan import KWH_PER_J, Pool, Problem
from services.optimizer.core.service_curve import Promise, Station
from services.optimizer.core.window import ModelWindow, Realised, sums_by_model

_FORGET_EVERY_S: Final = 60.0
_MOST_MODELS: Final = 4096


class Trigger(StrEnum):
    """Why a plan was made; what `Evidence.trigger` says."""

    START = "start"
    INTERVAL = "interval"
    DEMAND = "demand"
    CAPACITY = "capacity"
    FLEET = "fleet"
    WHAT_IF = "what-if"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What events do not tell; from the settings.

    Attributes:
        elastic: pools that may grow and shrink.
        tariffs: what energy costs and emits where and when, over `tariff_usd_per_kwh` and `grid_g_per_kwh`.
    """

    promises: Mapping[str, Promise]
    target_utilisation: float
    tariff_usd_per_kwh: float
    forgetting: float
    window_s: float
    marked_change: float
    heartbeat_timeout_s: float
    caps: Caps = NO_CAPS
    grid_g_per_kwh: float = 0.0
    tariffs: tuple[Tariff, ...] = ()
    elastic: tuple[ElasticPool, ...] = ()


@dataclass(frozen=True, slots=True)
class Basis:
    """What a plan rests on, in the few figures whose change is news.

    Attributes:
        fleet: `Fleet.signature`.
        demand: requests per second by model and SLO class.
        capacity: typical requests per second by pool and model.
    """

    fleet: frozenset[tuple[object, ...]]
    demand: Mapping[Group, float]
    capacity: Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Seen:
    """One model's evidence at a moment."""

    latency_events: int
    token_events: int
    request_events: int
    traceparents: tuple[str, ...]
    realised: Realised


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a plan is made from; holds nothing that later events change."""

    problem: Problem
    basis: Basis
    models: tuple[str, ...]
    paces: Mapping[tuple[str, str], Pace]
    seen: Mapping[str, Seen]
    window_s: float
    elastic: tuple[Elasticity, ...] = ()


class Beliefs:
    """Folds events. Not thread-safe: one thread hears and takes snapshots.

    Attributes:
        decisions: what plans predicted, and what came true.
    """

    def __init__(self, catalogue: Catalogue, assumptions: Assumptions, started_s: float) -> None:
        self.decisions = Decisions()
        self._assumptions = assumptions
        self._started_s = started_s
        self._fleet = Fleet(catalogue, assumptions.heartbeat_timeout_s)
        self._capacity = Capacity(catalogue, assumptions.forgetting)
        self._demand = Demand(assumptions.window_s, tuple(assumptions.promises), started_s)
        self._windows: dict[str, ModelWindow] = {}
        self._refitted: set[tuple[str, str]] = set()  # pools and models with steps since `changed` last looked
        self._forgot_s = started_s

    def heard(self, event: Event, traceparent: str, now_s: float) -> None:
        """Folds one event; `traceparent` is the context it was published under."""
        match event:
            case WorkerHeartbeat():
                self._fleet.heard(event, now_s)
            case LatencyObserved():
                if self._capacity.observed(event, now_s):
                    self._refitted.add((event.pool, event.model))
                window = self._window(event.model)
                window.latency_events.add(now_s)
                window.traced(traceparent, now_s)
            case TokensGenerated():
                self._generated(event, now_s)
            case RequestAdmitted():
                self._demand.admitted(event, now_s)
                self.decisions.admitted(event.request_id, event.model, event.plan)
                self._window(event.model).request_events.add(now_s)
            case RequestFinished():
                self._demand.finished(event, now_s)
                self.decisions.finished(event.request_id, slo_met=event.slo_met)
                self._window(event.model).request_events.add(now_s)
            case _:
                pass  # credit and plans say nothing about work
        if now_s - self._forgot_s >= _FORGET_EVERY_S:
            self._forget(now_s)

    def adopt(self, plan: RoutingPlan) -> None:
        """Starts from what an earlier optimizer had learnt and published."""
        for pool in plan.pools:
            learnt = pool.timing
            timing = Timing(
                prefill_overhead_s=learnt.prefill_overhead_s,
                prefill_s_per_token=learnt.prefill_s_per_token,
                prefill_s_per_attended_token=learnt.prefill_s_per_attended_token,
                decode_base_s=learnt.decode_base_s,
                decode_s_per_sequence=learnt.decode_s_per_sequence,
                decode_s_per_kv_token=learnt.decode_s_per_kv_token,
            )
            if pool.observations and 0 < typical_request_s(timing) < float("inf"):
                self._capacity.adopt(pool.pool, pool.accelerator, plan.model, timing)

    def snapshot(self, now_s: float) -> Snapshot:
        """What is believed as of `now_s`, complete and detached."""
        rosters = self._fleet.rosters(now_s)
        paces = {
            (roster.pool, model): self._pace(roster, model, now_s) for roster in rosters for model in roster.models
        }
        classes = tuple(self._demand.classes(now_s))
        models = sorted(self._fleet.models() | {each.key.model for each in classes})
        return Snapshot(
            problem=Problem(
                pools=tuple(_pool(roster, paces, self._assumptions) for roster in rosters),
                classes=classes,
                promises=self._assumptions.promises,
                target_utilisation=self._assumptions.target_utilisation,
                tariff_usd_per_kwh=self._assumptions.tariff_usd_per_kwh,
                caps=self._assumptions.caps,
            ),
            basis=Basis(
                self._fleet.signature(now_s),
                self._demand.levels(now_s),
                {pool_model: _capacity_rps(pace) for pool_model, pace in paces.items()},
            ),
            models=tuple(models),
            paces=paces,
            seen={model: self._seen(model, now_s) for model in models},
            window_s=self._assumptions.window_s,
            elastic=self._elastic(rosters, paces, now_s),
        )

    def changed(self, basis: Basis, now_s: float) -> Trigger | None:
        """The news since `basis`, the gravest first; None when a plan can wait for its interval."""
        if self._fleet.signature(now_s) != basis.fleet:
            return Trigger.FLEET
        refitted, self._refitted = self._refitted, set()
        if refitted:
            rosters = {roster.pool: roster for roster in self._fleet.rosters(now_s)}
            for pool, model in refitted:
                before = basis.capacity.get((pool, model))
                if before is None or pool not in rosters:
                    continue  # its worker does not count
                after = _capacity_rps(self._pace(rosters[pool], model, now_s))
                if abs(after - before) >= self._assumptions.marked_change * before:
                    return Trigger.CAPACITY
        if self._demand.changed(basis.demand, self._assumptions.marked_change, now_s):
            return Trigger.DEMAND
        return None

    def _elastic(
        self, rosters: Sequence[Roster], paces: Mapping[tuple[str, str], Pace], now_s: float
    ) -> tuple[Elasticity, ...]:
        """What one replica is of each pool that may grow: as those that are there, else as the catalogue has it."""
        known = {roster.pool: roster for roster in rosters}
        found = []
        for each in self._assumptions.elastic:
            roster = known.get(each.pool)
            if roster is not None:
                pool = _pool(roster, paces, self._assumptions)
            else:
                unborn = self._fleet.unborn(each.pool, each.accelerator, each.models)
                started = {
                    (each.pool, model): self._capacity.pace(each.pool, each.accelerator, model, ("",), now_s)
                    for model in unborn.models
                }
                pool = _pool(unborn, started, self._assumptions)
            found.append(Elasticity(_one_of(pool), each.least, each.most, each.cold_start_s))
        return tuple(found)

    def _pace(self, roster: Roster, model: str, now_s: float) -> Pace:
        return self._capacity.pace(roster.pool, roster.accelerator, model, roster.workers, now_s)

    def _seen(self, model: str, now_s: float) -> Seen:
        window = self._window(model)
        return Seen(
            window.latency_events.total(now_s),
            window.token_events.total(now_s),
            window.request_events.total(now_s),
            window.traceparents(now_s),
            window.realised(now_s),
        )

    def _generated(self, event: TokensGenerated, now_s: float) -> None:
        usd_per_hour = self._fleet.rate_usd_per_hour(event.worker, event.accelerator)
        for model, (tokens, device_s, energy_j) in sums_by_model(event).items():
            window = self._window(model)
            window.token_events.add(now_s)
            usd = device_s * usd_per_hour / 3600 + energy_j * self._assumptions.tariff_usd_per_kwh * KWH_PER_J
            window.generated(tokens, usd, now_s)
        usd_per_ns, usd_per_uj = usd_per_hour / 3.6e12, self._assumptions.tariff_usd_per_kwh * KWH_PER_J / 1e6
        for entry in event.entries:
            if min(entry.device_ns, entry.energy_uj) >= 0:
                usd = entry.device_ns * usd_per_ns + entry.energy_uj * usd_per_uj
                self.decisions.used(entry.request_id, usd)

    def _window(self, model: str) -> ModelWindow:
        window = self._windows.get(model)
        if window is None:
            while len(self._windows) >= _MOST_MODELS:  # whoever works is back with its next event
                del self._windows[next(iter(self._windows))]
            window = self._windows[model] = ModelWindow(self._assumptions.window_s, self._started_s)
        return window

    def _forget(self, now_s: float) -> None:
        self._forgot_s = now_s
        self._fleet.forget_gone(now_s)
        self._capacity.forget_others(self._fleet.workers())
        self._demand.forget_silent(now_s)
        known = self._fleet.models() | {model for model, _ in self._demand.levels(now_s)}
        self.decisions.forget(known)
        self._windows = {model: window for model, window in self._windows.items() if model in known}


def _pool(roster: Roster, paces: Mapping[tuple[str, str], Pace], assumptions: Assumptions) -> Pool:
    speeds = [paces[roster.pool, model].speeds for model in roster.models]
    # A worker's speed is that over its models: the device is shared, whichever model told.
    devices = sum(sum(each) / len(each) for each in zip(*speeds, strict=True)) if speeds else float(len(roster.workers))
    tariff = tariff_of(assumptions.tariffs, roster.workers[0], roster.pool, roster.at_unix_ms)
    grid = tariff.grid_g_per_kwh if tariff else None
    return Pool(
        name=roster.pool,
        accelerator=roster.accelerator,
        workers=len(roster.workers),
        devices=devices,
        rate_usd_per_hour=roster.rate_usd_per_hour,
        loaded_w=roster.loaded_w,
        stations={
            model: Station(
                timing=paces[roster.pool, model].timing,
                workers=len(roster.workers),
                max_batch=roster.max_batch,
                kv_capacity_tokens=roster.kv_capacity_tokens,
                context_tokens=roster.context_tokens,
                prefill_chunk_tokens=roster.prefill_chunk_tokens,
            )
            for model in roster.models
        },
        sites=roster.sites,
        spot=roster.spot,
        tariff_usd_per_kwh=float(tariff.usd_per_kwh) if tariff else None,
        grid_g_per_kwh=assumptions.grid_g_per_kwh if grid is None else grid,
    )


def _one_of(pool: Pool) -> Pool:
    """A pool of one typical worker; it shares what comes with all the others, so its queue is as theirs."""
    return replace(pool, workers=1, devices=1.0)


def _capacity_rps(pace: Pace) -> float:
    return sum(pace.speeds) / typical_request_s(pace.timing)
