import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimizer.core.rates import DecayedRate, DecayedSum
from services.optimizer.core.window import TRACEPARENTS, CountWindow, ModelWindow, sums_by_model
from tests.unit.optimizer.facts import H100, MODEL, generated


@given(times=st.lists(st.floats(0, 300), max_size=200).map(sorted))
def test_count_is_that_of_the_window_to_a_sixtieth(times: list[float]) -> None:
    window = CountWindow(60.0)
    for at_s in times:
        window.add(at_s)
    now_s = 300.0
    inside = sum(1 for at_s in times if now_s - at_s <= 59.0)
    maybe = sum(1 for at_s in times if now_s - at_s <= 61.0)
    assert inside <= window.total(now_s) <= maybe


def test_traceparents_are_the_latest_of_the_window_newest_first() -> None:
    window = ModelWindow(60.0, 0.0)
    for index in range(40):
        window.traced(f"tp-{index}", float(index))
    window.traced("", 40.0)
    found = window.traceparents(40.0)
    assert found == tuple(f"tp-{index}" for index in range(39, 39 - TRACEPARENTS, -1))
    assert window.traceparents(93.0) == tuple(f"tp-{index}" for index in range(39, 32, -1))


def test_realised_cost_is_device_seconds_and_joules_at_their_price() -> None:
    window = ModelWindow(10.0, 0.0)
    for index in range(1000):
        window.generated(50, 0.001, index * 0.1)
    realised = window.realised(100.0)
    assert realised.tokens_per_s == pytest.approx(500, rel=0.02)
    assert realised.usd_per_hour == pytest.approx(36.0, rel=0.02)


def test_batches_are_summed_by_model_without_impossible_entries() -> None:
    assert sums_by_model(generated("a", 2_000_000_000, 5_000_000, 3)) == {MODEL: (3, 2.0, 5.0)}
    assert sums_by_model(generated("a", -1, 5, 3, H100)) == {}


def test_short_history_is_divided_by_its_own_length() -> None:
    rate = DecayedRate(60.0, 0.0)
    for index in range(50):
        rate.add(1, index * 0.1)
    assert rate.per_s(5.0) == pytest.approx(10.0, rel=0.05)


def test_sum_does_not_grow_when_the_clock_goes_back() -> None:
    total = DecayedSum(10.0)
    total.add(5.0, 100.0)
    assert total.at(50.0) == 5.0
    assert total.at(110.0) == pytest.approx(5.0 / 2.718281828, rel=1e-6)
