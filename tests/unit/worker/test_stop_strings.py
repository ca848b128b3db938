import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.worker.core.stop_strings import StopMatcher

PIECES = st.lists(st.text("ab.", max_size=4), max_size=20)
STOPS = st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3)


@given(PIECES, STOPS)
def test_what_is_shown_ends_before_the_first_stop_string_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for index, piece in enumerate(pieces):
        shown += matcher.feed(piece)
        seen = "".join(pieces[: index + 1])
        found = [seen.find(stop) for stop in stops if stop in seen]
        assert matcher.stopped == bool(found)
        if found:
            # Text that was cut later than the stop string began is not shown; which stop came first may differ from
            # which began first only within one piece.
            assert shown == seen[: min(found)]
            return
        assert seen.startswith(shown)
    assert shown + matcher.flush() == "".join(pieces)


def test_what_may_begin_a_stop_string_is_held_back_and_given_when_it_does_not() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("the E") == "the "
    assert matcher.feed("N") == ""
    assert matcher.feed("ough") == "ENough"
    assert matcher.feed(" EN") == " "
    assert matcher.flush() == "EN"


def test_nothing_is_shown_after_a_stop_string() -> None:
    matcher = StopMatcher(["."])
    assert matcher.feed("one. two") == "one"
    assert matcher.stopped
    assert matcher.feed("three") == ""
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(AssertionError):
        StopMatcher(["a", ""])
