"""Caps and confines in the program: they are kept where they can be, priced, and named where they cannot."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.confines import Site
from services.optimizer.core.caps import Caps
from services.optimizer.core.demand import ClassDemand
from services.optimizer.core.plan import Pool, Problem, Solution, solve
from tests.unit.optimizer.facts import H100, L4, MI300X
from tests.unit.optimizer.test_plan import asked, pool, problem


def carbon_g_per_hour(of: Problem, found: Solution) -> float:
    pools = {each.name: each for each in of.pools}
    return 3600 * sum(
        each.rps * share * found.services[each.key][name].device_s * pools[name].g_per_device_s
        for each in of.classes
        for name, share in found.shares[each.key].items()
    )


def dirty_and_clean(rps: float) -> Problem:
    """The cheap pool's grid is dirty, the dear one's clean."""
    return problem(
        [replace(pool(MI300X), grid_g_per_kwh=800.0), replace(pool(H100), grid_g_per_kwh=50.0)],
        [asked("interactive", rps)],
    )


def test_a_carbon_cap_moves_work_to_the_clean_pool_and_is_priced() -> None:
    free = dirty_and_clean(10.0)
    before = solve(free, {})
    emitted = carbon_g_per_hour(free, before)
    capped = replace(free, caps=Caps(carbon_g_per_hour=emitted / 2))
    found = solve(capped, {})
    assert found.status == "optimal"
    assert carbon_g_per_hour(capped, found) == pytest.approx(emitted / 2, rel=1e-4)
    (limit,) = found.limits
    assert (limit.name, limit.unit, limit.exceeded) == ("carbon", "g/h", False)
    assert limit.used == pytest.approx(limit.most)
    # Its price is what a gram less would cost: the dear pool's dollars over the grams spared.
    key = capped.classes[0].key
    usd = {each.name: found.services[key][each.name].device_s * each.usd_per_device_s(0.08) for each in capped.pools}
    grams = {each.name: found.services[key][each.name].device_s * each.g_per_device_s for each in capped.pools}
    spared_usd = (usd[H100] - usd[MI300X]) / (grams[MI300X] - grams[H100])
    assert limit.usd_per_unit == pytest.approx(spared_usd, rel=1e-3)
    dirty = next(each for each in capped.pools if each.name == MI300X)
    surcharge = found.surcharge_usd_per_device_s[MI300X]
    assert surcharge == pytest.approx(limit.usd_per_unit * dirty.g_per_device_s, rel=1e-6)


def test_a_cap_that_nothing_keeps_serves_all_as_sparingly_as_may_be_and_says_so() -> None:
    for caps in (Caps(carbon_g_per_hour=0.001), Caps(carbon_g_per_mtoken=0.001)):
        found = solve(replace(dirty_and_clean(10.0), caps=caps), {})
        assert found.status == "optimal"
        assert found.shares[asked("interactive", 1.0).key] == {H100: pytest.approx(1.0)}
        assert found.limits[0].exceeded
        assert found.limits[0].name.startswith("carbon")
        assert found.limits[0].used > found.limits[0].most


def test_at_most_the_share_of_the_requests_depends_on_spot_capacity() -> None:
    spot = replace(pool(MI300X, name="spot"), spot=1.0, rate_usd_per_hour=0.5)
    some = replace(problem([spot, pool(MI300X)], [asked("interactive", 10.0)]), caps=Caps(spot_share=0.3))
    found = solve(some, {})
    assert found.shares[some.classes[0].key]["spot"] == pytest.approx(0.3)
    assert [each.name for each in found.limits] == ["spot"]
    assert found.surcharge_usd_per_device_s["spot"] > 0 == found.surcharge_usd_per_device_s[MI300X]
    only = replace(some, pools=(spot,))
    found = solve(only, {})
    assert found.status == "optimal"
    assert found.limits[0].exceeded


def placed(accelerator: str, region: str) -> Pool:
    return replace(pool(accelerator), sites=((Site(region, "", ()), 1.0),))


def confined(demand: ClassDemand, within: str) -> ClassDemand:
    return replace(demand, key=replace(demand.key, within=within))


def test_a_confined_class_is_planned_inside_and_one_that_fits_nowhere_is_named() -> None:
    inside = confined(asked("interactive", 5.0), "region=eu")
    lost = confined(asked("interactive", 2.0), "region=moon")
    of = problem([placed(MI300X, "us"), placed(H100, "eu")], [asked("interactive", 5.0), inside, lost])
    found = solve(of, {})
    assert found.shares[inside.key] == {H100: pytest.approx(1.0)}
    assert found.shares[of.classes[0].key] == {MI300X: pytest.approx(1.0)}
    assert found.shares[lost.key] == {}
    assert found.status == "overloaded"
    limit = found.limits[0]
    assert (limit.name, limit.of, limit.exceeded) == ("placement", "region=moon", True)
    assert limit.used == pytest.approx(2.0)
    assert found.services[inside.key][MI300X].because == "placement"


def test_a_pool_of_which_half_is_inside_takes_half_of_what_it_holds() -> None:
    mixed = replace(pool(L4, workers=4), sites=((Site("eu", "", ()), 0.5), (Site("us", "", ()), 0.5)))
    each = confined(asked("batch", 1000.0), "region=eu")
    found = solve(problem([mixed], [each]), {})
    assert found.filled[L4] == pytest.approx(0.5, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    grids=st.lists(st.floats(0, 1000), min_size=3, max_size=3),
    rps=st.lists(st.floats(0.1, 60), min_size=2, max_size=2),
    caps=st.builds(Caps, st.sampled_from([0.0, 1.0, 300.0]), st.sampled_from([0.0, 50.0]), st.floats(0, 1)),
    spots=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_caps_never_leave_unserved_what_is_served_without_them(
    grids: list[float], rps: list[float], caps: Caps, spots: list[bool]
) -> None:
    pools = [
        replace(pool(accelerator), grid_g_per_kwh=grid, spot=float(spot))
        for accelerator, grid, spot in zip((H100, MI300X, L4), grids, spots, strict=True)
    ]
    of = problem(pools, [asked("interactive", rps[0]), asked("batch", rps[1])])
    free, bound = solve(of, {}), solve(replace(of, caps=caps), {})
    assert free.status != "fallback"
    assert bound.status == free.status
    for each in of.classes:
        assert sum(bound.shares[each.key].values()) == pytest.approx(sum(free.shares[each.key].values()), abs=1e-3)
    assert all(limit.usd_per_unit >= 0 for limit in bound.limits)
