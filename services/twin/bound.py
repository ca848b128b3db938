"""How much load a fleet could carry at all: the fluid bound, which no policy passes for
long (what may wait for a minute is still served when a short trace has come to its end).

In: the trace's requests with their classes, the fleet. Out: the greatest factor by which arrivals can be sped up when
work is a fluid: every class is spread over the pools in the best way, every device is busy all the time at the cheapest
batch that keeps the class's TPOT promise, nothing waits, and nothing is lost to fluctuations.

    maximise    f
    subject to  sum_j x_ij = f * rps_i                      for each class i
                sum_i x_ij * device_s_ij <= workers_j       for each pool j
                x_ij >= 0, and x_ij = 0 where an idle worker of pool j could not keep the promise of class i

`device_s` is the service curve's (`optimizer/core/service_curve.py`) at a planned utilisation of 1. Prefix reuse is
left out unless its share of the prompt tokens is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import highspy
import numpy as np

from services.mesh.accelerators import Catalogue
from services.optimizer.core.demand import COMPLETION_EDGES, PROMPT_EDGES, bucket
from services.optimizer.core.service_curve import Promise, Station, Work, service
from services.router.core.request import Promise as ClassPromise
from services.twin.scenario import Scenario, by_name
from services.twin.traces import TraceRequest
from services.worker.core.kv_cache import BLOCK_TOKENS

_Highs: Final[Any] = highspy.Highs


@dataclass(slots=True)
class _Sum:
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def fluid_bound(
    scenario: Scenario, catalogue: Catalogue, trace: Sequence[TraceRequest], *, cached_fraction: float = 0.0
) -> float:
    """The greatest speed of the trace; 0 where a class can be served nowhere.

    Args:
        trace: at least two requests.
        cached_fraction: 0 to 1, of the prompt tokens that need not be computed.
    """
    promises = by_name(scenario.classes)
    span_s = max(trace[-1].arrival_s - trace[0].arrival_s, 1e-9)
    sums = _sums(scenario, trace)
    works = [
        Work(each.prompt_tokens / each.requests, each.completion_tokens / each.requests, cached_fraction)
        for each in sums.values()
    ]
    rates = [each.requests / span_s for each in sums.values()]
    stations = _stations(scenario, catalogue)
    seconds = np.full((len(works), len(stations)), np.inf)
    for row, ((name, _, _), work) in enumerate(zip(sums, works, strict=True)):
        for column, station in enumerate(stations):
            found = service(station, work, _planned(promises[name]), 1.0)
            if found.feasible:
                seconds[row, column] = found.device_s
    return _greatest(np.asarray(rates), seconds, np.array([each.workers for each in stations], dtype=np.float64))


def _sums(scenario: Scenario, trace: Sequence[TraceRequest]) -> Mapping[tuple[str, int, int], _Sum]:
    """Requests by SLO class, prompt bucket and completion bucket."""
    sums: dict[tuple[str, int, int], _Sum] = {}
    for request, name in zip(trace, scenario.class_names(trace), strict=True):
        key = name, bucket(PROMPT_EDGES, request.prompt_tokens), bucket(COMPLETION_EDGES, request.completion_tokens)
        each = sums.setdefault(key, _Sum())
        each.requests += 1
        each.prompt_tokens += request.prompt_tokens
        each.completion_tokens += request.completion_tokens
    return sums


def _stations(scenario: Scenario, catalogue: Catalogue) -> list[Station]:
    shape = catalogue.model(scenario.model)
    counts: dict[str, int] = {}
    for _, device in scenario.fleet.workers:
        counts[device.key] = counts.get(device.key, 0) + 1
    stations = []
    for key, workers in counts.items():
        device = catalogue.accelerator(key)
        timing = catalogue.timing(device, shape)
        kv_tokens = catalogue.kv_capacity_tokens(device, shape) // BLOCK_TOKENS * BLOCK_TOKENS
        stations.append(
            Station(
                timing=timing,
                workers=workers,
                max_batch=scenario.engine.max_batch,
                kv_capacity_tokens=kv_tokens,
                context_tokens=min(shape.context_tokens, kv_tokens),
                prefill_chunk_tokens=scenario.engine.chunk_tokens(timing),
            )
        )
    return stations


def _planned(promise: ClassPromise) -> Promise:
    return Promise(promise.ttft_s, promise.ttft_s_per_prompt_token, promise.tpot_s, promise.miss_usd)


def _greatest(rates: np.ndarray, seconds: np.ndarray, workers: np.ndarray) -> float:
    """Solves the program.

    Args:
        rates: (classes,) requests per second.
        seconds: (classes, pools) device-seconds per request; infinite where not feasible.
        workers: (pools,).
    """
    if np.isinf(seconds).all(axis=1).any():
        return 0.0
    solver = _Highs()
    solver.silent()
    infinity = highspy.kHighsInf
    factor = solver.addVariable(0.0, infinity, -1.0)
    flows = {
        (row, column): solver.addVariable(0.0, infinity, 0.0)
        for row, column in zip(*np.nonzero(np.isfinite(seconds)), strict=True)
    }
    for row, rate in enumerate(rates):
        mine = [flow for (each, _), flow in flows.items() if each == row]
        solver.addConstr(sum(mine) - float(rate) * factor == 0)
    for column, devices in enumerate(workers):
        used = [float(seconds[row, each]) * flow for (row, each), flow in flows.items() if each == column]
        if used:
            solver.addConstr(sum(used) <= float(devices))
    solver.minimize()
    return -float(solver.getObjectiveValue())
