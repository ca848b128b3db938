import math
import random
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.timing import StepLoad, Timing
from services.optimizer.core import capacity as core
from services.optimizer.core.capacity import (
    FASTEST,
    QUIET_S,
    Capacity,
    TimingFit,
    starting_timing,
    typical_request_s,
)
from tests.unit.optimizer.facts import (
    CATALOGUE,
    H100,
    L4,
    MODEL,
    latency,
    mixed_load,
    noisy,
    sample,
    scaled,
    steps,
    timing,
)

START = timing(H100)
EDGES = (0, 1, -1, 64, 2**31 - 1, 2**53, 2**63 - 1)
SECONDS = (5e-324, 1e-300, 1e-12, 1e-9, 1e-3, 0.5, 600.0, 1e300, math.inf, math.nan)
SPACING_S = 0.05  # twenty samples a second, as a worker reports them


def taught(fit: TimingFit, true: Timing, count: int, rng: random.Random, from_s: float = 0.0) -> float:
    """Teaches `count` steps of a device like `true`; the second of the last one."""
    now_s = from_s
    for _ in range(count):
        now_s += SPACING_S
        load = mixed_load(rng)
        fit.observe(load, noisy(true.step_s(load), rng), now_s)
    return now_s


def worst_error(fit: TimingFit, true: Timing, now_s: float) -> float:
    rng = random.Random(99)
    found = fit.timing(now_s)
    loads = [mixed_load(rng) for _ in range(100)]
    return max(abs(found.step_s(load) - true.step_s(load)) / true.step_s(load) for load in loads)


@settings(max_examples=25, deadline=None)
@given(
    factors=st.lists(st.floats(0.2, 5.0), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
def test_fit_converges_to_any_other_timing_within_400_steps(factors: list[float], seed: int) -> None:
    true = scaled(START, factors)
    fit = TimingFit(START, 0.995)
    now_s = taught(fit, true, 400, random.Random(seed))
    assert worst_error(fit, true, now_s) < 0.25
    assert fit.mean_error < 0.15
    assert fit.observations == 400


@settings(max_examples=15, deadline=None)
@given(factor=st.sampled_from((10.0, 5.0, 3.0)), seed=st.integers(0, 1000))
def test_slowdown_and_recovery_are_followed_within_a_second_of_samples(factor: float, seed: int) -> None:
    rng = random.Random(seed)
    fit = TimingFit(START, 0.995)
    now_s = taught(fit, START, 300, rng)
    now_s = taught(fit, START.scaled(factor), 20, rng, now_s)
    assert worst_error(fit, START.scaled(factor), now_s) < 0.3
    now_s = taught(fit, START, 20, rng, now_s)
    assert worst_error(fit, START, now_s) < 0.3


def test_slowdown_keeps_the_shape_that_was_learnt() -> None:
    true = scaled(START, (1, 1, 1, 1, 4, 0.3))
    rng = random.Random(5)
    fit = TimingFit(START, 0.995)
    now_s = taught(fit, true, 600, rng)
    now_s = taught(fit, true.scaled(10), 6, rng, now_s)
    assert worst_error(fit, true.scaled(10), now_s) < 0.2


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(
        st.tuples(
            st.integers(0, 100_000),
            st.integers(0, 10**9),
            st.integers(0, 4096),
            st.integers(0, 10**8),
            st.floats(allow_nan=True, allow_infinity=True),
        ),
        max_size=60,
    )
)
def test_coefficients_stay_positive_and_finite_whatever_is_reported(
    samples: list[tuple[int, int, int, int, float]],
) -> None:
    fit = TimingFit(START, 0.995)
    for index, (prefill, attended, sequences, kv, step_s) in enumerate(samples):
        fit.observe(StepLoad(prefill, attended, sequences, kv), step_s, index * SPACING_S)
        found = astuple(fit.timing(index * SPACING_S))
        assert all(0 < value < math.inf for value in found)
        assert 0 <= fit.mean_error <= 10


def test_samples_that_cannot_be_steps_teach_nothing() -> None:
    fit = TimingFit(START, 0.995)
    load = StepLoad(decode_sequences=4, kv_tokens=1000)
    for step_s in (0.0, -1.0, math.nan, math.inf, 601.0):
        assert not fit.observe(load, step_s, 0.0)
    assert not fit.observe(StepLoad(), 0.01, 0.0)
    assert not fit.observe(StepLoad(decode_sequences=1, kv_tokens=-5), 0.01, 0.0)
    assert fit.observations == 0
    assert astuple(fit.timing(0.0)) == pytest.approx(astuple(START))


def test_one_kind_of_step_does_not_wreck_the_other_coefficients() -> None:
    """A device twice as slow in the one step it was ever seen to make is believed twice as slow, not more."""
    rng = random.Random(3)
    load = StepLoad(decode_sequences=1, kv_tokens=100)
    fit = TimingFit(START, 0.995)
    for index in range(5000):
        fit.observe(load, noisy(2 * START.step_s(load), rng, 0.1), index * SPACING_S)
    now_s = 5000 * SPACING_S
    assert fit.timing(now_s).step_s(load) == pytest.approx(2 * START.step_s(load), rel=0.1)
    ratios = [found / start for found, start in zip(astuple(fit.timing(now_s)), astuple(START), strict=True)]
    assert all(1.0 < ratio < 2.5 for ratio in ratios)
    # What was not seen is still learnt quickly once it is.
    taught(fit, START.scaled(2), 40, rng, now_s)
    assert worst_error(fit, START.scaled(2), now_s) < 0.2


def test_one_stalled_step_moves_little() -> None:
    rng = random.Random(1)
    fit = TimingFit(START, 0.995)
    now_s = taught(fit, START, 300, rng)
    load = StepLoad(decode_sequences=16, kv_tokens=16_000)
    before_s = fit.timing(now_s).step_s(load)
    fit.observe(load, 100 * before_s, now_s)
    assert fit.timing(now_s).step_s(load) == pytest.approx(before_s, rel=0.1)


def test_never_forgetting_is_allowed() -> None:
    fit = TimingFit(START, 1.0)
    now_s = taught(fit, START.scaled(1.3), 500, random.Random(2))
    assert worst_error(fit, START.scaled(1.3), now_s) < 0.1


def test_a_slow_device_that_nobody_uses_is_believed_usual_again_until_it_shows() -> None:
    rng = random.Random(4)
    fit = TimingFit(START, 0.995)
    now_s = taught(fit, START, 400, rng)
    now_s = taught(fit, START.scaled(10), 20, rng, now_s)
    load = StepLoad(decode_sequences=16, kv_tokens=16_000)
    slow_s = fit.timing(now_s).step_s(load)
    assert fit.timing(now_s + QUIET_S).step_s(load) == pytest.approx(slow_s)
    assert fit.timing(now_s + QUIET_S + 60).step_s(load) < 2 * START.step_s(load)
    fit.observe(load, slow_s, now_s + QUIET_S + 60)
    assert fit.timing(now_s + QUIET_S + 60).step_s(load) == pytest.approx(slow_s, rel=0.1)


def test_pool_starts_from_the_catalogue() -> None:
    pace = Capacity(CATALOGUE, 0.995).pace(H100, H100, MODEL, ("a", "b"), 0.0)
    assert pace.timing == START
    assert (pace.speeds, pace.observations, pace.mean_error) == ((1.0, 1.0), 0, 0.0)


def test_one_slow_worker_of_three_counts_for_its_part_and_leaves_the_pools_timing() -> None:
    capacity = Capacity(CATALOGUE, 0.995)
    for worker, factor in (("a", 1.0), ("b", 10.0), ("c", 1.0)):
        capacity.observed(latency(worker, steps(START, 200, seed=ord(worker), factor=factor)), 1.0)
    pace = capacity.pace(H100, H100, MODEL, ("a", "b", "c"), 1.0)
    assert typical_request_s(pace.timing) == pytest.approx(typical_request_s(START), rel=0.1)
    assert pace.speeds == pytest.approx((1.0, 0.1, 1.0), abs=0.1)
    assert pace.observations == 600


def test_a_quick_worker_counts_at_most_for_the_stated_bound() -> None:
    capacity = Capacity(CATALOGUE, 0.995)
    for worker, factor in (("a", 1.0), ("b", 1.0), ("c", 0.1)):
        capacity.observed(latency(worker, steps(START, 200, seed=ord(worker), factor=factor)), 1.0)
    assert capacity.pace(H100, H100, MODEL, ("c",), 1.0).speeds == (FASTEST,)


def test_new_worker_starts_from_its_pools_pace() -> None:
    capacity = Capacity(CATALOGUE, 0.995)
    capacity.observed(latency("a", steps(START, 200, factor=3.0)), 1.0)
    load = StepLoad(decode_sequences=8, kv_tokens=8000)
    capacity.observed(latency("b", [sample(load, 3 * START.step_s(load))]), 1.0)
    pace = capacity.pace(H100, H100, MODEL, ("a", "b"), 1.0)
    assert pace.speeds == pytest.approx((1.0, 1.0), abs=0.1)


def test_pool_keeps_its_pace_when_its_worker_is_forgotten() -> None:
    capacity = Capacity(CATALOGUE, 0.995)
    capacity.observed(latency("a", steps(START, 400, factor=2.0)), 1.0)
    capacity.forget("a")
    capacity.forget("never heard of")
    pace = capacity.pace(H100, H100, MODEL, ("b",), 1.0)
    assert pace.observations == 0
    assert typical_request_s(pace.timing) == pytest.approx(2 * typical_request_s(START), rel=0.3)


def test_what_was_learnt_of_another_accelerator_is_not_taken_over() -> None:
    capacity = Capacity(CATALOGUE, 0.995)
    capacity.adopt("pool", H100, MODEL, START.scaled(2))
    assert capacity.pace("pool", H100, MODEL, ("a",), 0.0).timing == START.scaled(2)
    assert capacity.pace("pool", L4, MODEL, ("a",), 0.0).timing == timing(L4)


def test_unknown_accelerators_and_models_start_as_middling_ones() -> None:
    for accelerator, model in (("acme-9000", MODEL), (H100, "some-model"), ("acme-9000", "some-model")):
        found = starting_timing(CATALOGUE, accelerator, model)
        assert all(value > 0 for value in astuple(found))
    assert starting_timing(CATALOGUE, H100, MODEL) == START


@given(st.lists(st.tuples(*[st.sampled_from(EDGES)] * 4, st.sampled_from(SECONDS)), max_size=40))
def test_no_step_however_absurd_breaks_a_fit(told: list[tuple[int, int, int, int, float]]) -> None:
    fit, now_s = TimingFit(START, 0.995), 0.0
    for *load, step_s in told:
        now_s += SPACING_S
        fit.observe(StepLoad(*load), step_s, now_s)
        assert all(0 < each < math.inf for each in astuple(fit.timing(now_s + 60.0)))


def test_workers_that_tell_of_steps_and_never_of_themselves_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_MOST_FITS", 10)
    monkeypatch.setattr(core, "_MOST_ADOPTED", 5)
    capacity, step = Capacity(CATALOGUE, 0.995), steps(START, 1)
    learnt = [capacity.observed(latency(f"w{each}", step, pool=f"p{each}"), 1.0) for each in range(100)]
    assert sum(learnt) == 10
    capacity.forget_others({"w0"})
    assert capacity.pace("p0", H100, MODEL, ("w0",), 1.0).observations == 1
    assert capacity.pace("p1", H100, MODEL, ("w1",), 1.0).observations == 0
    assert capacity.observed(latency("w99", step, pool="p99"), 1.0)
    assert len(capacity._adopted) == 5
