"""A plan is tried on a part of the traffic, and goes back by itself when it does worse than it said."""

from dataclasses import replace

import pytest

from services.mesh.events import PoolPlan, Prediction, RoutingPlan, Share, TimingCoefficients, WorkloadClass
from services.optimizer.core.beliefs import Trigger
from services.optimizer.core.canary import Canary, Terms, differs
from services.optimizer.core.decisions import Decisions
from tests.unit.optimizer.facts import MODEL

TERMS = Terms(share=0.1, least_s=10.0, requests=30, worse=0.25, rest_s=60.0)
_USD = 0.001  # predicted, of a request
_NO_TIMING = TimingCoefficients(
    prefill_overhead_s=0.0,
    prefill_s_per_token=0.0,
    prefill_s_per_attended_token=0.0,
    decode_base_s=0.0,
    decode_s_per_sequence=0.0,
    decode_s_per_kv_token=0.0,
)


def plan(version: int, on_a: float = 1.0, shadow_usd_per_hour: float = 0.0) -> RoutingPlan:
    """Ten requests a second, a part of them on pool a, the others on b."""
    demand = WorkloadClass(
        slo_class="standard",
        prompt_tokens_from=0,
        prompt_tokens_to=256,
        completion_tokens_from=0,
        completion_tokens_to=64,
        demand_rps=10.0,
        mean_prompt_tokens=100.0,
        mean_completion_tokens=50.0,
    )
    shares = tuple(
        Share(workload_class=0, pool=pool, share=part, feasible=True, device_s_per_request=1.0, usd_per_request=_USD)
        for pool, part in (("a", on_a), ("b", 1 - on_a))
    )
    pool = PoolPlan(
        pool="a",
        accelerator="a",
        workers=1,
        shadow_usd_per_device_s=shadow_usd_per_hour / 3600,
        utilisation=0.5,
        timing=_NO_TIMING,
        observations=1,
        mean_error=0.0,
        rate_usd_per_hour=2.0,
    )
    return RoutingPlan(
        model=MODEL,
        version=version,
        made_unix_ms=version,
        classes=(demand,),
        shares=shares,
        pools=(pool,),
        prediction=Prediction(cost_usd_per_hour=_USD * 10 * 3600, baseline_cost_usd_per_hour=0.0, unserved_rps=0.0),
    )


class Course:
    """Plans settled one after the other, and requests under those that were published."""

    def __init__(self, terms: Terms = TERMS) -> None:
        self.decisions = Decisions()
        self.canary = Canary(terms, self.decisions)
        self.now_s = 0.0
        self._requests = 0

    def settle(
        self, settled: RoutingPlan, trigger: Trigger = Trigger.INTERVAL, after_s: float = 1.0
    ) -> RoutingPlan | None:
        self.now_s += after_s
        published = self.canary.next(settled, trigger, self.now_s)
        if published is not None:
            self.decisions.made(published)
        return published

    def serve(self, under: RoutingPlan, count: int, usd: float = _USD, kept: float = 1.0) -> None:
        for number in range(count):
            self._requests += 1
            name = f"r-{self._requests}"
            self.decisions.admitted(name, MODEL, under.name)
            self.decisions.used(name, usd)
            self.decisions.finished(name, slo_met=number < kept * count)

    def trial(self) -> tuple[RoutingPlan, RoutingPlan]:
        standing = self.settle(plan(1), Trigger.START)
        tried = self.settle(plan(2, on_a=0.2))
        assert standing is not None
        assert tried is not None
        return standing, tried


def test_a_plan_that_differs_is_tried_and_nothing_else_is_published_meanwhile() -> None:
    course = Course()
    standing, tried = course.trial()
    assert standing.canary_share == 0.0
    assert (tried.version, tried.canary_share) == (2, 0.1)
    assert course.settle(plan(3, on_a=0.1)) is None


def test_a_plan_that_is_alike_is_followed_at_once_and_without_a_share_every_plan_is() -> None:
    course = Course()
    course.settle(plan(1), Trigger.START)
    assert course.settle(plan(2, on_a=0.97)) == plan(2, on_a=0.97)
    untried = Course(Terms())
    untried.settle(plan(1), Trigger.START)
    assert untried.settle(plan(2, on_a=0.0)) == plan(2, on_a=0.0)


@pytest.mark.parametrize("trigger", [Trigger.FLEET, Trigger.CAPACITY])
def test_a_repair_is_never_tried_and_ends_a_trial(trigger: Trigger) -> None:
    course = Course()
    course.trial()
    assert course.settle(plan(3, on_a=0.0), trigger) == plan(3, on_a=0.0)
    assert course.settle(plan(4, on_a=0.01)) == plan(4, on_a=0.01)


def test_a_plan_that_does_as_it_said_is_kept() -> None:
    course = Course()
    standing, tried = course.trial()
    course.serve(standing, 300)
    course.serve(tried, 35)
    assert course.settle(plan(3, on_a=0.2), after_s=5.0) is None, "too soon"
    assert course.settle(plan(4, on_a=0.2), after_s=6.0) == plan(4, on_a=0.2)
    assert [each.fate for each in course.decisions.latest(MODEL, 3)] == ["", "kept", ""]


def test_a_plan_that_breaks_promises_goes_back_says_why_and_nothing_is_tried_for_a_while() -> None:
    course = Course()
    standing, tried = course.trial()
    course.serve(standing, 300, kept=0.99)
    course.serve(tried, 40, kept=0.7)
    back = course.settle(plan(3, on_a=0.2), after_s=11.0)
    assert back is not None
    assert (back.version, back.shares, back.canary_share) == (3, standing.shares, 0.0)
    assert back.rolled_back == tried.name
    assert "70.0% of 40" in back.because
    decision = next(each for each in course.decisions.latest(MODEL, 9) if each.version == 2)
    assert (decision.fate, decision.because) == ("rolled back", back.because)
    assert course.settle(plan(4, on_a=0.2), after_s=30.0) is None
    again = course.settle(plan(5, on_a=0.2), after_s=31.0)
    assert again is not None
    assert again.canary_share == 0.1


def test_a_plan_that_costs_more_than_it_said_goes_back_unless_all_cost_more() -> None:
    course = Course()
    standing, tried = course.trial()
    course.serve(standing, 300)
    course.serve(tried, 40, usd=_USD * 1.6)
    back = course.settle(plan(3, on_a=0.2), after_s=11.0)
    assert back is not None
    assert back.rolled_back == tried.name
    assert "1.60 times" in back.because

    course = Course()
    standing, tried = course.trial()
    course.serve(standing, 300, usd=_USD * 1.7)
    course.serve(tried, 40, usd=_USD * 1.6)
    assert course.settle(plan(3, on_a=0.2), after_s=11.0) == plan(3, on_a=0.2)


def test_what_was_placed_before_the_trial_does_not_count_beside_it() -> None:
    course = Course()
    standing = course.settle(plan(1), Trigger.START)
    assert standing is not None
    course.serve(standing, 300, kept=0.5)
    tried = course.settle(plan(2, on_a=0.2))
    assert tried is not None
    course.serve(standing, 300)
    course.serve(tried, 40, kept=0.6)
    back = course.settle(plan(3, on_a=0.2), after_s=11.0)
    assert back is not None
    assert back.rolled_back == tried.name


def test_a_trial_without_traffic_ends_and_the_plan_stays() -> None:
    course = Course()
    course.trial()
    assert course.settle(plan(3, on_a=0.2), after_s=59.0) is None
    assert course.settle(plan(4, on_a=0.2), after_s=2.0) == plan(4, on_a=0.2)


def test_prices_make_plans_differ_too() -> None:
    assert differs(plan(1), plan(2, shadow_usd_per_hour=1.0))
    assert not differs(plan(1), replace(plan(2), status="optimal"))
