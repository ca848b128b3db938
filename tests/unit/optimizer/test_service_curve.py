import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.core.service_curve import Promise, Station, Work, service
from tests.unit.optimizer.facts import CATALOGUE, H100, L4, MI300X, PROMISES, timing

TARGET = 0.85


def station(accelerator: str = H100, /, **bounds: int) -> Station:
    said = {
        "workers": 1,
        "max_batch": 256,
        "kv_capacity_tokens": 0,
        "context_tokens": 0,
        "prefill_chunk_tokens": 2048,
    }
    return Station(timing=timing(accelerator), **(said | bounds))


def test_batch_is_the_largest_that_keeps_the_planned_part_of_the_tpot() -> None:
    work = Work(prompt_tokens=1000, completion_tokens=200)
    found = service(station(), work, PROMISES["interactive"], TARGET)
    assert found.feasible
    planned_s = TARGET * PROMISES["interactive"].tpot_s
    full_s = found.batch * found.device_s / 199  # the TPOT of a device that is busy all the time
    assert found.tpot_s < full_s <= planned_s
    assert full_s * (found.batch + 1) / found.batch > 0.98 * planned_s


def test_device_seconds_are_prefill_and_a_part_of_each_decode_step() -> None:
    work, chosen = Work(prompt_tokens=400, completion_tokens=801), timing(H100)
    found = service(station(), work, PROMISES["standard"], TARGET)
    per_step_s = chosen.decode_s(found.batch, int(found.batch * 800.5)) / found.batch
    # The one chunk of the prompt travels in a step that reads the weights anyway.
    expected_s = chosen.prefill_s(400) - chosen.decode_base_s + 800 * per_step_s
    assert found.device_s == pytest.approx(expected_s, rel=1e-3)


def test_tight_promise_is_not_feasible_on_a_slow_accelerator() -> None:
    work = Work(prompt_tokens=300, completion_tokens=100)
    assert service(station(L4), work, PROMISES["interactive"], TARGET).because == "tpot"
    assert service(station(L4), work, PROMISES["batch"], TARGET).feasible
    assert service(station(H100), work, PROMISES["interactive"], TARGET).feasible


def test_prompt_that_takes_longer_than_the_first_token_may_is_not_feasible() -> None:
    hurried = Promise(ttft_s=0.3, ttft_s_per_prompt_token=0.0, tpot_s=0.5, miss_usd=0.001)
    assert service(station(H100), Work(20_000, 50), hurried, TARGET).because == "ttft"
    assert service(station(H100), Work(20_000, 50, cached_fraction=0.98), hurried, TARGET).feasible


@pytest.mark.parametrize(
    ("bounds", "because"), [({"context_tokens": 1000}, "context"), ({"kv_capacity_tokens": 1000}, "memory")]
)
def test_request_that_does_not_fit_says_why(bounds: dict[str, int], because: str) -> None:
    found = service(station(**bounds), Work(900, 200), PROMISES["batch"], TARGET)
    assert (found.because, found.feasible) == (because, False)
    assert 0 < found.device_s < math.inf


def test_short_answers_to_long_prompts_bound_how_busy_the_device_may_be() -> None:
    """Even one at a time, full all the time, prefills of others would come between its few tokens."""
    found = service(station(MI300X), Work(20_000, 15), PROMISES["interactive"], TARGET)
    assert (found.feasible, found.batch) == (True, 1)
    assert found.held_s > 1.2 * found.device_s
    assert found.tpot_s <= PROMISES["interactive"].tpot_s


def test_kv_cache_and_batch_limit_bound_the_batch() -> None:
    work = Work(100, 100)
    assert service(station(max_batch=7), work, PROMISES["batch"], TARGET).batch == 7
    assert service(station(kv_capacity_tokens=2000), work, PROMISES["batch"], TARGET).batch == 10


def test_looser_promise_never_costs_more() -> None:
    """A cost per token is a curve over interactivity."""
    work = Work(1000, 200)
    used = [
        service(station(H100), work, PROMISES[name], TARGET).device_s for name in ("interactive", "standard", "batch")
    ]
    assert used == sorted(used, reverse=True)
    assert used[0] > 1.2 * used[1]


def test_order_by_cost_depends_on_the_promise() -> None:
    """What a tight promise costs in batch, a slow memory pays more dearly."""
    work = Work(1000, 200)
    ratios = [
        service(station(H100), work, PROMISES[name], TARGET).device_s
        / service(station(MI300X), work, PROMISES[name], TARGET).device_s
        for name in ("interactive", "standard")
    ]
    assert ratios[0] > 1.1 * ratios[1]


def test_class_that_needs_idle_capacity_for_its_first_token_holds_more_than_it_uses() -> None:
    hurried = Promise(ttft_s=0.35, ttft_s_per_prompt_token=0.0, tpot_s=1.0, miss_usd=0.001)
    found = service(station(H100), Work(4000, 2), hurried, TARGET)
    assert found.feasible
    assert found.held_s > found.device_s
    assert found.ttft_s <= hurried.ttft_s
    patient = Promise(ttft_s=60.0, ttft_s_per_prompt_token=0.0, tpot_s=1.0, miss_usd=0.001)
    assert service(station(H100), Work(4000, 2), patient, TARGET).held_s == pytest.approx(found.device_s, rel=0.1)


def test_workers_that_share_what_arrives_wait_less() -> None:
    hurried = Promise(ttft_s=0.35, ttft_s_per_prompt_token=0.0, tpot_s=1.0, miss_usd=0.001)
    alone = service(station(H100), Work(4000, 2), hurried, TARGET)
    many = service(station(H100, workers=8), Work(4000, 2), hurried, TARGET)
    assert many.held_s < alone.held_s


STATIONS = st.builds(
    Station,
    timing=st.sampled_from(sorted(CATALOGUE.accelerators)).map(timing),
    workers=st.integers(1, 100),
    max_batch=st.integers(0, 4096),
    kv_capacity_tokens=st.integers(0, 10**7),
    context_tokens=st.just(0),
    prefill_chunk_tokens=st.integers(16, 8192),
)
WORKS = st.builds(Work, st.floats(0, 200_000), st.floats(0, 20_000), st.floats(0, 1))


@settings(max_examples=200, deadline=None)
@given(where=STATIONS, work=WORKS, promise=st.sampled_from(list(PROMISES.values())), target=st.floats(0.05, 1.0))
def test_what_is_feasible_keeps_its_promise_and_figures_are_sane(
    where: Station, work: Work, promise: Promise, target: float
) -> None:
    found = service(where, work, promise, target)
    assert found.batch >= 1
    assert 0 < found.device_s <= found.held_s * (1 + 1e-9)
    assert all(math.isfinite(value) and value >= 0 for value in (found.held_s, found.ttft_s, found.tpot_s))
    if found.feasible:
        assert found.tpot_s <= promise.tpot_s * target * (1 + 1e-9)
        assert found.ttft_s <= (promise.ttft_s + promise.ttft_s_per_prompt_token * work.prompt_tokens) * (1 + 1e-6)
        assert where.max_batch == 0 or found.batch <= where.max_batch
