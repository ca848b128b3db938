"""Why the plan uses a pool as it does: for each workload class, what the pool would cost, all told, against the best.

In: a snapshot and the program's answer to it. Out: a `PoolReason`. All told means what the program weighs: the
device-seconds and energy a request uses, and the shadow price of the capacity it holds. A class goes where that is
least; what the pool lacks to that is how much cheaper its hour would have to be.
"""

from dataclasses import dataclass

from services.mesh.errors import InvalidRequest
from services.mesh.events import PlanLimit
from services.optimizer.core.beliefs import Snapshot
from services.optimizer.core.demand import ClassDemand
from services.optimizer.core.plan import Pool, Solution, utilisation
from services.optimizer.core.service_curve import Service

_NEGLIGIBLE_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class ClassReason:
    """One workload class and the pool.

    Attributes:
        share: of the class that the program gives to the pool, 0 to 1.
        because: "cheapest" or "shared" where it has one; else "context", "memory", "tpot", "ttft" or "placement", the
            bound that the pool cannot keep; "full": cheapest but for the price of its capacity; "dearer"; "no demand".
        usd: what a request uses there; `told_usd` with the shadow price of what it holds.
        best_pool: where a request costs least, all told; empty where no pool keeps the promise.
        breakeven_usd_per_hour: the pool's hourly rate at which it would be as good as the best; < 0: not even free.
    """

    demand: ClassDemand
    share: float
    because: str
    service: Service
    usd: float
    told_usd: float
    best_pool: str
    best_told_usd: float
    breakeven_usd_per_hour: float


@dataclass(frozen=True, slots=True)
class PoolReason:
    """The pool in the program's answer.

    Attributes:
        binding: "capacity" where another device-second of the pool would save money; else empty.
        saving_usd_per_hour: of one more worker, for small changes.
        limits: of the whole program.
    """

    pool: Pool
    status: str
    utilisation: float
    shadow_usd_per_device_s: float
    binding: str
    saving_usd_per_hour: float
    classes: tuple[ClassReason, ...]
    limits: tuple[PlanLimit, ...]


def why(snapshot: Snapshot, solution: Solution, model: str, pool: str) -> PoolReason:
    """Raises InvalidRequest: the pool is not known, or does not serve the model."""
    problem = snapshot.problem
    pools = {each.name: each for each in problem.pools}
    serving = sorted(name for name, each in pools.items() if model in each.stations)
    if pool not in serving:
        known = ", ".join(serving) or "none: no worker is ready"
        raise InvalidRequest(f"no pool {pool!r} serves {model!r}; pools that do: {known}")
    asked = pools[pool]
    shadow = solution.shadow_usd_per_device_s.get(pool, 0.0)
    used = utilisation(problem, solution.services, solution.shares)
    per_worker = asked.devices / asked.workers if asked.workers else 1.0
    return PoolReason(
        pool=asked,
        status=solution.status,
        utilisation=used[pool],
        shadow_usd_per_device_s=shadow,
        binding="capacity" if shadow > 0 else "",
        saving_usd_per_hour=shadow * 3600 * per_worker * problem.target_utilisation,
        classes=tuple(_reason(snapshot, solution, each, asked) for each in problem.classes if each.key.model == model),
        limits=solution.limits,
    )


def _reason(snapshot: Snapshot, solution: Solution, demand: ClassDemand, pool: Pool) -> ClassReason:
    problem = snapshot.problem
    prices = {
        each.name: each.usd_per_device_s(problem.tariff_usd_per_kwh)
        + solution.surcharge_usd_per_device_s.get(each.name, 0.0)
        for each in problem.pools
    }
    services = solution.services[demand.key]
    told = {
        name: each.device_s * prices[name] + each.held_s * solution.shadow_usd_per_device_s.get(name, 0.0)
        for name, each in services.items()
    }
    best = min((name for name, each in services.items() if each.feasible), key=told.__getitem__, default="")
    here = services[pool.name]
    share = solution.shares.get(demand.key, {}).get(pool.name, 0.0)
    missing_usd = told[pool.name] - told[best] if best else 0.0
    return ClassReason(
        demand=demand,
        share=share,
        because=_because(here, share, demand, missing_usd - here.held_s * _shadow(solution, pool.name)),
        service=here,
        usd=here.device_s * prices[pool.name],
        told_usd=told[pool.name],
        best_pool=best,
        best_told_usd=told[best] if best else 0.0,
        breakeven_usd_per_hour=pool.rate_usd_per_hour - missing_usd / here.device_s * 3600 if here.device_s else 0.0,
    )


def _because(here: Service, share: float, demand: ClassDemand, dearer_usd: float) -> str:
    """In a word; `dearer_usd` is what it costs more than the best, but for the price of the pool's capacity."""
    if share > 1 - _NEGLIGIBLE_SHARE:
        return "cheapest"
    if share > _NEGLIGIBLE_SHARE:
        return "shared"
    if here.because:
        return here.because
    if demand.rps <= 0:
        return "no demand"
    return "full" if dearer_usd < 0 else "dearer"


def _shadow(solution: Solution, pool: str) -> float:
    return solution.shadow_usd_per_device_s.get(pool, 0.0)
