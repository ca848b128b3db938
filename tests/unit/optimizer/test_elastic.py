"""Targets for replicas: enough in time, none let go that is needed again, the old ones until the new are ready."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.core.elastic import Elastic, Elasticity
from services.optimizer.core.forecast import Forecast
from services.optimizer.core.plan import Pool, Problem
from services.optimizer.core.replicas import replicas as replicas_or_none
from services.optimizer.core.replicas import serve
from tests.unit.optimizer.facts import H100, L4, MI300X
from tests.unit.optimizer.test_plan import asked, pool, problem

COLD_S = 180.0


def replicas(of: Problem, most: dict[str, int], factor: float = 1.0) -> dict[str, int]:
    found = replicas_or_none(of, most, factor)
    assert found is not None
    return found


def demand(rps: float, *accelerators: str) -> Problem:
    return problem([pool(each) for each in accelerators], [asked("interactive", rps)])


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 400), st.floats(0.1, 300), st.floats(1, 1.5))
def test_what_is_bought_serves_and_one_less_of_any_does_not_or_costs_more(
    rps: float, batch_rps: float, factor: float
) -> None:
    pools = [pool(H100), pool(MI300X), pool(L4)]
    of = problem(pools, [asked("interactive", rps), asked("batch", batch_rps, 2000, 300)])
    most = {H100: 50, MI300X: 50, L4: 50}
    bought = replicas(of, most, factor)
    assert serve(of, bought, factor)
    assert all(0 <= count <= 50 for count in bought.values())
    usd = sum(bought[each.name] * each.rate_usd_per_hour for each in pools)
    alone = {each.name: replicas(replace(of, pools=(each,)), most, factor)[each.name] for each in pools}
    for each in pools[:2]:  # each of these keeps both promises by itself
        if alone[each.name] < 50:
            assert usd <= alone[each.name] * each.rate_usd_per_hour + max(one.rate_usd_per_hour for one in pools)


def test_nothing_is_bought_for_nothing() -> None:
    assert replicas(problem([pool(MI300X)], []), {MI300X: 9}) == {MI300X: 0}
    assert replicas(problem([], [asked("interactive", 1.0)]), {}) == {}


def test_a_bound_is_bought_to_where_it_is_not_enough() -> None:
    assert replicas(demand(1000.0, MI300X), {MI300X: 2}) == {MI300X: 2}


class Growth:
    """Targets in fake time, carried out by whoever calls."""

    def __init__(self, *pools: Pool, least: int = 0, most: int = 40) -> None:
        self.elastic = Elastic(headroom=0.0)
        self.pools = [Elasticity(each, least, most, COLD_S) for each in pools]
        self.ready = {each.name: 0 for each in pools}
        self.now_s = 1_000_000.0

    def look(self, of: Problem, after_s: float = 10.0) -> dict[str, int]:
        self.now_s += after_s
        found = self.elastic.targets(of, self.pools, self.ready, self.now_s)
        self.because = {each.pool: each.because for each in found}
        self.cold_s = {each.pool: each.cold_start_s for each in found}
        return {each.pool: each.replicas for each in found}


def test_a_rise_is_met_before_it_comes() -> None:
    growth = Growth(pool(MI300X))
    for step in range(60):
        rps = 50.0 + 3 * step
        growth.ready = growth.look(demand(rps, MI300X))
    ahead_rps = 0.3 * growth.cold_s[MI300X]  # that come until one that is started now is ready
    then, later = (replicas(demand(rps + times * ahead_rps, MI300X), {MI300X: 40})[MI300X] for times in (1, 2))
    assert then <= growth.ready[MI300X] <= later + 1


def test_a_lull_shorter_than_a_cold_start_lets_nothing_go_and_a_longer_one_does() -> None:
    growth = Growth(pool(MI300X))
    for _ in range(60):
        growth.ready = growth.look(demand(300.0, MI300X))
    busy = growth.ready[MI300X]
    for _ in range(int(growth.cold_s[MI300X] / 10) - 2):
        growth.ready = growth.look(demand(30.0, MI300X))
    assert growth.ready[MI300X] == busy
    assert growth.because[MI300X] == "held"
    for _ in range(180):
        growth.ready = growth.look(demand(30.0, MI300X))
    assert growth.ready[MI300X] < busy


def test_the_old_pool_stays_until_the_new_one_is_ready() -> None:
    dear, cheap = replace(pool(H100), rate_usd_per_hour=9.0), replace(pool(MI300X), rate_usd_per_hour=1.0)
    growth = Growth(dear, cheap)
    growth.ready = {H100: 4, MI300X: 0}
    of = demand(60.0, H100, MI300X)
    for _ in range(40):
        wanted = growth.look(of)
        assert wanted[H100] == 4
        assert wanted[MI300X] > 0
    assert growth.because[H100] == "overlap"
    growth.ready = {H100: 4, MI300X: wanted[MI300X]}
    for _ in range(40):
        wanted = growth.look(of)
    assert wanted[H100] == 0


def test_least_and_most_bound_a_target() -> None:
    assert Growth(pool(MI300X), least=2).look(demand(0.1, MI300X)) == {MI300X: 2}
    assert Growth(pool(MI300X), most=3).look(demand(1e4, MI300X)) == {MI300X: 3}


def test_cold_starts_are_learnt_from_what_is_seen() -> None:
    growth = Growth(pool(MI300X))
    growth.look(demand(50.0, MI300X))
    for _ in range(39):
        growth.look(demand(50.0, MI300X))
    growth.ready = {MI300X: 1}
    growth.look(demand(50.0, MI300X))
    assert growth.cold_s[MI300X] == pytest.approx(COLD_S + 0.3 * (400 - COLD_S))


def test_a_steady_rate_is_forecast_as_it_is_and_a_rise_goes_on() -> None:
    steady, rising = Forecast(), Forecast()
    for step in range(300):
        steady.see(20.0, 10.0 * step)
        rising.see(20.0 + step, 10.0 * step)
    assert steady.at(600.0) == pytest.approx(20.0)
    assert rising.at(600.0) == pytest.approx(319 + 60, rel=0.1)


def test_the_second_day_is_known_before_it_comes() -> None:
    forecast = Forecast()
    for minute in range(1440 + 16 * 60 + 45):
        hour = minute / 60 % 24
        forecast.see(100.0 if 17 <= hour < 20 else 10.0, 60.0 * minute)
    assert forecast.most(1800.0) > 35.0
    assert forecast.at(60.0) < 20.0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e5)), max_size=60), st.floats(0, 1e5))
def test_no_history_makes_a_forecast_negative_or_endless(seen: list[tuple[float, float]], ahead_s: float) -> None:
    forecast, now_s = Forecast(), 0.0
    for rps, passed_s in seen:
        now_s += passed_s
        forecast.see(rps, now_s)
    assert 0 <= forecast.at(ahead_s) < 1e12
