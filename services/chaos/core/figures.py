"""Figures of a run: how long clients waited by what was broken, and how soon a slow worker was left alone. Pure.

In: what was done and when, and the streams. Out: seconds, and shares. They are told, not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.chaos.core.faults import Fault, FaultKind, Role
from services.chaos.core.streams import Outcome

SLOW: Final = 10.0  # times: a worker that is so much slower gets little new work
SEEN_WITHIN_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Done:
    """A fault that was carried out, or why it was not.

    Attributes:
        at_s: seconds from the beginning of the load.
        back_after_s: from then until its target served again.
        failed_because: in words; empty when it was carried out.
    """

    fault: Fault
    at_s: float
    back_after_s: float
    failed_because: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """The longest pause of any stream that fell into a fault of this kind, whatever else was broken then."""

    role: Role
    kind: FaultKind
    faults: int
    longest_s: float


@dataclass(frozen=True, slots=True)
class SlowShare:
    """Of the requests that began while a worker was slow and the router could know, those that it made first tokens of.

    Attributes:
        fair: its share if all workers got as many.
    """

    began: int
    at_slow: int
    fair: float

    @property
    def share(self) -> float:
        return self.at_slow / self.began if self.began else 0.0


def pauses(done: Sequence[Done], outcomes: Sequence[Outcome], load_began_s: float) -> list[Pause]:
    """By role and kind of fault; `load_began_s` is of the outcomes' clock."""
    kinds = sorted({(each.fault.role, each.fault.kind) for each in done if not each.failed_because})
    found = []
    for role, kind in kinds:
        mine = [each for each in done if (each.fault.role, each.fault.kind) == (role, kind)]
        spans = [(each.at_s + load_began_s, each.at_s + load_began_s + each.back_after_s) for each in mine]
        longest_s = max(
            (
                each.longest_pause_s
                for each in outcomes
                for began_s, ended_s in spans
                if each.pause_began_s <= ended_s and each.pause_began_s + each.longest_pause_s >= began_s
            ),
            default=0.0,
        )
        found.append(Pause(role, kind, len(mine), longest_s))
    return found


def slow_share(done: Sequence[Done], outcomes: Sequence[Outcome], load_began_s: float, workers: int) -> SlowShare:
    """Over all faults that made a worker at least `SLOW` times slower, from `SEEN_WITHIN_S` later on."""
    began = at_slow = 0
    for each in done:
        fault = each.fault
        if fault.kind is not FaultKind.SLOW or fault.factor < SLOW or each.failed_because:
            continue
        from_s = load_began_s + each.at_s + SEEN_WITHIN_S
        until_s = load_began_s + each.at_s + fault.lasts_s
        asked = [outcome for outcome in outcomes if from_s <= outcome.began_s < until_s and outcome.worker]
        began += len(asked)
        at_slow += sum(outcome.worker == fault.target for outcome in asked)
    return SlowShare(began, at_slow, 1 / workers if workers else 0.0)
