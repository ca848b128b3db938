"""The linear program: which part of each workload class goes to which pool.

In: a `Problem`: pools with their pace, cost and capacity, classes with their demand and promises, shares of the last
plan. Out: a `Solution`: shares, shadow prices, what stays unserved, costs. Never raises: whatever is asked, there is an
answer that says what it is worth (`status`).

    minimise    sum_ij rps_i * x_ij * device_s_ij * usd_per_device_s_j + sum_i rps_i * u_i * penalty_usd_i
    subject to  sum_j x_ij + u_i = 1                                      for each class i
                sum_i rps_i * x_ij * held_s_ij <= devices_j * target_utilisation    for each pool j
                x_ij >= 0, and x_ij = 0 where pool j cannot keep the promise of class i, or none of it is where the
                class may be computed
                the caps of `caps.py`, of carbon and of spot capacity

This is Mélange's assignment of workload slices to accelerators (there: least cost over whole instances) for a fleet
that stands, with service curves that depend on the promise (`service_curve.py`). All models are solved in one program,
so a pool that serves several has one capacity and one shadow price for all of them; its device-seconds are taken as
interchangeable, and switching between models is not charged.

What a device-second costs. A worker is paid by the hour whether it works or not, so within the hour its rate is sunk
and only energy is saved by not using it. The program charges rate and loaded watts for each device-second nonetheless:
it prices what is used up, not what is paid. Device-seconds that a plan leaves free can take the next request, another
model's work, or be given back: the dear ones should be free, and the cheap ones used, when the fleet's size follows its
use. The bill of the standing fleet is not this figure; the meter keeps that.

What is not served costs the class's `miss_usd` and as much as the dearest way to serve it, so that whatever can be
served is, and under overload the classes with the least at stake per device-second wait. The dual of a pool's capacity
is its shadow price: dollars that one more device-second would save; 0 where capacity does not bind. What a cap's dual
makes of a pool's device-second (by what it emits) is its surcharge, which routers add to that price. Bounds that bind,
and those that could not be kept, are named with what they are worth (`Solution.limits`).

Plans that follow each other must not swing. Shares of the last plan are `_STICKINESS` cheaper, so ties and noise move
nothing; what the program then changes is taken over gradually (`damping.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from services.mesh.confines import Confines, Site
from services.mesh.events import PlanLimit
from services.optimizer.core.caps import NO_CAPS, CapRow, Caps, Way, cap_rows
from services.optimizer.core.demand import ClassDemand, ClassKey
from services.optimizer.core.program import TIME_LIMIT_S, Answer, Cap, Pair, optimum
from services.optimizer.core.service_curve import Promise, Service, Station, Work, service

Shares = Mapping[ClassKey, Mapping[str, float]]  # by class, then pool; 0 to 1

_STICKINESS: Final = 0.02
_DEMAND_FLOOR_RPS: Final = 1e-6  # one in a fortnight: less is lost in the solver's tolerances
_NEGLIGIBLE: Final = 1e-6
KWH_PER_J: Final = 1 / 3_600_000


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool's supply.

    Attributes:
        workers: that count.
        devices: the same in typical workers of the pool: a slowed one counts less than 1.
        stations: by model: how the pool serves it.
        sites: with the part of the pool that stands there.
        spot: part that may be taken away, 0 to 1.
        tariff_usd_per_kwh: of its own; None: the problem's.
        grid_g_per_kwh: grams of CO2.
    """

    name: str
    accelerator: str
    workers: int
    devices: float
    rate_usd_per_hour: float
    loaded_w: float
    stations: Mapping[str, Station]
    sites: tuple[tuple[Site, float], ...] = ()
    spot: float = 0.0
    tariff_usd_per_kwh: float | None = None
    grid_g_per_kwh: float = 0.0

    def usd_per_device_s(self, tariff_usd_per_kwh: float) -> float:
        own = self.tariff_usd_per_kwh
        tariff_usd_per_kwh = tariff_usd_per_kwh if own is None else own
        return self.rate_usd_per_hour / 3600 + self.loaded_w * tariff_usd_per_kwh * KWH_PER_J

    @property
    def g_per_device_s(self) -> float:
        """Of CO2."""
        return self.loaded_w * KWH_PER_J * self.grid_g_per_kwh

    def part_within(self, within: str) -> float:
        """The part of the pool where requests so confined may be computed."""
        confines = Confines.parse(within)
        return sum(part for site, part in self.sites if confines.admits(site)) if confines else 1.0


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be planned; `promises` by SLO class holds those of all classes."""

    pools: tuple[Pool, ...]
    classes: tuple[ClassDemand, ...]
    promises: Mapping[str, Promise]
    target_utilisation: float
    tariff_usd_per_kwh: float
    caps: Caps = NO_CAPS


@dataclass(frozen=True, slots=True)
class Solution:
    """The answer to a `Problem`, by its classes' keys and pools' names.

    Attributes:
        status: "idle" without demand, "optimal" when all of it is served within its promises, "overloaded" when not,
            "fallback" when the program could not be solved and shares are proportional to capacity.
        services: of every class on every pool that serves its model, feasible or not.
        shares: of every class; those of one add up to the part of it that is served.
        shadow_usd_per_device_s: by pool, >= 0.
        filled: by pool, the part of its planned capacity that the shares take, 0 to 1.
        surcharge_usd_per_device_s: by pool, what caps add to its price.
        limits: bounds that could not be kept, then those that bind, the dearest first.
    """

    status: str
    services: Mapping[ClassKey, Mapping[str, Service]] = field(default_factory=dict)
    shares: Shares = field(default_factory=dict)
    shadow_usd_per_device_s: Mapping[str, float] = field(default_factory=dict)
    filled: Mapping[str, float] = field(default_factory=dict)
    surcharge_usd_per_device_s: Mapping[str, float] = field(default_factory=dict)
    limits: tuple[PlanLimit, ...] = ()


def solve(problem: Problem, previous: Shares) -> Solution:
    """Solves the program.

    Args:
        previous: shares of the plan in force; empty at the start.
    """
    services = {each.key: services_of(problem, each) for each in problem.classes}
    classes = [each for each in problem.classes if each.rps > _DEMAND_FLOOR_RPS]
    nothing = {pool.name: 0.0 for pool in problem.pools}
    if not classes:
        return Solution("idle", services, {}, nothing, nothing, nothing)
    program = _Program(problem, classes, services, previous)
    answer = program.run()
    if answer is None:
        limit = PlanLimit(name="solver", of="", unit="s", used=TIME_LIMIT_S, most=TIME_LIMIT_S, usd_per_unit=0.0)
        shares = proportional_shares(problem, services)
        return Solution("fallback", services, shares, nothing, nothing, nothing, (replace(limit, exceeded=True),))
    return program.solution(answer)


def services_of(problem: Problem, demand: ClassDemand) -> dict[str, Service]:
    """The class on every pool that has its model."""
    key = demand.key
    work = Work(demand.prompt_tokens, demand.completion_tokens, demand.cached_fraction)
    promise = problem.promises[key.slo_class]
    found: dict[str, Service] = {}
    for pool in problem.pools:
        if (station := pool.stations.get(key.model)) is not None:
            here = service(station, work, promise, problem.target_utilisation)
            outside = key.within and pool.part_within(key.within) <= 0
            found[pool.name] = replace(here, because="placement") if outside else here
    return found


def proportional_shares(problem: Problem, services: Mapping[ClassKey, Mapping[str, Service]]) -> Shares:
    """Each class spread over the pools that keep its promise, in proportion to the requests per second each could
    take: what a router that knows speed and feasibility, but no cost, does."""
    shares: dict[ClassKey, dict[str, float]] = {}
    for each in problem.classes:
        rates = {
            pool.name: pool.devices / found.held_s
            for pool in problem.pools
            if (found := services[each.key].get(pool.name)) is not None and found.feasible
        }
        total = sum(rates.values())
        shares[each.key] = {name: rate / total for name, rate in rates.items()} if total > 0 else {}
    return shares


def cost_usd_per_s(
    problem: Problem, services: Mapping[ClassKey, Mapping[str, Service]], shares: Shares, model: str
) -> float:
    """What a model's device-seconds cost under `shares`: use and energy, without penalties."""
    price = {pool.name: pool.usd_per_device_s(problem.tariff_usd_per_kwh) for pool in problem.pools}
    return sum(
        each.rps * share * services[each.key][name].device_s * price[name]
        for each in problem.classes
        if each.key.model == model
        for name, share in shares.get(each.key, {}).items()
    )


def utilisation(
    problem: Problem, services: Mapping[ClassKey, Mapping[str, Service]], shares: Shares
) -> dict[str, float]:
    """Planned use of each pool's device-seconds under `shares`, all models together; >= 0."""
    used = {pool.name: 0.0 for pool in problem.pools}
    for each in problem.classes:
        for name, share in shares.get(each.key, {}).items():
            used[name] += each.rps * share * services[each.key][name].device_s
    return {pool.name: used[pool.name] / pool.devices if pool.devices > 0 else 0.0 for pool in problem.pools}


class _Program:
    """The program of a problem, and what its answer means."""

    def __init__(
        self,
        problem: Problem,
        classes: list[ClassDemand],
        services: Mapping[ClassKey, Mapping[str, Service]],
        previous: Shares,
    ) -> None:
        self._problem = problem
        self._classes = classes
        self._services = services
        self._pools = {pool.name: pool for pool in problem.pools}
        self._columns = {name: column for column, name in enumerate(self._pools)}
        self._capacities = [max(0.0, pool.devices * problem.target_utilisation) for pool in problem.pools]
        self._ways = [self._feasible(each) for each in classes]
        self._caps: list[CapRow] = cap_rows(problem.caps, self._ways, [each.rps for each in classes])
        self._pairs = [
            self._pair(row, name, way, previous) for row, ways in enumerate(self._ways) for name, way in ways.items()
        ]

    def run(self) -> Answer | None:
        unserved_usd = [
            each.rps
            * (
                self._problem.promises[each.key.slo_class].miss_usd
                + max((way.usd for way in ways.values()), default=0.0)
                # A cap is passed rather than a request left unserved.
                + sum(cap.excess_usd * max([0.0, *cap.amounts[row].values()]) for cap in self._caps)
            )
            for row, (each, ways) in enumerate(zip(self._classes, self._ways, strict=True))
        ]
        caps = [Cap(each.most, each.excess_usd) for each in self._caps]
        return optimum(self._pairs, unserved_usd, self._capacities, caps)

    def solution(self, answer: Answer) -> Solution:
        shares: dict[ClassKey, dict[str, float]] = {each.key: {} for each in self._classes}
        names = list(self._pools)
        for pair, share in zip(self._pairs, answer.shares, strict=True):
            if share > _NEGLIGIBLE:
                shares[self._classes[pair.row].key][names[pair.column]] = share
        left_rps = [each.rps * max(0.0, 1 - sum(shares[each.key].values())) for each in self._classes]
        served = sum(left_rps) <= _NEGLIGIBLE * sum(each.rps for each in self._classes)
        return Solution(
            "optimal" if served else "overloaded",
            self._services,
            shares,
            dict(zip(names, answer.prices_usd, strict=True)),
            {
                name: min(1.0, max(0.0, load / capacity)) if capacity > 0 else 0.0
                for name, load, capacity in zip(names, answer.loads, self._capacities, strict=True)
            },
            self._surcharges(answer),
            self._limits(answer, left_rps),
        )

    def _feasible(self, demand: ClassDemand) -> dict[str, Way]:
        ways: dict[str, Way] = {}
        for name, found in self._services[demand.key].items():
            pool = self._pools[name]
            if found.feasible and self._capacities[self._columns[name]] > 0:
                usd = found.device_s * pool.usd_per_device_s(self._problem.tariff_usd_per_kwh)
                carbon_g = found.device_s * pool.g_per_device_s
                ways[name] = Way(usd, found.device_s, carbon_g, pool.spot, demand.completion_tokens)
        return ways

    def _pair(self, row: int, name: str, way: Way, previous: Shares) -> Pair:
        demand, column = self._classes[row], self._columns[name]
        load = demand.rps * self._services[demand.key][name].held_s
        part = self._pools[name].part_within(demand.key.within)
        before = previous.get(demand.key, {}).get(name, 0.0)
        return Pair(
            row,
            column,
            demand.rps * way.usd * (1 - _STICKINESS * before),
            load,
            min(1.0, part * self._capacities[column] / load) if part < 1 and load > 0 else 1.0,
            tuple(demand.rps * cap.amounts[row][name] for cap in self._caps),
        )

    def _surcharges(self, answer: Answer) -> dict[str, float]:
        """What caps make of a device-second's price: by what is emitted there; for spot, by the requests that it takes
        on average."""
        surcharges = dict.fromkeys(self._pools, 0.0)
        for cap, price_usd in zip(self._caps, answer.cap_prices_usd, strict=True):
            for name, pool in self._pools.items():
                if cap.name == "spot":
                    taken_s = [ways[name].device_s for ways in self._ways if name in ways]
                    surcharges[name] += price_usd * pool.spot * len(taken_s) / sum(taken_s) if taken_s else 0.0
                else:
                    surcharges[name] += price_usd * pool.g_per_device_s
        return surcharges

    def _limits(self, answer: Answer, left_rps: list[float]) -> tuple[PlanLimit, ...]:
        limits = [
            PlanLimit(
                name="capacity", of=name, unit="device-seconds/s", used=load, most=capacity, usd_per_unit=price_usd
            )
            for name, load, capacity, price_usd in zip(
                self._pools, answer.loads, self._capacities, answer.prices_usd, strict=True
            )
            if price_usd > 0
        ]
        for cap, price_usd, used in zip(self._caps, answer.cap_prices_usd, answer.cap_used, strict=True):
            exceeded = used > cap.most + _NEGLIGIBLE * max(abs(cap.most), cap.per_unit)
            if price_usd > 0 or exceeded:
                limits.append(
                    PlanLimit(
                        name=cap.name,
                        of="",
                        unit=cap.unit,
                        used=used / cap.per_unit,
                        most=cap.most / cap.per_unit,
                        usd_per_unit=price_usd,
                        exceeded=exceeded,
                    )
                )
        nowhere: dict[tuple[str, str], float] = {}
        for each, ways, left in zip(self._classes, self._ways, left_rps, strict=True):
            if not ways:
                reasons = {found.because for found in self._services[each.key].values()}
                placement = each.key.within and reasons <= {"placement"}
                bound = ("placement", each.key.within) if placement else ("promise", each.key.slo_class)
                nowhere[bound] = nowhere.get(bound, 0.0) + left
        limits += [
            PlanLimit(name=name, of=of, unit="requests/s", used=rps, most=0.0, usd_per_unit=0.0, exceeded=True)
            for (name, of), rps in nowhere.items()
        ]
        return tuple(sorted(limits, key=lambda each: (not each.exceeded, -each.usd_per_unit)))
