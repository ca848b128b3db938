"""The linear program in the solver's terms: the only file that imports highspy.

In: pairs of a class and a pool that can serve it, what they cost and take; capacities; caps over all pairs. Out:
shares, and what each bound is worth. Columns are pairs, then what stays unserved of each class, then what each cap is
passed by; rows are classes, pools, caps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import highspy
import numpy as np

# The binding itself: the class around it registers callbacks while it is made, and that writes a banner to standard
# output before any option can silence it.
from highspy._core import _Highs

_COST_UNIT: Final = 1e-6  # the solver works in micro-dollars per second: its tolerances are absolute
TIME_LIMIT_S: Final = 1.0


class Pair(NamedTuple):
    """One class on one pool, as if it had the whole class.

    Attributes:
        row, column: of the class and the pool.
        usd: per second.
        load: of the pool's capacity.
        most: share of the class that it may have at most, 0 to 1.
        amounts: of each cap.
    """

    row: int
    column: int
    usd: float
    load: float
    most: float = 1.0
    amounts: tuple[float, ...] = ()


class Cap(NamedTuple):
    """At most so much over all pairs; what is beyond costs `excess_usd` per unit, and is possible."""

    most: float
    excess_usd: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An optimum.

    Attributes:
        shares: by pair, 0 to 1.
        prices_usd: by pool, what one more unit of capacity would save; >= 0.
        loads: by pool.
        cap_prices_usd, cap_used: by cap, what one more unit would save, and what is used, excess included.
    """

    shares: list[float]
    prices_usd: list[float]
    loads: list[float]
    cap_prices_usd: list[float]
    cap_used: list[float]


def optimum(
    pairs: Sequence[Pair], unserved_usd: Sequence[float], capacities: Sequence[float], caps: Sequence[Cap] = ()
) -> Answer | None:
    """None when the solver gives no optimum, within `TIME_LIMIT_S` or at all.

    Args:
        unserved_usd: by class, per second, of serving none of it.
    """
    classes, pools = len(unserved_usd), len(capacities)
    solver = _Highs()
    for option, value in (
        ("output_flag", False),
        ("threads", 1),  # a program of this size is solved before a second thread has started
        ("time_limit", TIME_LIMIT_S),
    ):
        solver.setOptionValue(option, value)
    solver.passModel(_model(pairs, unserved_usd, capacities, caps))
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    found = solver.getSolution()
    values = np.clip(np.asarray(found.col_value, dtype=np.float64), 0.0, None)
    # A dual of an upper bound in a minimum is <= 0: relaxing it lowers the cost.
    prices = np.clip(-np.asarray(found.row_dual, dtype=np.float64), 0.0, None) * _COST_UNIT
    loads = np.asarray(found.row_value, dtype=np.float64)
    excess = values[len(pairs) + classes :]
    return Answer(
        shares=np.clip(values[: len(pairs)], 0.0, 1.0).tolist(),
        prices_usd=prices[classes : classes + pools].tolist(),
        loads=loads[classes : classes + pools].tolist(),
        cap_prices_usd=prices[classes + pools :].tolist(),
        cap_used=(loads[classes + pools :] + excess).tolist(),
    )


def _model(
    pairs: Sequence[Pair], unserved_usd: Sequence[float], capacities: Sequence[float], caps: Sequence[Cap]
) -> highspy.HighsLp:
    classes, pools = len(unserved_usd), len(capacities)
    starts: list[int] = [0]
    indices: list[int] = []
    values: list[float] = []
    for pair in pairs:
        indices += (pair.row, classes + pair.column)
        values += (1.0, pair.load)
        for cap, amount in enumerate(pair.amounts):
            if amount:
                indices.append(classes + pools + cap)
                values.append(amount)
        starts.append(len(indices))
    for row in [*range(classes), *range(classes + pools, classes + pools + len(caps))]:
        indices.append(row)
        values.append(1.0 if row < classes else -1.0)
        starts.append(len(indices))
    columns, rows = len(starts) - 1, classes + pools + len(caps)
    costs = [pair.usd for pair in pairs] + list(unserved_usd) + [cap.excess_usd for cap in caps]
    upper = [pair.most for pair in pairs] + [1.0] * classes + [highspy.kHighsInf] * len(caps)
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = columns, rows
    model.col_cost_ = np.array(costs) / _COST_UNIT
    model.col_lower_, model.col_upper_ = np.zeros(columns), np.array(upper)
    model.row_lower_ = np.concatenate([np.ones(classes), np.full(rows - classes, -highspy.kHighsInf)])
    model.row_upper_ = np.concatenate([np.ones(classes), np.array([*capacities, *[cap.most for cap in caps]])])
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_ = np.array(starts, dtype=np.int32)
    model.a_matrix_.index_ = np.array(indices, dtype=np.int32)
    model.a_matrix_.value_ = np.array(values)
    return model
