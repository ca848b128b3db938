"""The lowest of many numbers against sorting all of them."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from services.router.core.lowest import lowest

NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, 1.0, 2.0, math.inf]),  # many that are the same
)


@given(st.integers(0, 80).flatmap(lambda count: arrays(np.float32, count, elements=NUMBERS)), st.sampled_from([1, 16]))
def test_the_lowest_are_those_that_sorting_puts_first(numbers: np.ndarray, most: int) -> None:
    found = lowest(most)(numbers.ctypes.data, len(numbers))
    finite = [row for row in np.argsort(numbers, kind="stable").tolist() if numbers[row] < math.inf]
    assert found == (finite[:most], numbers[finite[:most]].tolist())


def test_what_is_no_number_is_not_among_the_lowest() -> None:
    numbers = np.array([math.nan, 3.0, math.nan, 1.0], np.float32)
    assert lowest(16)(numbers.ctypes.data, 4) == ([3, 1], [1.0, 3.0])
