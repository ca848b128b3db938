"""The optimizer's metrics: how long solving took, how old plans are, what they predict and what came true."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.util.types import Attributes

from services.mesh import conventions as names
from services.mesh.clock import Clock
from services.mesh.events import PoolPlan, RoutingPlan
from services.optimizer.core.beliefs import Snapshot, Trigger

_SOLVE_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class Measures:
    """One optimizer's instruments; gauges show the plans last settled."""

    def __init__(self, meter: Meter, clock: Clock) -> None:
        self._meter = meter
        self._clock = clock
        self._plans: Sequence[RoutingPlan] = ()
        self._snapshot: Snapshot | None = None
        self._solve = meter.create_histogram(
            names.SOLVE_DURATION,
            "s",
            "Seconds the linear program took",
            explicit_bucket_boundaries_advisory=list(_SOLVE_BUCKETS_S),
        )
        self._failures = meter.create_counter(names.PLAN_FAILURES, "{plan}", "Plans not made or not published")
        self._by_model(names.PLAN_AGE, "s", "Seconds since the plan was made", self._age_s)
        self._by_model(
            names.PLAN_COST,
            "{USD}/h",
            "Predicted cost of use and energy",
            lambda plan: plan.prediction.cost_usd_per_hour,
        )
        self._by_model(
            names.PLAN_BASELINE_COST,
            "{USD}/h",
            "Predicted cost of shares proportional to capacity",
            lambda plan: plan.prediction.baseline_cost_usd_per_hour,
        )
        self._by_model(names.REALISED_COST, "{USD}/h", "Cost of use and energy over the window", self._realised_usd)
        self._by_model(
            names.PLAN_UNSERVED,
            "{request}/s",
            "Demand that no capacity within its promise is left for",
            lambda plan: plan.prediction.unserved_rps,
        )
        self._by_pool(names.TIMING_ERROR, "1", "Mean relative error of predicted steps", lambda pool: pool.mean_error)
        self._by_pool(names.POOL_UTILISATION, "1", "Planned use of the pool", lambda pool: pool.utilisation)
        self._by_pool(
            names.SHADOW_PRICE,
            "{USD}/s",
            "What one more device-second would save",
            lambda pool: pool.shadow_usd_per_device_s,
        )

    def settled(self, plans: Sequence[RoutingPlan], snapshot: Snapshot, trigger: Trigger, solve_s: float) -> None:
        self._plans, self._snapshot = plans, snapshot
        self._solve.record(solve_s, {names.PLAN_TRIGGER: trigger.value})

    def failed(self, reason: str) -> None:
        self._failures.add(1, {names.ERROR_TYPE: reason})

    def _age_s(self, plan: RoutingPlan) -> float:
        return max(0.0, (self._clock.unix_ms() - plan.made_unix_ms) / 1000)

    def _realised_usd(self, plan: RoutingPlan) -> float:
        return self._snapshot.seen[plan.model].realised.usd_per_hour if self._snapshot else 0.0

    def _by_model(self, name: str, unit: str, description: str, value: Callable[[RoutingPlan], float]) -> None:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value(plan), {names.GEN_AI_REQUEST_MODEL: plan.model}) for plan in self._plans]

        self._meter.create_observable_gauge(name, [observe], unit, description)

    def _by_pool(self, name: str, unit: str, description: str, value: Callable[[PoolPlan], float]) -> None:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value(pool), attributes) for pool, attributes in self._pools()]

        self._meter.create_observable_gauge(name, [observe], unit, description)

    def _pools(self) -> Iterator[tuple[PoolPlan, Attributes]]:
        for plan in self._plans:
            for pool in plan.pools:
                yield pool, {names.GEN_AI_REQUEST_MODEL: plan.model, names.POOL: pool.pool}
