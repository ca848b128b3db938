"""Pauses grow, stay bounded, end; and a settled time makes everything good again."""

from hypothesis import given
from hypothesis import strategies as st

from services.worker.core.backoff import Backoff

draws = st.floats(0.0, 1.0)


@given(st.lists(draws, min_size=1, max_size=40), st.floats(0.01, 10.0), st.floats(0.01, 100.0))
def test_pauses_double_and_stay_between_half_and_all_of_what_they_may_be(
    drawn: list[float], first_s: float, longest_s: float
) -> None:
    backoff = Backoff(first_s, longest_s, most=len(drawn), settled_s=60.0)
    for nth, draw in enumerate(drawn):
        may_be_s = min(longest_s, first_s * 2**nth)
        pause_s = backoff.pause_s(0.0, draw)
        assert pause_s is not None
        assert may_be_s / 2 <= pause_s <= may_be_s


@given(st.integers(0, 10), draws)
def test_after_so_many_in_a_row_there_is_no_pause(most: int, draw: float) -> None:
    backoff = Backoff(1.0, 60.0, most, settled_s=60.0)
    assert [backoff.pause_s(59.0, draw) is None for _ in range(most + 2)] == [False] * most + [True, True]


def test_a_settled_time_begins_a_new_row() -> None:
    backoff = Backoff(1.0, 60.0, most=2, settled_s=60.0)
    assert [backoff.pause_s(well_s, 1.0) for well_s in (0.0, 5.0, 60.0, 0.0, 0.0)] == [1.0, 2.0, 1.0, 2.0, None]


def test_a_very_long_row_does_not_overflow() -> None:
    backoff = Backoff(1.0, 60.0, most=5000, settled_s=0.0)
    assert {backoff.pause_s(0.0, 1.0) for _ in range(5000)} == {1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0}
