import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimizer.core.damping import approach, damped_shadow, damped_shares
from services.optimizer.core.demand import ClassKey
from services.optimizer.core.plan import Solution
from services.optimizer.core.service_curve import Service
from tests.unit.optimizer.facts import MODEL

KEY = ClassKey(MODEL, "standard", 2, 1)
OK = Service("", 8, 0.1, 0.1, 0.2, 0.01)
TOO_SLOW = Service("tpot", 1, 9.0, 9.0, 9.0, 9.0)


def solution(shares: dict[str, float], infeasible: tuple[str, ...] = ()) -> Solution:
    pools = dict.fromkeys(("a", "b", "c"), OK) | dict.fromkeys(infeasible, TOO_SLOW)
    return Solution("optimal", {KEY: pools}, {KEY: shares}, {})


def test_news_is_followed_at_once_and_time_in_part() -> None:
    assert approach(0.0, news=True) == 1.0
    assert approach(0.0, news=False) == 0.0
    assert 0 < approach(0.25, news=False) < approach(1.0, news=False) < 0.5
    assert approach(60.0, news=False) == pytest.approx(1.0)


def test_answer_that_flips_each_second_moves_little() -> None:
    shares = {KEY: {"a": 0.5, "b": 0.5}}
    part = approach(1.0, news=False)
    swings = []
    for second in range(40):
        shares = damped_shares(shares, solution({"a": 1.0} if second % 2 else {"b": 1.0}), part)
        swings.append(shares[KEY]["a"])
    late = swings[20:]
    assert max(late) - min(late) < 0.3
    assert sum(late) / len(late) == pytest.approx(0.5, abs=0.1)


def test_answer_that_stays_is_reached_and_what_fades_ends() -> None:
    shares = {KEY: {"a": 1.0}}
    for _ in range(40):
        shares = damped_shares(shares, solution({"b": 1.0}), approach(1.0, news=False))
    assert shares[KEY] == {"b": pytest.approx(1.0)}


def test_small_share_is_reached_however_often_plans_are_made() -> None:
    shares = {KEY: {"a": 1.0}}
    for _ in range(2000):
        shares = damped_shares(shares, solution({"a": 0.98, "b": 0.02}), approach(0.02, news=False))
    assert shares[KEY]["b"] == pytest.approx(0.02, rel=0.01)


def test_pool_that_became_too_slow_loses_its_share_at_once() -> None:
    before = {KEY: {"a": 0.7, "b": 0.3}}
    shares = damped_shares(before, solution({"b": 1.0}, infeasible=("a",)), 0.1)
    assert shares[KEY] == {"b": pytest.approx(1.0)}


def test_class_that_is_new_takes_the_answer() -> None:
    assert damped_shares({}, solution({"a": 0.4, "c": 0.6}), 0.1)[KEY] == {"a": 0.4, "c": 0.6}


def test_class_that_is_served_no_more_has_no_shares() -> None:
    assert damped_shares({KEY: {"a": 1.0}}, solution({}), 0.1)[KEY] == {}


SHARES = st.dictionaries(st.sampled_from("abc"), st.floats(0.001, 1.0), min_size=1).map(
    lambda parts: {pool: part / sum(parts.values()) for pool, part in parts.items()}
)


@given(before=SHARES, target=SHARES, served=st.floats(0.01, 1.0), part=st.floats(0, 1))
def test_shares_add_up_to_what_is_served(
    before: dict[str, float], target: dict[str, float], served: float, part: float
) -> None:
    scaled = {pool: share * served for pool, share in target.items()}
    shares = damped_shares({KEY: before}, solution(scaled), part)[KEY]
    assert sum(shares.values()) == pytest.approx(served)
    assert all(share >= 0 for share in shares.values())


def priced(prices: dict[str, float], filled: float) -> Solution:
    return Solution("optimal", {}, {}, prices, dict.fromkeys(prices, filled))


def test_shadow_prices_at_the_edge_of_capacity_follow_in_part_and_end_at_zero() -> None:
    prices = {"a": 0.01}
    part = approach(1.0, news=False)
    prices = damped_shadow(prices, priced({"a": 0.0, "new": 0.002}, 1.0), part)
    assert 0.005 < prices["a"] < 0.01
    for _ in range(40):
        prices = damped_shadow(prices, priced({"a": 0.0, "new": 0.002}, 1.0), part)
    assert prices == {"a": 0.0, "new": pytest.approx(0.002)}


def test_pool_with_room_has_no_shadow_price_at_once() -> None:
    assert damped_shadow({"a": 0.01, "gone": 1.0}, priced({"a": 0.0}, 0.5), 0.1) == {"a": 0.0}
