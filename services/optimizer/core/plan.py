"""The linear program: which part of each workload class goes to which pool.

In: a `Problem`: pools with their pace, cost and capacity, classes with their demand and promises, shares of the last
plan. Out: a `Solution`: shares, shadow prices, what stays unserved, costs. Never raises: whatever is asked, there is an
answer that says what it is worth (`status`).

    minimise    sum_ij rps_i * x_ij * device_s_ij * usd_per_device_s_j + sum_i rps_i * u_i * penalty_usd_i
    subject to  sum_j x_ij + u_i = 1                                      for each class i
                sum_i rps_i * x_ij * held_s_ij <= devices_j * target_utilisation    for each pool j
                x_ij >= 0, and x_ij = 0 where pool j cannot keep the promise of class i

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
is its shadow price: dollars that one more device-second would save; 0 where capacity does not bind.

Plans that follow each other must not swing. Shares of the last plan are `_STICKINESS` cheaper, so ties and noise move
nothing; what the program then changes is taken over gradually (`damping.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import highspy
import numpy as np

# The binding itself: the class around it registers callbacks while it is made, and that writes a banner to standard
# output before any option can silence it.
from highspy._core import _Highs

from services.optimizer.core.demand import ClassDemand, ClassKey
from services.optimizer.core.service_curve import Promise, Service, Station, Work, service

Shares = Mapping[ClassKey, Mapping[str, float]]  # by class, then pool; 0 to 1

_STICKINESS: Final = 0.02
_COST_UNIT: Final = 1e-6  # the solver works in micro-dollars per second: its tolerances are absolute
_DEMAND_FLOOR_RPS: Final = 1e-9
_TIME_LIMIT_S: Final = 1.0
_NEGLIGIBLE: Final = 1e-6
KWH_PER_J: Final = 1 / 3_600_000


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool's supply.

    Attributes:
        workers: that count.
        devices: the same in typical workers of the pool: a slowed one counts less than 1.
        stations: by model: how the pool serves it.
    """

    name: str
    accelerator: str
    workers: int
    devices: float
    rate_usd_per_hour: float
    loaded_w: float
    stations: Mapping[str, Station]

    def usd_per_device_s(self, tariff_usd_per_kwh: float) -> float:
        return self.rate_usd_per_hour / 3600 + self.loaded_w * tariff_usd_per_kwh * KWH_PER_J


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be planned; `promises` by SLO class holds those of all classes."""

    pools: tuple[Pool, ...]
    classes: tuple[ClassDemand, ...]
    promises: Mapping[str, Promise]
    target_utilisation: float
    tariff_usd_per_kwh: float


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
    """

    status: str
    services: Mapping[ClassKey, Mapping[str, Service]] = field(default_factory=dict)
    shares: Shares = field(default_factory=dict)
    shadow_usd_per_device_s: Mapping[str, float] = field(default_factory=dict)
    filled: Mapping[str, float] = field(default_factory=dict)


def solve(problem: Problem, previous: Shares) -> Solution:
    """Solves the program.

    Args:
        previous: shares of the plan in force; empty at the start.
    """
    target = problem.target_utilisation
    services = {
        each.key: {
            pool.name: service(
                pool.stations[each.key.model],
                Work(each.prompt_tokens, each.completion_tokens, each.cached_fraction),
                problem.promises[each.key.slo_class],
                target,
            )
            for pool in problem.pools
            if each.key.model in pool.stations
        }
        for each in problem.classes
    }
    classes = [each for each in problem.classes if each.rps > _DEMAND_FLOOR_RPS]
    if not classes:
        nothing = {pool.name: 0.0 for pool in problem.pools}
        return Solution("idle", services, {}, nothing, nothing)
    program = _Program(problem, classes, services, previous)
    solved = program.run()
    if solved is None:
        unpriced = {pool.name: 0.0 for pool in problem.pools}
        return Solution("fallback", services, proportional_shares(problem, services), unpriced, unpriced)
    shares, shadow, filled = solved
    unserved_rps = sum(each.rps * (1 - sum(shares[each.key].values())) for each in classes)
    served = unserved_rps <= _NEGLIGIBLE * sum(each.rps for each in classes)
    return Solution("optimal" if served else "overloaded", services, shares, shadow, filled)


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
    """The program in the solver's terms: columns are feasible pairs, then what stays unserved; rows are classes, then
    pools."""

    def __init__(
        self,
        problem: Problem,
        classes: list[ClassDemand],
        services: Mapping[ClassKey, Mapping[str, Service]],
        previous: Shares,
    ) -> None:
        self._classes = classes
        self._pools = problem.pools
        self._capacity = [max(0.0, pool.devices * problem.target_utilisation) for pool in problem.pools]
        self._pairs: list[tuple[int, int]] = []
        self._costs: list[float] = []
        self._loads: list[float] = []
        penalties: list[float] = []
        prices = [pool.usd_per_device_s(problem.tariff_usd_per_kwh) for pool in problem.pools]
        for row, each in enumerate(classes):
            dearest_usd = 0.0
            before = previous.get(each.key, {})
            for column, pool in enumerate(problem.pools):
                found = services[each.key].get(pool.name)
                if found is None or not found.feasible or self._capacity[column] <= 0:
                    continue
                usd = found.device_s * prices[column]
                dearest_usd = max(dearest_usd, usd)
                self._pairs.append((row, column))
                self._costs.append(each.rps * usd * (1 - _STICKINESS * before.get(pool.name, 0.0)) / _COST_UNIT)
                self._loads.append(each.rps * found.held_s)
            miss_usd = problem.promises[each.key.slo_class].miss_usd
            penalties.append(each.rps * (miss_usd + dearest_usd) / _COST_UNIT)
        self._costs.extend(penalties)

    def run(self) -> tuple[dict[ClassKey, dict[str, float]], dict[str, float], dict[str, float]] | None:
        """Shares by class, shadow prices and the part filled by pool; None when the solver gives no optimum."""
        solver = _Highs()
        for option, value in (
            ("output_flag", False),
            ("threads", 1),  # a program of this size is solved before a second thread has started
            ("time_limit", _TIME_LIMIT_S),
        ):
            solver.setOptionValue(option, value)
        solver.passModel(self._model())
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        found = solver.getSolution()
        values = np.clip(np.asarray(found.col_value, dtype=np.float64), 0.0, 1.0).tolist()
        duals = np.asarray(found.row_dual, dtype=np.float64).tolist()
        loads = np.asarray(found.row_value, dtype=np.float64).tolist()
        shares: dict[ClassKey, dict[str, float]] = {each.key: {} for each in self._classes}
        for (row, column), value in zip(self._pairs, values, strict=False):
            if value > _NEGLIGIBLE:
                shares[self._classes[row].key][self._pools[column].name] = value
        # A dual of an upper bound in a minimum is <= 0: relaxing it lowers the cost.
        shadow = {
            pool.name: max(0.0, -dual) * _COST_UNIT
            for pool, dual in zip(self._pools, duals[len(self._classes) :], strict=True)
        }
        filled = {
            pool.name: min(1.0, max(0.0, load / capacity)) if capacity > 0 else 0.0
            for pool, load, capacity in zip(self._pools, loads[len(self._classes) :], self._capacity, strict=True)
        }
        return shares, shadow, filled

    def _model(self) -> highspy.HighsLp:
        rows, pairs = len(self._classes), len(self._pairs)
        columns = pairs + rows
        starts: list[int] = [0]
        indices: list[int] = []
        values: list[float] = []
        for (row, column), load in zip(self._pairs, self._loads, strict=True):
            indices += (row, rows + column)
            values += (1.0, load)
            starts.append(len(indices))
        for row in range(rows):
            indices.append(row)
            values.append(1.0)
            starts.append(len(indices))
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = columns, rows + len(self._pools)
        model.col_cost_ = np.array(self._costs)
        model.col_lower_, model.col_upper_ = np.zeros(columns), np.ones(columns)
        unbounded = np.full(len(self._pools), -highspy.kHighsInf)
        model.row_lower_ = np.concatenate([np.ones(rows), unbounded])
        model.row_upper_ = np.concatenate([np.ones(rows), np.array(self._capacity)])
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = np.array(starts, dtype=np.int32)
        model.a_matrix_.index_ = np.array(indices, dtype=np.int32)
        model.a_matrix_.value_ = np.array(values)
        return model
