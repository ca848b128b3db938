"""Costs from runs, and figures over repetitions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.datapath.fit import Cost, Run, Spread, fit_cost, percentile, spread


@settings(deadline=None)
@given(st.floats(0, 20_000), st.floats(0, 1_000), st.integers(1, 300))
def test_costs_that_lie_on_a_line_are_found_whatever_the_number_of_requests(
    us_per_request: float, us_per_token: float, requests: int
) -> None:
    true = Cost(us_per_request, us_per_token)
    runs = [Run(requests, tokens * requests, true.of(tokens) * requests) for tokens in (1, 32, 256)]
    fitted = fit_cost(runs)
    assert fitted.us_per_request == pytest.approx(us_per_request, abs=1e-3)
    assert fitted.us_per_token == pytest.approx(us_per_token, abs=1e-3)


def test_a_run_that_was_broken_off_counts_by_what_it_delivered() -> None:
    true = Cost(100.0, 10.0)
    runs = [Run(10, 10, true.of(1) * 10), Run(10, 700, true.of(70) * 10)]
    assert fit_cost(runs).us_per_token == pytest.approx(10.0)


def test_runs_of_one_length_only_are_refused() -> None:
    with pytest.raises(ValueError, match="can't tell requests from tokens"):
        fit_cost([Run(10, 320, 1.0), Run(20, 640, 2.0)])


def test_a_run_without_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="without requests"):
        fit_cost([Run(0, 0, 1.0), Run(1, 1, 1.0)])


def test_a_spread_names_median_least_and_most() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="no value"):
        spread([])


def test_percentiles_lie_between_neighbours_and_nothing_has_none() -> None:
    assert percentile([0.0, 10.0], 50) == 5.0
    assert percentile(list(range(101)), 99) == 99.0
    assert percentile([], 50) is None
