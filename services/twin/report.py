"""What came of a run: latencies and promises by class, tokens, dollars, joules, and how busy the pools were.

In: an `Outcome`. Out: a `Report`; as a document for JSON. Seconds are the client's: from its request to its token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from services.twin.requests import TwinRequest
from services.twin.run import Outcome


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One SLO class; quantiles are of requests that got a token."""

    requests: int
    finished: int
    slo_attainment: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float


@dataclass(frozen=True, slots=True)
class PoolReport:
    """One kind of accelerator. `busy`: part of its devices' time with a step under way, 0 to 1; `busy_s` in all.

    Attributes:
        workers: that there may be; `mean_workers`: that were paid for, on average over the run.
    """

    workers: int
    mean_workers: float
    requests: int
    tokens: int
    busy: float
    busy_s: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        slo_attainment: part of all requests whose promises were kept.
        worst_attainment: of the class that fared worst.
        fleet_usd: rate of every worker for the time that it was up, and energy, idle included.
        resumed: streams that went on at another worker.
        tokens_per_cpu_s: delivered tokens by processor seconds of the simulation.
    """

    policy: str
    speed: float
    seed: int
    requests: int
    finished: int
    resumed: int
    delivered_tokens: int
    cached_tokens: int
    span_s: float
    slo_attainment: float
    worst_attainment: float
    fleet_usd: float
    energy_j: float
    usd_per_mtok: float
    tokens_per_cpu_s: float
    by_class: Mapping[str, ClassReport]
    by_pool: Mapping[str, PoolReport]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def report(outcome: Outcome) -> Report:
    """Sums a run up."""
    requests, scenario = outcome.requests, outcome.scenario
    finished = [each for each in requests if each.outcome == "length"]
    tokens = sum(each.delivered for each in requests)
    by_class = {
        each.promise.name: _class([one for one in requests if one.promise.name == each.promise.name])
        for each in scenario.classes
    }
    energy_j = sum(each.totals.energy_j + each.totals.idle_j for each in outcome.workers)
    usd = sum(each.totals.usd for each in outcome.workers)
    return Report(
        policy=outcome.policy,
        speed=scenario.speed,
        seed=scenario.seed,
        requests=len(requests),
        finished=len(finished),
        resumed=sum(1 for each in requests if len(each.legs) > 1),
        delivered_tokens=tokens,
        cached_tokens=sum(each.cached_tokens for each in requests),
        span_s=outcome.span_s,
        slo_attainment=_part(requests, lambda each: each.slo_met),
        worst_attainment=min((each.slo_attainment for each in by_class.values() if each.requests), default=1.0),
        fleet_usd=usd,
        energy_j=energy_j,
        usd_per_mtok=usd / tokens * 1e6 if tokens else 0.0,
        tokens_per_cpu_s=tokens / outcome.cpu_s if outcome.cpu_s else 0.0,
        by_class=by_class,
        by_pool=_pools(outcome),
    )


def _class(requests: Sequence[TwinRequest]) -> ClassReport:
    begun = [each for each in requests if each.first_s]
    several = [each for each in begun if each.delivered > 1 and each.outcome == "length"]
    ttft_s = _quantiles([each.ttft_s for each in begun])
    tpot_s = _quantiles([each.tpot_s for each in several])
    finished = sum(1 for each in requests if each.outcome == "length")
    return ClassReport(len(requests), finished, _part(requests, lambda each: each.slo_met), *ttft_s, *tpot_s)


def _pools(outcome: Outcome) -> dict[str, PoolReport]:
    served: dict[str, int] = {}
    for request in outcome.requests:
        for name in request.legs:
            served[name] = served.get(name, 0) + 1
    pools: dict[str, PoolReport] = {}
    for key in dict.fromkeys(each.device.key for each in outcome.workers):
        mine = [each for each in outcome.workers if each.device.key == key]
        up_s = sum(each.totals.up_s for each in mine)
        busy_s = sum(each.totals.busy_s for each in mine)
        pools[key] = PoolReport(
            workers=len(mine),
            mean_workers=up_s / outcome.span_s if outcome.span_s else 0.0,
            requests=sum(served.get(each.name, 0) for each in mine),
            tokens=sum(each.totals.tokens for each in mine),
            busy=min(1.0, busy_s / up_s) if up_s else 0.0,
            busy_s=busy_s,
            energy_j=sum(each.totals.energy_j for each in mine),
        )
    return pools


def _quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    if not seconds:
        return 0.0, 0.0
    half, most = np.quantile(np.asarray(seconds), (0.5, 0.99))
    return float(half), float(most)


def _part(requests: Sequence[TwinRequest], holds: Callable[[TwinRequest], bool]) -> float:
    return sum(map(holds, requests)) / len(requests) if requests else 1.0
