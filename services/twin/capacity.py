"""How much load a policy sustains on a fleet: the greatest speed of a trace at which no class falls below its target.

In: a scenario, a trace, a policy. Out: the speed, and the run that showed it. A policy's attainment need not fall
steadily with the load; the speed is one at which it held, with one a step above at which it did not.

What costs is a run that holds, or nearly does: one that is far too fast is given up as soon as it has missed too many
promises, after a hundredth of the trace. So the search comes from above, by thirds, and halves the last interval only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.accelerators import Catalogue
from services.twin.report import Report, report
from services.twin.run import simulate
from services.twin.scenario import Scenario
from services.twin.traces import TraceRequest

TARGET: Final = 0.99
_PRECISION: Final = 0.02
_STEP: Final = 1.5
_LEAST: Final = 64.0  # of the speed that a search begins with, below which it gives up


@dataclass(frozen=True, slots=True)
class Sustained:
    """`speed` is 0 where even the slowest speed tried was too fast; `at` is the run at that speed."""

    policy: str
    speed: float
    at: Report | None
    runs: int


def sustained(
    scenario: Scenario,
    catalogue: Catalogue,
    trace: Sequence[TraceRequest],
    policy: str,
    *,
    first: float = 1.0,
    target: float = TARGET,
    precision: float = _PRECISION,
) -> Sustained:
    """Searches downwards from the speed `first`, to a relative `precision`; upwards where it holds.

    Raises:
        SettingInvalid: see `run.simulate`.
    """
    found: Report | None = None
    runs = 0

    def holds(speed: float) -> bool:
        nonlocal found, runs
        runs += 1
        outcome = simulate(scenario.at_speed(speed), catalogue, trace, policy, least_attainment=target)
        if outcome.hopeless or (made := report(outcome)).worst_attainment < target:
            return False
        if found is None or speed > found.speed:
            found = made
        return True

    low, high = first, first
    if holds(first):
        while holds(high := low * _STEP):
            low = high
    else:
        while low > first / _LEAST:
            high, low = low, low / _STEP
            if holds(low):
                break
        else:
            return Sustained(policy, 0.0, None, runs)
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return Sustained(policy, low, found, runs)
