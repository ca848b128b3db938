import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.money import NUSD_PER_USD
from services.optimizer.core.demand import ClassDemand, ClassKey
from services.optimizer.core.plan import (
    Pool,
    Problem,
    Solution,
    cost_usd_per_s,
    proportional_shares,
    solve,
    utilisation,
)
from services.optimizer.core.service_curve import Station
from tests.unit.optimizer.facts import CATALOGUE, H100, L4, MI300X, MODEL, PROMISES, SMALL_MODEL, timing

GAUDI = "intel-gaudi3"
TARGET = 0.85


def pool(
    accelerator: str,
    *,
    workers: int = 1,
    devices: float | None = None,
    models: Sequence[str] = (MODEL,),
    name: str = "",
) -> Pool:
    device = CATALOGUE.accelerator(accelerator)
    return Pool(
        name=name or accelerator,
        accelerator=accelerator,
        workers=workers,
        devices=float(workers) if devices is None else devices,
        rate_usd_per_hour=device.rate_nusd_per_hour / NUSD_PER_USD,
        loaded_w=device.tdp_w,
        stations={
            model: Station(
                timing=timing(accelerator, model),
                workers=workers,
                max_batch=256,
                kv_capacity_tokens=CATALOGUE.kv_capacity_tokens(device, CATALOGUE.model(model)),
                context_tokens=131_072,
                prefill_chunk_tokens=2048,
            )
            for model in models
        },
    )


def asked(
    slo_class: str, rps: float, prompt_tokens: float = 500, completion_tokens: float = 100, model: str = MODEL
) -> ClassDemand:
    return ClassDemand(ClassKey(model, slo_class, 2, 1), rps, prompt_tokens, completion_tokens)


def problem(pools: Sequence[Pool], classes: Sequence[ClassDemand]) -> Problem:
    return Problem(tuple(pools), tuple(classes), PROMISES, TARGET, 0.08)


def served(solution: Solution, each: ClassDemand) -> float:
    return sum(solution.shares[each.key].values())


def test_no_demand_is_idle() -> None:
    for classes in ([], [asked("standard", 0.0)]):
        found = solve(problem([pool(H100)], classes), {})
        assert found.status == "idle"
        assert found.shares == {}
        assert found.shadow_usd_per_device_s == {H100: 0.0}


def test_no_pools_serves_nothing_and_says_so() -> None:
    each = asked("standard", 3.0)
    found = solve(problem([], [each]), {})
    assert found.status == "overloaded"
    assert found.shares == {each.key: {}}


def test_dear_pool_is_unused_while_a_cheaper_one_that_keeps_the_promise_has_room() -> None:
    each = asked("interactive", 10.0)
    found = solve(problem([pool(H100), pool(MI300X)], [each]), {})
    assert found.status == "optimal"
    assert found.shares[each.key] == {MI300X: pytest.approx(1.0)}
    assert found.shadow_usd_per_device_s == {H100: 0.0, MI300X: 0.0}


def test_capacity_that_binds_has_a_price_and_the_rest_goes_to_the_next_cheapest() -> None:
    each = asked("interactive", 60.0)
    asked_of = problem([pool(H100), pool(MI300X)], [each])
    found = solve(asked_of, {})
    assert found.status == "optimal"
    shares = found.shares[each.key]
    assert 0 < shares[H100] < shares[MI300X]
    assert sum(shares.values()) == pytest.approx(1.0)
    used = utilisation(asked_of, found.services, found.shares)
    assert used[MI300X] == pytest.approx(TARGET)
    assert found.shadow_usd_per_device_s[H100] == 0.0
    # One more second of the cheap pool takes work off the dear one.
    work_s = {name: found.services[each.key][name].device_s for name in (H100, MI300X)}
    usd = {one.name: one.usd_per_device_s(0.08) * work_s[one.name] for one in asked_of.pools}
    assert found.shadow_usd_per_device_s[MI300X] == pytest.approx((usd[H100] - usd[MI300X]) / work_s[MI300X], rel=1e-3)


def test_shadow_price_is_what_one_more_device_second_saves() -> None:
    classes = [asked("interactive", 60.0), asked("batch", 80.0, 2000, 300)]
    few = problem([pool(H100), pool(MI300X)], classes)
    more = problem([pool(H100), pool(MI300X, devices=1.01)], classes)

    def worth(found: Solution, of: Problem) -> float:
        left = sum(
            each.rps
            * (1 - served(found, each))
            * (
                PROMISES[each.key.slo_class].miss_usd
                + max(
                    way.device_s * one.usd_per_device_s(0.08)
                    for one in of.pools
                    if (way := found.services[each.key][one.name]).feasible
                )
            )
            for each in classes
        )
        return left + cost_usd_per_s(of, found.services, found.shares, MODEL)

    before, after = solve(few, {}), solve(more, {})
    assert before.status == "overloaded"
    saved = (worth(before, few) - worth(after, more)) / (0.01 * TARGET)
    assert before.shadow_usd_per_device_s[MI300X] == pytest.approx(saved, rel=0.02)


def test_tight_class_stays_off_slow_accelerators_even_when_they_are_all_there_is() -> None:
    tight, loose = asked("interactive", 1.0), asked("batch", 1.0)
    found = solve(problem([pool(L4)], [tight, loose]), {})
    assert found.status == "overloaded"
    assert found.shares[tight.key] == {}
    assert found.shares[loose.key] == {L4: pytest.approx(1.0)}
    assert found.services[tight.key][L4].because == "tpot"


def test_overload_leaves_out_what_has_least_at_stake() -> None:
    tight, loose = asked("interactive", 25.0), asked("batch", 500.0)
    found = solve(problem([pool(H100)], [tight, loose]), {})
    assert found.status == "overloaded"
    assert served(found, tight) > 0.9
    assert served(found, loose) < 0.2
    assert found.shadow_usd_per_device_s[H100] > 0


def test_slowed_pool_gets_less() -> None:
    each = asked("standard", 60.0)
    healthy = solve(problem([pool(MI300X), pool(GAUDI)], [each]), {})
    slowed = solve(problem([pool(MI300X), pool(GAUDI, devices=0.1)], [each]), {})
    assert slowed.shares[each.key].get(GAUDI, 0.0) < 0.3 * healthy.shares[each.key][GAUDI]


def test_models_share_the_capacity_of_a_pool_that_serves_both() -> None:
    both = pool(H100, models=(MODEL, SMALL_MODEL))
    big, small = asked("standard", 30.0), asked("standard", 900.0, model=SMALL_MODEL)
    asked_of = problem([both], [big, small])
    found = solve(asked_of, {})
    used = utilisation(asked_of, found.services, found.shares)
    assert used[H100] == pytest.approx(TARGET)
    assert found.status == "overloaded"
    alone = solve(problem([both], [big]), {})
    assert alone.status == "optimal"


def test_pool_without_the_model_gets_none_of_it() -> None:
    each = asked("standard", 10.0)
    found = solve(problem([pool(H100), pool(MI300X, models=(SMALL_MODEL,))], [each]), {})
    assert found.shares[each.key] == {H100: pytest.approx(1.0)}
    assert set(found.services[each.key]) == {H100}


def test_pools_that_cost_the_same_keep_the_shares_they_have() -> None:
    each = asked("standard", 5.0)
    twins = problem([pool(H100, name="a"), pool(H100, name="b")], [each])
    for kept in ({"a": 1.0}, {"b": 1.0}):
        assert solve(twins, {each.key: kept}).shares[each.key] == {next(iter(kept)): pytest.approx(1.0)}


def test_shares_by_capacity_use_all_pools_that_keep_the_promise_alike() -> None:
    each = asked("interactive", 10.0)
    asked_of = problem([pool(H100), pool(MI300X, workers=2), pool(L4)], [each])
    shares = proportional_shares(asked_of, solve(asked_of, {}).services)
    assert L4 not in shares[each.key]
    assert sum(shares[each.key].values()) == pytest.approx(1.0)
    used = utilisation(asked_of, solve(asked_of, {}).services, shares)
    assert used[H100] == pytest.approx(used[MI300X])


def test_plan_costs_no_more_than_shares_by_capacity() -> None:
    classes = [asked("interactive", 20.0), asked("batch", 20.0, 3000, 200)]
    asked_of = problem([pool(H100), pool(MI300X), pool(GAUDI)], classes)
    found = solve(asked_of, {})
    planned = cost_usd_per_s(asked_of, found.services, found.shares, MODEL)
    by_capacity = proportional_shares(asked_of, found.services)
    assert 0 < planned < cost_usd_per_s(asked_of, found.services, by_capacity, MODEL)


POOLS = st.lists(
    st.builds(
        pool,
        st.sampled_from(sorted(CATALOGUE.accelerators)),
        workers=st.integers(1, 50),
        devices=st.one_of(st.none(), st.floats(0, 100)),
        models=st.sampled_from(((MODEL,), (SMALL_MODEL,), (MODEL, SMALL_MODEL))),
    ),
    max_size=6,
    unique_by=lambda each: each.name,
)
CLASSES = st.lists(
    st.builds(
        ClassDemand,
        key=st.builds(
            ClassKey,
            st.sampled_from((MODEL, SMALL_MODEL)),
            st.sampled_from(sorted(PROMISES)),
            st.integers(0, 7),
            st.integers(0, 3),
        ),
        rps=st.floats(0, 1e5),
        prompt_tokens=st.floats(0, 300_000),
        completion_tokens=st.floats(0, 30_000),
        cached_fraction=st.floats(0, 1),
    ),
    max_size=12,
    unique_by=lambda each: each.key,
)


@settings(max_examples=120, deadline=None)
@given(pools=POOLS, classes=CLASSES)
def test_any_problem_has_an_answer_that_keeps_its_bounds(pools: list[Pool], classes: list[ClassDemand]) -> None:
    asked_of = problem(pools, classes)
    found = solve(asked_of, {})
    assert found.status in ("idle", "optimal", "overloaded")
    assert all(math.isfinite(price) and price >= 0 for price in found.shadow_usd_per_device_s.values())
    held = {one.name: 0.0 for one in pools}
    for each in classes:
        shares = found.shares.get(each.key, {})
        assert sum(shares.values()) <= 1 + 1e-6
        for name, share in shares.items():
            way = found.services[each.key][name]
            assert share >= 0
            assert way.feasible
            held[name] += each.rps * share * way.held_s
    for one in pools:
        assert held[one.name] <= one.devices * TARGET * (1 + 1e-6) + 1e-6
    if found.status == "optimal":
        for each in classes:
            if each.rps > 1e-6:
                assert served(found, each) == pytest.approx(1.0, abs=1e-2)


def test_figures_beyond_all_measure_fall_back_to_shares_by_capacity() -> None:
    each = asked("standard", math.inf)
    found = solve(problem([pool(H100), pool(MI300X)], [each]), {})
    assert found.status == "fallback"
    assert sum(found.shares[each.key].values()) == pytest.approx(1.0)
