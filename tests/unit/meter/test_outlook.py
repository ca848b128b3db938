"""Forecasts hold what they promise; anomalies are found, and noise is none."""

import builtins
import math
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.meter.core.amounts import NOTHING, Amounts
from services.meter.core.anomalies import DAY, LEAST_HOURS, Rules, anomalies, ordinary
from services.meter.core.credits import CreditTerms
from services.meter.core.outlook import NONE, SEASONAL, Range, seasonal
from services.meter.core.promised import outcome
from services.meter.forecaster import ETS, forecast

RULES = Rules(ratio=2.0, least_nusd=1_000.0)


def _day(hour: int) -> float:
    return 10_000.0 * (1.5 + math.sin(hour / DAY * 2 * math.pi))


def _noise(kind: str, random: Random, hours: int) -> list[float]:
    """Spending of an ordinary tenant: by the hour of the day, with noise of a kind."""
    make = {
        "normal": lambda mean: max(0.0, random.gauss(mean, 0.3 * mean)),
        "lognormal": lambda mean: mean * random.lognormvariate(0.0, 0.5),
        "uniform": lambda mean: random.uniform(0.0, 2 * mean),
        "few requests": lambda mean: 900.0 * sum(random.random() < mean / 900.0 / 100 for _ in range(100)),
        "now and then": lambda mean: 20 * mean if random.random() < 0.05 else 0.0,
        "gamma": lambda mean: random.gammavariate(2.0, mean / 2.0),
    }[kind]
    return [make(_day(hour)) for hour in range(hours)]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["normal", "lognormal", "uniform", "few requests", "now and then", "gamma"]),
    st.integers(0, 2**32),
)
def test_noise_is_no_anomaly(kind: str, seed: int) -> None:
    series = _noise(kind, Random(seed), 21 * DAY)
    first = 14 * DAY
    assert anomalies(series, first, RULES) == []


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["normal", "lognormal", "few requests"]), st.integers(0, 2**32), st.integers(0, DAY - 1))
def test_an_hour_at_many_times_the_usual_is_found_with_its_numbers(kind: str, seed: int, at: int) -> None:
    series = _noise(kind, Random(seed), 14 * DAY + at)
    (found,) = anomalies([*series, 2_000_000.0], len(series), RULES)
    assert found.index == len(series)
    assert found.ordinary.usual_nusd < found.ordinary.threshold_nusd < found.spent_nusd == 2_000_000.0
    assert found.ordinary.score(found.spent_nusd) > 6


def test_a_peak_that_comes_each_day_is_usual_and_the_same_at_night_is_not() -> None:
    series = [100_000.0 if hour % DAY == 9 else 1_000.0 for hour in range(7 * DAY)]
    at_nine = ordinary([*series, *series[:9]], RULES)
    assert at_nine is not None
    assert at_nine.threshold_nusd > at_nine.usual_nusd == pytest.approx(100_000.0)
    night = ordinary([*series, *series[:3]], RULES)
    assert night is not None
    assert night.usual_nusd == pytest.approx(1_000.0)


def test_nothing_is_judged_before_there_is_history() -> None:
    assert ordinary([1_000.0] * (LEAST_HOURS - 1), RULES) is None
    assert anomalies([1_000.0] * (LEAST_HOURS - 1) + [1e9], 0, RULES) == []


def test_small_money_is_never_an_anomaly() -> None:
    assert anomalies([1.0] * LEAST_HOURS + [999.0], LEAST_HOURS, RULES) == []


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.integers(1, 24), st.integers(1, 100), st.floats(0.5, 0.99)
)
def test_intervals_hold_what_is_expected_and_sums_only_rise(
    history: list[float], season: int, steps: int, level: float
) -> None:
    outlook = seasonal(history, season, steps, level)
    assert len(outlook.steps) == len(outlook.sums) == steps
    for each in (*outlook.steps, *outlook.sums):
        assert 0 <= each.low <= each.expected <= each.high
    assert all(
        a.expected <= b.expected and a.low <= b.low for a, b in zip(outlook.sums, outlook.sums[1:], strict=False)
    )
    assert outlook.total(steps).expected == pytest.approx(sum(each.expected for each in outlook.steps))


def test_most_of_what_comes_lies_in_the_interval() -> None:
    inside = 0
    for seed in range(100):
        series = _noise("normal", Random(seed), 28 * DAY)
        outlook = seasonal(series[: 27 * DAY], DAY, DAY, 0.9)
        inside += sum(
            each.low <= came <= each.high for each, came in zip(outlook.steps, series[27 * DAY :], strict=True)
        )
    assert 0.85 <= inside / (100 * DAY) <= 0.97


def test_a_steady_spender_runs_out_when_the_budget_divides() -> None:
    outlook = seasonal([100.0] * 7 * DAY, DAY, 10 * DAY, 0.9)
    assert outlook.method == SEASONAL
    assert outlook.steps_until(2_450.0) == (pytest.approx(24.5),) * 3
    assert outlook.steps_until(0.0) == (0.0, 0.0, 0.0)
    assert outlook.steps_until(1e9) == (None, None, None)
    assert outlook.total(2.5) == Range(*(pytest.approx(250.0),) * 3)


def test_one_hour_says_little_and_the_interval_says_so() -> None:
    (step,) = seasonal([100.0], DAY, 1, 0.9).steps
    assert (step.expected, step.low) == (100.0, 0.0)
    assert step.high > 200.0


def test_of_nothing_comes_nothing() -> None:
    outlook = forecast([], DAY, 3, 0.9)
    assert (outlook.method, outlook.total(3)) == (NONE, Range(0.0, 0.0, 0.0))


def test_exponential_smoothing_finds_season_and_level_and_says_so() -> None:
    series = [_day(hour) for hour in range(5 * DAY)]
    outlook = forecast(series, DAY, DAY, 0.9)
    assert (outlook.method, outlook.because) == (ETS, "")
    for each, hour in zip(outlook.steps, range(DAY), strict=True):
        assert each.expected == pytest.approx(_day(hour), rel=0.1)
        assert each.low <= each.expected <= each.high


def test_without_the_library_the_plain_method_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("statsmodels"):
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    outlook = forecast([_day(hour) for hour in range(5 * DAY)], DAY, DAY, 0.9)
    assert outlook.method == SEASONAL
    assert "tokenworks[forecast]" in outlook.because


def test_credits_of_the_month_go_on_at_the_present_attainment() -> None:
    week = Amounts(finished_requests=700, slo_met_requests=630, price_nusd=700_000)
    day = Amounts(finished_requests=100, slo_met_requests=50, price_nusd=100_000)
    terms = CreditTerms(percent_e4=250_000)  # a quarter of the price, 1,000 nano-dollars
    found = outcome(week, day, week, 5_000, terms, week_h=168.0, left_h=24.0)
    assert found.attainment == 0.5
    assert found.expected_nusd == pytest.approx(5_000 + 100 * 0.5 * 250)
    assert found.most_nusd == pytest.approx(5_000 + 100 * 250)
    assert found.expected_price_nusd == pytest.approx(800_000)
    quiet = outcome(NOTHING, NOTHING, NOTHING, 0, terms, week_h=1.0, left_h=24.0)
    assert (quiet.attainment, quiet.expected_nusd) == (1.0, 0)
