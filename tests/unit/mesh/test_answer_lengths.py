"""How long answers are, learnt online: what is expected, how surely, and that it begins anew when answers change."""

from random import Random
from statistics import mean, quantiles

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.answer_lengths import AnswerLengths, Lengths

WIDTH = 1.2  # of a bucket: what is told is at most so far off

some_lengths = st.lists(st.integers(1, 100_000), min_size=1, max_size=40)


def learnt(lengths: list[int]) -> AnswerLengths:
    made = AnswerLengths()
    for each in lengths:
        made.add(each)
    return made


def told(lengths: list[int]) -> Lengths:
    return learnt(lengths).lengths(None, 0.0)


@settings(max_examples=40)
@given(some_lengths)
def test_quantiles_rise_and_lie_within_their_intervals_and_within_what_was_seen(seen: list[int]) -> None:
    lengths, before = told(seen), 0.0
    for part in (0.0, 0.1, 0.5, 0.9, 0.99, 1.0):
        quantile = lengths.quantile(part)
        assert before <= quantile.tokens
        assert quantile.least <= quantile.tokens <= quantile.most
        assert min(seen) * (1 - 1e-9) <= quantile.least <= quantile.most <= max(seen) * (1 + 1e-9)
        before = quantile.tokens


@settings(max_examples=40)
@given(some_lengths, st.integers(1, 200_000))
def test_a_bound_shortens_what_is_expected_and_what_is_made_leaves_something(seen: list[int], tokens: int) -> None:
    lengths = told(seen)
    assert lengths.mean_within(tokens) <= min(lengths.mean, tokens) * (1 + 1e-9)
    assert lengths.mean_within(tokens + 1) >= lengths.mean_within(tokens) * (1 - 1e-9)
    assert lengths.mean_left(tokens) >= 1.0
    assert lengths.mean_left(0) == pytest.approx(lengths.mean)


@settings(max_examples=40)
@given(some_lengths)
def test_parts_are_a_distribution_with_the_mean(seen: list[int]) -> None:
    parts = told(seen).parts()
    assert sum(part for _, part in parts) == pytest.approx(1.0)
    assert sum(tokens * part for tokens, part in parts) == pytest.approx(told(seen).mean)


@settings(max_examples=20)
@given(st.integers(0, 1 << 30), st.floats(2.5, 7.0), st.floats(0.1, 1.2))
def test_of_answers_that_stay_alike_the_quantiles_are_found(seed: int, mu: float, sigma: float) -> None:
    rng = Random(seed)
    seen = [max(1, round(rng.lognormvariate(mu, sigma))) for _ in range(1000)]
    lengths, cut = told(seen[-600:]), quantiles(seen[-600:], n=10)
    for part, true in ((0.5, cut[4]), (0.9, cut[8])):
        quantile = lengths.quantile(part)
        assert quantile.least / WIDTH <= true * 1.35
        assert quantile.most * WIDTH >= true / 1.35


def test_a_changed_workload_is_known_after_its_first_answers() -> None:
    rng = Random(1)
    made = learnt([rng.randint(150, 250) for _ in range(500)])
    assert made.drifts == 0
    for _ in range(24):
        made.add(rng.randint(15, 25))
    assert made.drifts >= 1
    assert made.lengths(None, 0.0).quantile(0.9).tokens < 40
    assert made.answers < 30
    assert all(each <= 25 for each in made.recent)


def test_chance_is_no_change() -> None:
    rng = Random(2)
    made = learnt([max(1, round(rng.lognormvariate(5.0, 1.0))) for _ in range(5000)])
    assert made.drifts == 0
    assert made.answers == pytest.approx(200.0, rel=0.01)


def test_old_answers_fade() -> None:
    rng = Random(3)
    slowly = [round(100 * 1.0005**index * rng.uniform(0.5, 1.5)) for index in range(4000)]  # no jump anywhere
    assert told(slowly).mean == pytest.approx(mean(slowly[-400:]), rel=0.15)


def test_few_answers_leave_more_open_than_many() -> None:
    rng = Random(4)
    seen = [rng.randint(10, 1000) for _ in range(200)]
    few, many = told(seen[:10]).quantile(0.5), told(seen).quantile(0.5)
    assert few.most - few.least > 1.5 * (many.most - many.least)


def test_a_wider_kind_counts_until_there_are_answers_of_its_own() -> None:
    wider = told([1000] * 50)
    first = learnt([10]).lengths(wider, 5.0)
    assert first.mean == pytest.approx((10 + 5 * 1000) / 6, rel=0.01)
    assert first.answers == pytest.approx(1.0)
    assert learnt([10] * 1000).lengths(wider, 5.0).mean == pytest.approx(10, rel=0.05)


def test_weights_stay_numbers_however_many_answers_come() -> None:
    made = learnt([100] * 60_000)
    assert made.lengths(None, 0.0).mean == pytest.approx(100)
    assert made.answers == pytest.approx(200, rel=0.01)


def test_an_answer_beyond_all_buckets_counts_as_the_longest() -> None:
    assert told([1 << 40]).mean == 1 << 21
    assert told([0]).mean == 1
