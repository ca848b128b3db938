from hypothesis import given
from hypothesis import strategies as st

from services.meter.core.ranges import Ranges

_PARTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda each: (each[0], each[0] + each[1])))


def _indexes(parts: list[tuple[int, int]]) -> set[int]:
    return {index for start, end in parts for index in range(start, end)}


@given(parts=_PARTS)
def test_ranges_are_the_set_of_their_indexes(parts: list[tuple[int, int]]) -> None:
    ranges, indexes = Ranges(parts), _indexes(parts)
    assert _indexes(list(ranges)) == indexes
    assert ranges.count == len(indexes)
    assert ranges.first == min(indexes, default=0)
    bounds = [bound for each in ranges for bound in each]
    assert bounds == sorted(set(bounds)), "disjoint, ascending and merged where they touch"


@given(parts=_PARTS)
def test_text_keeps_the_ranges(parts: list[tuple[int, int]]) -> None:
    assert Ranges.parse(str(Ranges(parts))) == Ranges(parts)


@given(left=_PARTS, right=_PARTS)
def test_union_and_covers_are_those_of_sets(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    assert _indexes(list(Ranges(left).union(Ranges(right)))) == _indexes(left) | _indexes(right)
    assert Ranges(left).covers(Ranges(right)) == (_indexes(left) >= _indexes(right))
