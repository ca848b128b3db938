"""What a plan predicted, and what came true of the requests that were placed under it."""

from dataclasses import replace

import pytest

from services.mesh.events import Prediction, RoutingPlan, WorkloadClass
from services.optimizer.core.decisions import Decisions
from tests.unit.optimizer.facts import MODEL


def plan(version: int) -> RoutingPlan:
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
    return RoutingPlan(
        model=MODEL,
        version=version,
        made_unix_ms=version,
        classes=(demand, replace(demand, slo_class="batch", demand_rps=6.0)),
        prediction=Prediction(cost_usd_per_hour=5.4, baseline_cost_usd_per_hour=9.0, unserved_rps=1.0),
    )


def test_a_request_counts_for_the_plan_it_was_placed_under_whatever_follows() -> None:
    decisions = Decisions()
    decisions.made(plan(1))
    decisions.admitted("r-1", MODEL, f"{MODEL}:1")
    decisions.made(plan(2))
    decisions.admitted("r-2", MODEL, f"{MODEL}:2")
    for request_id, usd in (("r-1", 0.25), ("r-2", 1.0), ("r-1", 0.5), ("nobody's", 7.0)):
        decisions.used(request_id, usd)
    decisions.finished("r-1", slo_met=True)
    decisions.finished("r-2", slo_met=False)
    later, earlier = decisions.latest(MODEL, 10)
    assert (earlier.version, earlier.requests, earlier.finished, earlier.slo_met) == (1, 1, 1, 1)
    assert (later.version, later.requests, later.finished, later.slo_met) == (2, 1, 1, 0)
    assert (earlier.realised_usd_per_request, later.realised_usd_per_request) == (0.75, 1.0)


def test_the_prediction_is_per_request_that_the_plan_placed() -> None:
    decisions = Decisions()
    decisions.made(plan(1))
    (found,) = decisions.latest(MODEL, 1)
    assert (found.demand_rps, found.unserved_rps) == (16.0, 1.0)
    assert found.predicted_usd_per_request == pytest.approx(5.4 / 3600 / 15.0)


def test_a_request_that_comes_twice_or_without_a_plan_counts_once_or_not() -> None:
    decisions = Decisions()
    decisions.made(plan(1))
    for name in (f"{MODEL}:1", f"{MODEL}:1", "", "other:1"):
        decisions.admitted("r-1", MODEL, name)
    decisions.admitted("r-2", "unplanned", "unplanned:1")
    assert decisions.latest(MODEL, 1)[0].requests == 1
    assert decisions.latest("unplanned", 1) == ()


def test_only_the_latest_are_kept_and_none_of_a_model_that_is_gone() -> None:
    decisions = Decisions()
    for version in range(1, 4000):
        decisions.made(plan(version))
    assert len(decisions.latest(MODEL, 10_000)) == 3600
    assert [each.version for each in decisions.latest(MODEL, 2)] == [3999, 3998]
    decisions.forget(set())
    assert decisions.latest(MODEL, 1) == ()


def test_no_number_of_models_makes_decisions_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.optimizer.core.decisions._MOST", 10)
    decisions = Decisions()
    for version in range(1, 8):
        decisions.made(plan(version))
        for other in ("a", "b"):
            decisions.made(replace(plan(version), model=other))
    kept = {model: [each.version for each in decisions.latest(model, 100)] for model in (MODEL, "a", "b")}
    assert sum(map(len, kept.values())) == 10
    assert all(versions[0] == 7 and len(versions) >= 3 for versions in kept.values())
    decisions.forget({"a"})
    assert decisions.latest("b", 10) == ()
    decisions.made(replace(plan(8), model="a"))
    assert len(decisions.latest("a", 100)) == len(kept["a"]) + 1
