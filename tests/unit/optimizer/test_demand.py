import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.core import demand as core
from services.optimizer.core.demand import (
    COMPLETION_EDGES,
    PROMPT_EDGES,
    Demand,
    beyond_chance,
    bucket,
    bucket_range,
)
from tests.unit.optimizer.facts import MODEL, PROMISES, SMALL_MODEL, admitted, finished

WINDOW_S = 60.0


def demand() -> Demand:
    return Demand(WINDOW_S, tuple(PROMISES), 0.0)


def arrivals(rng: random.Random, rps: float, from_s: float, until_s: float) -> Iterator[float]:
    now_s = from_s
    while (now_s := now_s + rng.expovariate(rps)) < until_s:
        yield now_s


def test_nothing_heard_is_no_demand() -> None:
    assert demand().classes(10.0) == []
    assert demand().levels(10.0) == {}
    assert not demand().changed({}, 0.25, 10.0)


def test_rates_and_means_of_a_steady_stream_are_found() -> None:
    found, rng = demand(), random.Random(1)
    for now_s in arrivals(rng, 20.0, 0.0, 180.0):
        found.admitted(admitted(prompt_tokens=600), now_s)
        found.finished(finished(rng.choice((20, 100)), prompt_tokens=600), now_s)
    short, long = found.classes(180.0)
    assert short.rps + long.rps == pytest.approx(20.0, rel=0.25)
    assert short.rps == pytest.approx(long.rps, rel=0.2)
    assert (short.completion_tokens, long.completion_tokens) == pytest.approx((20, 100))
    assert (short.prompt_tokens, long.prompt_tokens) == pytest.approx((600, 600))
    assert (short.key.prompt_bucket, short.key.completion_bucket) == (2, 0)


def test_demand_fades_when_nothing_arrives() -> None:
    found = demand()
    for index in range(600):
        found.admitted(admitted(), index * 0.1)
    busy_rps = sum(found.levels(60.0).values())
    assert busy_rps == pytest.approx(10.0, rel=0.1)
    assert sum(found.levels(90.0).values()) < 0.2 * busy_rps
    assert found.classes(60.0 + 30 * WINDOW_S) == []
    found.forget_silent(60.0 + 60 * WINDOW_S)
    assert found.levels(60.0 + 60 * WINDOW_S) == {}


def test_doubled_demand_is_noticed_within_seconds_and_believed_at_once() -> None:
    found, rng = demand(), random.Random(2)
    for now_s in arrivals(rng, 40.0, 0.0, 120.0):
        found.admitted(admitted(), now_s)
    basis = found.levels(120.0)
    noticed_s = 0.0
    for now_s in arrivals(rng, 80.0, 120.0, 140.0):
        found.admitted(admitted(), now_s)
        if not noticed_s and found.changed(basis, 0.25, now_s):
            noticed_s = now_s
    assert 120.0 < noticed_s < 123.0
    assert sum(each.rps for each in found.classes(140.0)) == pytest.approx(80.0, rel=0.25)


def test_vanished_demand_is_news() -> None:
    found = demand()
    for index in range(1200):
        found.admitted(admitted(), index * 0.05)
    basis = found.levels(60.0)
    assert not found.changed(basis, 0.25, 60.0)
    assert found.changed(basis, 0.25, 64.0)


@pytest.mark.parametrize("rps", [0.5, 5.0, 50.0])
def test_chance_is_not_news(rps: float) -> None:
    found, rng = demand(), random.Random(3)
    basis = {(MODEL, "standard"): rps}
    false_alarms = looks = 0
    for now_s in arrivals(rng, rps, 0.0, 600.0):
        found.admitted(admitted(), now_s)
        if now_s > 120.0:
            looks += 1
            false_alarms += found.changed(basis, 0.25, now_s)
    assert false_alarms <= 0.03 * looks


def test_before_an_answer_was_seen_max_tokens_bounds_the_guess() -> None:
    found = demand()
    found.admitted(admitted("standard", max_tokens=40), 1.0)
    found.admitted(admitted("batch", max_tokens=100_000), 1.0)
    by_class = {each.key.slo_class: each.completion_tokens for each in found.classes(1.0)}
    assert by_class == {"standard": pytest.approx(40), "batch": 256}


def test_answers_of_the_class_stand_in_for_a_prompt_length_not_seen_before() -> None:
    found = demand()
    for now_s in range(10):
        found.admitted(admitted(prompt_tokens=100), now_s)
        found.finished(finished(700, prompt_tokens=100), now_s)
    found.admitted(admitted(prompt_tokens=5000), 10.0)
    long_prompts = [each for each in found.classes(10.0) if each.prompt_tokens == 5000]
    assert [each.completion_tokens for each in long_prompts] == [pytest.approx(700)]


def test_failed_requests_say_nothing_about_answers() -> None:
    found = demand()
    found.admitted(admitted(max_tokens=50), 0.0)
    found.finished(finished(1, outcome="error"), 1.0)
    found.finished(finished(0, outcome="cancelled"), 1.0)
    assert [each.completion_tokens for each in found.classes(1.0)] == [pytest.approx(50)]


def test_cached_part_of_prompts_is_learnt() -> None:
    found = demand()
    for now_s in range(20):
        found.admitted(admitted(prompt_tokens=1000), now_s)
        found.finished(finished(50, prompt_tokens=1000, cached_prompt_tokens=750), now_s)
    assert found.classes(20.0)[0].cached_fraction == pytest.approx(0.75)


def test_classes_without_a_promise_are_left_out() -> None:
    found = demand()
    found.admitted(admitted("platinum"), 1.0)
    found.finished(finished(5, "platinum"), 1.0)
    assert found.classes(1.0) == []
    assert found.levels(1.0) == {}


def test_classes_too_small_to_plan_give_their_demand_to_the_rest() -> None:
    found = demand()
    for index in range(2000):
        found.admitted(admitted(prompt_tokens=300), index * 0.02)
    found.admitted(admitted(prompt_tokens=20_000), 40.0)
    classes = found.classes(40.0)
    assert len(classes) == 1
    assert classes[0].rps == pytest.approx(sum(found.levels(40.0).values()), rel=0.01)


@settings(max_examples=30, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from(sorted(PROMISES)),
            st.integers(0, 200_000),
            st.integers(0, 5000),
            st.sampled_from((MODEL, SMALL_MODEL)),
        ),
        max_size=150,
    )
)
def test_classes_carry_the_whole_demand_and_stay_in_their_buckets(requests: list[tuple[str, int, int, str]]) -> None:
    found = demand()
    now_s = 0.0
    for slo_class, prompt_tokens, completion_tokens, model in requests:
        now_s += 0.1
        found.admitted(admitted(slo_class, prompt_tokens, model=model), now_s)
        found.finished(finished(completion_tokens, slo_class, prompt_tokens, model=model), now_s)
    classes = found.classes(now_s)
    assert sum(each.rps for each in classes) == pytest.approx(sum(found.levels(now_s).values()), rel=1e-6, abs=1e-9)
    assert len({each.key for each in classes}) == len(classes)
    for each in classes:
        start, end = bucket_range(PROMPT_EDGES, each.key.prompt_bucket)
        assert start - 1e-6 <= each.prompt_tokens < (end or 1e9) + 1e-6
        start, end = bucket_range(COMPLETION_EDGES, each.key.completion_bucket)
        assert start - 1e-6 <= each.completion_tokens < (end or 1e9) + 1e-6


def test_buckets_tile_all_counts() -> None:
    for tokens in (0, 1, 255, 256, 1023, 1024, 16_383, 16_384, 10**9):
        start, end = bucket_range(PROMPT_EDGES, bucket(PROMPT_EDGES, tokens))
        assert start <= tokens
        assert end == 0 or tokens < end


def test_chance_is_judged_by_how_much_was_counted() -> None:
    assert beyond_chance(100.0, 200.0, 3.0)
    assert not beyond_chance(0.1, 0.2, 3.0)
    assert not beyond_chance(0.0, 0.0, 3.0)


def test_confines_that_nobody_can_read_stop_no_plan() -> None:
    found = demand()
    for index in range(100):
        found.admitted(replace(admitted(), within=("x", "data=health;region=eu-1")[index % 2]), index * 0.1)
    assert {each.key.within for each in found.classes(10.0)} == {"", "region=eu-1;data=health"}


def test_models_beyond_the_most_that_are_counted_are_left_out_until_others_are_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core, "_MOST_CELLS", 3)
    found = demand()
    for number in range(20):
        found.admitted(admitted(model=f"m{number}"), 1.0)
        found.finished(finished(20, model=f"m{number}"), 1.0)
    assert {model for model, _ in found.levels(1.0)} == {"m0", "m1", "m2"}
    found.forget_silent(1.0 + 60 * WINDOW_S)
    found.admitted(admitted(model="m9"), 1.0 + 60 * WINDOW_S)
    assert {model for model, _ in found.levels(1.0 + 60 * WINDOW_S)} == {"m9"}
