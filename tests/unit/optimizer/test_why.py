"""Why a pool is used as it is: what is said holds, and what is said to change it does."""

import pytest

from services.mesh.errors import InvalidRequest
from services.optimizer.core.beliefs import Snapshot
from services.optimizer.core.plan import solve
from services.optimizer.core.what_if import PoolChange, changed
from services.optimizer.core.why import PoolReason, why
from tests.unit.optimizer.facts import H100, L4, MI300X, MODEL
from tests.unit.optimizer.test_planner import Brain

POOLS = (H100, MI300X, L4)


def busy() -> Snapshot:
    brain = Brain(*POOLS)
    brain.work(30.0, rps=20.0)
    return brain.snapshot()


def reason(snapshot: Snapshot, pool: str) -> PoolReason:
    return why(snapshot, solve(snapshot.problem, {}), MODEL, pool)


def test_what_has_a_class_costs_no_more_for_it_than_the_best_all_told() -> None:
    snapshot = busy()
    shares = 0.0
    for pool in POOLS:
        for each in reason(snapshot, pool).classes:
            shares += each.share
            if each.share > 1e-6:
                assert each.because in {"cheapest", "shared"}
                assert each.told_usd == pytest.approx(each.best_told_usd, rel=1e-4)
            else:
                assert each.because in {"dearer", "full", "tpot", "ttft", "memory", "context", "no demand"}
    assert shares == pytest.approx(len(snapshot.problem.classes))


def test_a_dearer_pool_takes_the_class_at_the_rate_that_is_said() -> None:
    snapshot = busy()
    checked = 0
    for pool in POOLS:
        told = reason(snapshot, pool)
        for at, each in enumerate(told.classes):
            if each.because != "dearer" or each.breakeven_usd_per_hour <= 0:
                continue
            checked += 1
            part = each.breakeven_usd_per_hour / told.pool.rate_usd_per_hour
            for factor, takes in ((0.98, True), (1.02, False)):
                then = reason(changed(snapshot, MODEL, 1.0, [PoolChange(pool, rate_factor=part * factor)]), pool)
                assert (then.classes[at].share > 0.0) == takes
    assert checked


def test_capacity_that_binds_is_named_with_what_one_more_worker_saves() -> None:
    brain = Brain(H100, MI300X)
    brain.work(30.0, rps=20.0)
    # Enough demand that the cheapest is full and the next serves the rest.
    for demand_factor in (1.1**at for at in range(80)):
        now = changed(brain.snapshot(), MODEL, demand_factor, [])
        told = {pool: reason(now, pool) for pool in (H100, MI300X)}
        if any(each.binding for each in told.values()):
            break
    full = next(pool for pool in told if told[pool].binding == "capacity")
    assert [each.status for each in told.values()] == ["optimal", "optimal"]
    more = changed(brain.snapshot(), MODEL, demand_factor, [PoolChange(full, add_workers=1)])
    assert told[full].shadow_usd_per_device_s > 0
    assert told[full].saving_usd_per_hour > 0
    assert reason(more, full).shadow_usd_per_device_s <= told[full].shadow_usd_per_device_s


def test_a_pool_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(InvalidRequest, match=f"pools that do: .*{L4}"):
        reason(busy(), "nowhere")


def test_without_demand_there_is_nothing_to_say_of_classes() -> None:
    told = reason(Brain(H100).snapshot(), H100)
    assert (told.status, told.binding, told.classes) == ("idle", "", ())
