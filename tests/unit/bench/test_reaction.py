"""When a slowed worker counts as left alone, and what a histogram says of a quantile."""

import pytest

from bench.reaction import left_alone_s, upper_quantile_s


def test_a_worker_is_left_alone_from_its_last_placement_before_it_gets_little() -> None:
    placed_s = [9.0, 9.5, 10.1, 10.2, 10.3, 13.5]  # the last: tried on purpose
    assert left_alone_s(placed_s, 10.0, usual_rps=4.0, until_s=15.0) == pytest.approx(0.2)


def test_a_worker_that_gets_nothing_more_is_left_alone_at_once() -> None:
    assert left_alone_s([8.0, 9.0], 10.0, usual_rps=4.0, until_s=15.0) == 0.0


def test_a_worker_that_goes_on_getting_its_part_is_never_left_alone() -> None:
    placed_s = [10.0 + number / 10 for number in range(51)]
    assert left_alone_s(placed_s, 10.0, usual_rps=10.0, until_s=15.0) is None


def test_a_quantile_is_at_most_the_bound_of_its_bucket() -> None:
    buckets = {0.1: 50.0, 0.2: 98.0, 0.5: 99.0, 1.0: 100.0, float("inf"): 100.0}
    assert upper_quantile_s(buckets, 0.5) == 0.1
    assert upper_quantile_s(buckets, 0.99) == 0.5
    assert upper_quantile_s(buckets, 1.0) == 1.0
