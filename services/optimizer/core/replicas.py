"""How many replicas of each pool serve a demand within its promises at the least cost of fleet-hours.

In: classes with their demand, pools of which there may be so many, each with what one replica is. Out: whole numbers.
The program is that of `plan.py`, but replicas are bought, by the hour, used or not: a pair of class and pool costs
the share of a replica that it holds. What it asks for in parts is rounded up; and where another pool can take what is
beyond a whole number for less, it does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from services.optimizer.core.plan import Pool, Problem, services_of
from services.optimizer.core.program import Pair, optimum

_NEGLIGIBLE: Final = 1e-6
_LEFT: Final = 1e-4  # part of a class that is nothing
_WORTH: Final = 100.0  # times the dearest way to serve it: replicas are bought for what is asked for


def replicas(problem: Problem, most: Mapping[str, int], factor: float = 1.0) -> dict[str, int] | None:
    """By pool; together they serve `factor` times the demand, as far as there may be enough. None: not to be said now.

    Args:
        problem: its pools stand for one replica each, with `devices` 1.
        most: by pool.
    """
    program = _Program(problem, factor)
    bounds = {pool.name: float(most.get(pool.name, 0)) for pool in problem.pools}
    best = program.buy(bounds)
    if best is None:
        return None
    parts = {name: count % 1 for name, count in best.counts.items()}
    for name in sorted(parts, key=parts.__getitem__):
        whole = math.floor(best.counts[name] + _NEGLIGIBLE)
        if best.counts[name] - whole > _NEGLIGIBLE:
            fewer = program.buy({**bounds, name: float(whole)})
            if fewer is not None and fewer.usd_per_hour < best.usd_per_hour - _NEGLIGIBLE:
                bounds[name], best = float(whole), fewer
    return {name: _whole(count) for name, count in best.counts.items()}


def serve(problem: Problem, counts: Mapping[str, int], factor: float = 1.0) -> bool:
    """Whether so many replicas serve `factor` times the demand within its promises, as far as any number could."""
    bought = _Program(problem, factor).buy({pool.name: float(counts.get(pool.name, 0)) for pool in problem.pools})
    return bought is not None and not bought.leaves


class _Bought(NamedTuple):
    """Replicas in parts; what they cost in whole, with what they leave unserved."""

    counts: Mapping[str, float]
    usd_per_hour: float
    leaves: bool


class _Program:
    """The program of one demand."""

    def __init__(self, problem: Problem, factor: float) -> None:
        self._pools: Sequence[Pool] = problem.pools
        self._target = problem.target_utilisation
        self._pairs: list[Pair] = []
        self._unserved_usd: list[float] = []
        classes = [replace(each, rps=each.rps * factor) for each in problem.classes if each.rps > 0]
        for row, each in enumerate(classes):
            dearest_usd = 0.0
            services = services_of(problem, each)
            for column, pool in enumerate(self._pools):
                found = services.get(pool.name)
                if found is not None and found.feasible:
                    rate_usd = pool.rate_usd_per_hour / 3600
                    energy_usd = pool.usd_per_device_s(problem.tariff_usd_per_kwh) - rate_usd
                    usd = found.held_s / self._target * rate_usd + found.device_s * energy_usd
                    dearest_usd = max(dearest_usd, usd)
                    self._pairs.append(Pair(row, column, each.rps * usd, each.rps * found.held_s))
            miss_usd = problem.promises[each.key.slo_class].miss_usd
            self._unserved_usd.append(each.rps * (miss_usd + _WORTH * dearest_usd))

    def buy(self, bounds: Mapping[str, float]) -> _Bought | None:
        """Within `bounds`; None where the solver finds no optimum."""
        if not self._pairs:
            return _Bought(dict.fromkeys(bounds, 0.0), 0.0, leaves=False)
        answer = optimum(self._pairs, self._unserved_usd, [bounds[pool.name] * self._target for pool in self._pools])
        if answer is None:
            return None
        counts = {pool.name: load / self._target for pool, load in zip(self._pools, answer.loads, strict=True)}
        served = dict.fromkeys((pair.row for pair in self._pairs), 0.0)
        for pair, share in zip(self._pairs, answer.shares, strict=True):
            served[pair.row] += share
        left_usd = sum(self._unserved_usd[row] * (1 - share) for row, share in served.items() if share < 1 - _LEFT)
        usd = sum(_whole(counts[pool.name]) * pool.rate_usd_per_hour for pool in self._pools)
        return _Bought(counts, usd + 3600 * left_usd, left_usd > 0)


def _whole(count: float) -> int:
    return math.ceil(count - _NEGLIGIBLE)
