"""Each number is new once, whatever the order; what is missing is what did not come."""

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.mesh.events import SequenceRange
from services.mesh.sequences import SeenSequences, common, count_of, merged, ranges_of, without

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


RANGES = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 12)).map(lambda pair: SequenceRange(pair[0], sum(pair))), max_size=12
)


def _numbers(ranges: Iterable[SequenceRange]) -> set[int]:
    return {number for each in ranges for number in range(each.first, each.last + 1)}


@given(RANGES)
def test_merged_ranges_are_the_same_numbers_ascending_and_apart(ranges: list[SequenceRange]) -> None:
    found = merged(ranges)
    assert _numbers(found) == _numbers(ranges)
    assert all(one.last + 1 < other.first for one, other in pairwise(found))
    assert count_of(found) == len(_numbers(ranges))
    assert ranges_of(_numbers(ranges)) == found


@given(RANGES, RANGES)
def test_ranges_meet_and_are_taken_from_each_other_as_sets_of_numbers_are(
    some: list[SequenceRange], others: list[SequenceRange]
) -> None:
    one, other = merged(some), merged(others)
    assert common(one, other) == ranges_of(_numbers(some) & _numbers(others))
    assert without(one, other) == ranges_of(_numbers(some) - _numbers(others))
