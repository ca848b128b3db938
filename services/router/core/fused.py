"""Formulas compiled to be worked out in one go: the only file that imports numexpr.

In: a formula in plain Python, which is called once with names in place of numbers. Out: a program that takes the
numbers. NumPy begins each operation anew, which for fifty numbers takes longer than the operation; a program of sixty
operations begins once.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, Final

import numexpr
import numpy as np
from numexpr.expressions import VariableNode
from numpy.typing import NDArray

# A decision is too small to share among threads, and threads that wait for it are no use.
numexpr.set_num_threads(1)

_FUNCTIONS: Final = numexpr.expressions.functions
FUNCTIONS: Final = SimpleNamespace(
    maximum=_FUNCTIONS["maximum"],
    minimum=_FUNCTIONS["minimum"],
    ceil=_FUNCTIONS["ceil"],
    tanh=_FUNCTIONS["tanh"],
    where=_FUNCTIONS["where"],
)
"""What a formula may call beside arithmetic, comparisons, | and &; of the same names as NumPy's."""


class _Inputs:
    """What a formula is called with: every attribute is a number to come."""

    def __getattr__(self, name: str) -> Any:
        return VariableNode(name, "double")


class Program:
    """A compiled formula."""

    def __init__(self, formula: Callable[[Any], Any], names: Sequence[str]) -> None:
        """
        Args:
            formula: gives an expression of attributes of its argument; of two or more of them.
            names: of all that it may take.
        """
        expression = formula(_Inputs())
        inputs = sorted(_names_in(expression), key=names.index)
        self._inputs = itemgetter(*[names.index(name) for name in inputs])
        self._compiled = numexpr.NumExpr(expression, [(name, np.double) for name in inputs])

    def __call__(self, values: Sequence[object]) -> NDArray[np.float64]:
        """The formula's value, for arrays of one length and numbers, in the order of `names`."""
        value: NDArray[np.float64] = self._compiled(*self._inputs(values))
        return value


def _names_in(node: Any) -> set[str]:
    if node.astType == "variable":
        return {node.value}
    found: set[str] = set()
    for each in node.children if node.astType == "op" else ():
        found |= _names_in(each)
    return found
