"""A solution as the `RoutingPlan` of one model: what goes on the wire.

In: the snapshot it was made from, the shares and shadow prices to say. Out: the plan, with its prediction, evidence and
baseline.
"""

from collections.abc import Mapping

from services.mesh.events import (
    Evidence,
    PoolPlan,
    Prediction,
    RoutingPlan,
    Share,
    TimingCoefficients,
    WorkloadClass,
)
from services.mesh.timing import Timing
from services.optimizer.core.beliefs import Snapshot, Trigger
from services.optimizer.core.demand import COMPLETION_EDGES, PROMPT_EDGES, ClassDemand, bucket_range
from services.optimizer.core.knobs import knobs
from services.optimizer.core.plan import Shares, Solution, cost_usd_per_s, proportional_shares, utilisation


def draft(
    snapshot: Snapshot,
    solution: Solution,
    shares: Shares,
    shadow: Mapping[str, float],
    *,
    model: str,
    version: int,
    made_unix_ms: int,
    trigger: Trigger,
    solve_s: float,
    seen_unix_ms: int = 0,
) -> RoutingPlan:
    """The plan of `model`; `shares` and `shadow` are the solution's, or those damped on the way to it."""
    problem = snapshot.problem
    classes = [each for each in problem.classes if each.key.model == model]
    prices = {pool.name: pool.usd_per_device_s(problem.tariff_usd_per_kwh) for pool in problem.pools}
    asked = knobs(problem, shares, model)
    used = utilisation(problem, solution.services, shares)
    return RoutingPlan(
        model=model,
        version=version,
        made_unix_ms=made_unix_ms,
        classes=tuple(workload_class(each) for each in classes),
        shares=tuple(
            Share(
                workload_class=index,
                pool=pool,
                share=shares.get(each.key, {}).get(pool, 0.0),
                feasible=found.feasible,
                device_s_per_request=found.device_s,
                usd_per_request=found.device_s * prices[pool],
            )
            for index, each in enumerate(classes)
            for pool, found in solution.services[each.key].items()
        ),
        pools=tuple(
            PoolPlan(
                pool=pool.name,
                accelerator=pool.accelerator,
                workers=pool.workers,
                shadow_usd_per_device_s=shadow.get(pool.name, 0.0)
                + solution.surcharge_usd_per_device_s.get(pool.name, 0.0),
                utilisation=min(1.0, used[pool.name]),
                timing=_coefficients(pool.stations[model].timing),
                observations=snapshot.paces[pool.name, model].observations,
                mean_error=snapshot.paces[pool.name, model].mean_error,
                rate_usd_per_hour=pool.rate_usd_per_hour,
                step_s=asked[pool.name].step_s,
                max_batch=asked[pool.name].max_batch,
            )
            for pool in problem.pools
            if model in pool.stations
        ),
        prediction=_prediction(snapshot, solution, shares, model),
        evidence=evidence_of(snapshot, model, trigger, seen_unix_ms),
        status=_status(snapshot, solution, classes),
        solve_s=solve_s,
        limits=solution.limits,
    )


def _prediction(snapshot: Snapshot, solution: Solution, shares: Shares, model: str) -> Prediction:
    """The baseline serves as much as the plan does, so that the two costs compare."""
    problem = snapshot.problem
    served = {key: sum(parts.values()) for key, parts in shares.items()}
    baseline = {
        key: {pool: share * served.get(key, 0.0) for pool, share in parts.items()}
        for key, parts in proportional_shares(problem, solution.services).items()
    }
    return Prediction(
        cost_usd_per_hour=3600 * cost_usd_per_s(problem, solution.services, shares, model),
        baseline_cost_usd_per_hour=3600 * cost_usd_per_s(problem, solution.services, baseline, model),
        unserved_rps=_unserved_rps(solution, [each for each in problem.classes if each.key.model == model]),
    )


def _unserved_rps(solution: Solution, classes: list[ClassDemand]) -> float:
    return sum(each.rps * max(0.0, 1 - sum(solution.shares.get(each.key, {}).values())) for each in classes)


def _status(snapshot: Snapshot, solution: Solution, classes: list[ClassDemand]) -> str:
    """The model's own: another model's overload is not its."""
    if not classes or solution.status in ("idle", "fallback"):
        return solution.status if solution.status == "fallback" and classes else "idle"
    demand_rps = sum(each.rps for each in classes)
    return "overloaded" if _unserved_rps(solution, classes) > 1e-6 * demand_rps else "optimal"


def evidence_of(snapshot: Snapshot, model: str, trigger: Trigger, seen_unix_ms: int = 0) -> Evidence:
    """What was seen of `model` in the window that the snapshot rests on."""
    seen = snapshot.seen[model]
    return Evidence(
        latency_events=seen.latency_events,
        token_events=seen.token_events,
        request_events=seen.request_events,
        window_s=snapshot.window_s,
        traceparents=seen.traceparents,
        trigger=trigger,
        seen_unix_ms=seen_unix_ms,
    )


def workload_class(each: ClassDemand) -> WorkloadClass:
    """A class as the wire knows it."""
    prompt_from, prompt_to = bucket_range(PROMPT_EDGES, each.key.prompt_bucket)
    completion_from, completion_to = bucket_range(COMPLETION_EDGES, each.key.completion_bucket)
    return WorkloadClass(
        slo_class=each.key.slo_class,
        prompt_tokens_from=prompt_from,
        prompt_tokens_to=prompt_to,
        completion_tokens_from=completion_from,
        completion_tokens_to=completion_to,
        demand_rps=each.rps,
        mean_prompt_tokens=each.prompt_tokens,
        mean_completion_tokens=each.completion_tokens,
        within=each.key.within,
    )


def _coefficients(timing: Timing) -> TimingCoefficients:
    return TimingCoefficients(
        prefill_overhead_s=timing.prefill_overhead_s,
        prefill_s_per_token=timing.prefill_s_per_token,
        decode_base_s=timing.decode_base_s,
        decode_s_per_sequence=timing.decode_s_per_sequence,
        decode_s_per_kv_token=timing.decode_s_per_kv_token,
        prefill_s_per_attended_token=timing.prefill_s_per_attended_token,
    )
