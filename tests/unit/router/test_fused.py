"""Compiled formulas against the same formulas in Python."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from services.router.core.fused import FUNCTIONS, Loop
from services.router.core.scores import PLAIN

COLUMNS, GIVEN = ("one", "other"), ("number",)


def everything(of: Any, f: Any) -> tuple[Any, Any]:
    """Of all that a formula may use."""
    larger = f.maximum(of.one, of.other) - f.minimum(of.one, 2.0) * of.number
    sooner = f.where((of.one < of.other) | (of.one <= 0.5), 3.0 - of.one, 1 + of.other / 4)
    chance = f.logistic(of.one - of.number) + f.logistic(of.other)
    return 2 * larger + f.ceil(of.other * 3.0) + sooner, chance + f.where(of.other > of.number, math.inf, 1 / 4)


LOOP = Loop(lambda of: everything(of, FUNCTIONS), COLUMNS, GIVEN)
NUMBERS = st.floats(-1000.0, 1000.0, width=16)
ROWS = st.integers(1, 40).flatmap(lambda rows: arrays(np.float32, (2, rows), elements=NUMBERS))


def looped(table: Any, number: float) -> Any:
    results = np.full_like(table, np.nan)
    at, (first, second) = table.ctypes.data, (each.ctypes.data for each in results)
    LOOP(at, table.shape[1], table.shape[1], (number,), (first, second))
    return results


@given(ROWS, NUMBERS)
def test_a_loop_gives_for_every_row_what_the_formula_does(table: Any, number: float) -> None:
    rows = [SimpleNamespace(one=one, other=other, number=number) for one, other in table.T.tolist()]
    expected = np.array([everything(row, PLAIN) for row in rows]).T
    assert looped(table, number) == pytest.approx(expected, rel=1e-5, abs=1e-3)
    assert looped(table, number)[1] == pytest.approx(expected[1], abs=1e-6)


@given(ROWS, NUMBERS)
def test_a_row_has_the_same_result_whatever_rows_are_beside_it(table: Any, number: float) -> None:
    alone = [looped(np.ascontiguousarray(table[:, row : row + 1]), number)[:, 0] for row in range(table.shape[1])]
    assert (looped(table, number) == np.array(alone).T).all()


def test_no_rows_are_none() -> None:
    LOOP(0, 0, 0, (1.0,), (0, 0))
