"""A stream that goes round in circles is found, one that goes forward is not."""

from hypothesis import given
from hypothesis import strategies as st

from services.worker.core.repetition import Loop, Repetition, loop_at_end


def _by_definition(units: list[int], least_repeats: int, least_units: int) -> Loop | None:
    """The longest ending with a period that fits, by trying every period of every ending."""
    for length in range(len(units), 0, -1):
        ending = units[len(units) - length :]
        for period in range(1, length // least_repeats + 1):
            if length >= least_units and all(ending[at] == ending[at - period] for at in range(period, length)):
                return Loop(period, length // period)
    return None


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(2, 4), st.integers(1, 12))
def test_the_loop_found_is_the_one_of_the_definition(units: list[int], least_repeats: int, least_units: int) -> None:
    found = loop_at_end(units, least_repeats=least_repeats, least_units=least_units)
    assert found == _by_definition(units, least_repeats, least_units)


@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=60), st.lists(st.integers(0, 50_000), max_size=200))
def test_a_piece_said_again_and_again_is_found_whatever_came_before(piece: list[int], before: list[int]) -> None:
    watch = Repetition(least_repeats=6, least_units=64)
    watch.add(before, "")
    for _ in range(32):
        watch.add(piece, "")
    watch.add(piece * (256 // len(piece) + 1), "")
    assert watch.loop is not None
    assert len(piece) % watch.loop.period == 0


def test_a_stream_that_goes_forward_is_never_found() -> None:
    watch = Repetition(least_repeats=6, least_units=64)
    for token in range(5000):
        watch.add((token * 7919 % 4999,), "")
    assert watch.loop is None


def test_text_is_watched_by_the_character_where_there_are_no_ids() -> None:
    watch = Repetition(least_repeats=6, least_units=64)
    looked = [watch.add((), "I am sorry. ") for _ in range(40)]
    assert any(looked)
    assert watch.in_characters
    assert watch.loop == Loop(period=12, repeats=watch.loop.repeats if watch.loop else 0)


def test_a_stream_that_finds_its_way_out_is_let_go() -> None:
    watch = Repetition(least_repeats=6, least_units=64)
    watch.add((1, 2, 3) * 50, "")
    assert watch.loop is not None
    watch.add(tuple(range(100, 400)), "")
    assert watch.loop is None
