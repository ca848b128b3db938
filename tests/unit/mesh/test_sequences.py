"""Each number is new once, whatever the order; what is missing is what did not come."""

from hypothesis import given
from hypothesis import strategies as st

from services.mesh.sequences import SeenSequences

ARRIVALS = st.lists(st.integers(1, 60), max_size=150)


@given(ARRIVALS)
def test_a_number_is_new_exactly_once_in_any_order(arrivals: list[int]) -> None:
    seen, before = SeenSequences(), set[int]()
    for number in arrivals:
        assert seen.add(number) == (number not in before)
        before.add(number)


@given(ARRIVALS)
def test_missing_is_what_lies_below_the_mark_and_did_not_come(arrivals: list[int]) -> None:
    seen = SeenSequences()
    for number in arrivals:
        seen.add(number)
    assert seen.high_water == max(arrivals, default=0)
    assert seen.missing == set(range(1, seen.high_water + 1)) - set(arrivals)


@given(ARRIVALS, st.integers(1, 60))
def test_what_was_given_up_counts_as_seen(arrivals: list[int], below: int) -> None:
    seen = SeenSequences()
    for number in arrivals:
        seen.add(number)
    lost = {number for number in seen.missing if number < below}
    assert seen.forget_missing_below(below) == len(lost)
    assert not any(seen.add(number) for number in lost)
