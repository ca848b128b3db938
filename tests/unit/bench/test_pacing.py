"""When tokens are due."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.datapath.pacing import Due, Steps


@settings(deadline=None)
@given(st.dictionaries(st.integers(), st.integers(1, 20), min_size=1, max_size=10))
def test_every_stream_gets_all_its_tokens_in_order_and_one_end(wanted: dict[int, int]) -> None:
    steps = Steps[int](20.0)
    for key, tokens in wanted.items():
        steps.add(key, tokens)
    got: dict[int, list[int]] = {key: [] for key in wanted}
    ended = []
    while steps:
        for due in steps.step():
            got[due.key].append(due.at)
            if due.last:
                ended.append(due.key)
    assert got == {key: list(range(tokens)) for key, tokens in wanted.items()}
    assert sorted(ended) == sorted(wanted)


def test_a_streams_first_token_waits_for_no_step() -> None:
    steps = Steps[str](20.0)
    steps.add("a", 2)
    assert steps.first("a") == Due("a", 0, last=False)
    assert list(steps.step()) == [Due("a", 1, last=True)]


def test_a_resumed_stream_goes_on_where_it_stood() -> None:
    steps = Steps[str](20.0)
    steps.add("a", 5, made=3)
    assert [due.at for due in steps.step()] == [3]


def test_a_removed_stream_gets_nothing() -> None:
    steps = Steps[str](20.0)
    steps.add("a", 2)
    steps.remove("a")
    assert steps.first("a") is None
    assert not list(steps.step())


def test_a_stream_with_nothing_left_to_make_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to make"):
        Steps[str](20.0).add("a", 3, made=3)


@settings(deadline=None)
@given(st.floats(0, 1e6), st.sampled_from([1.0, 20.0, 200.0]))
def test_the_next_step_is_less_than_a_step_away_on_the_grid(now_s: float, step_ms: float) -> None:
    due_s = Steps[str](step_ms).next_step_s(now_s)
    assert now_s < due_s <= now_s + step_ms / 1000 + 1e-6
    assert due_s / (step_ms / 1000) == pytest.approx(round(due_s / (step_ms / 1000)), abs=1e-3)


def test_back_to_back_is_now() -> None:
    assert Steps[str](0.0).next_step_s(3.0) == 3.0
