"""Injected faults, for tests and rehearsals: `FaultControl` exists only where the settings say `worker.faults`.

An engine that can be broken on purpose is slow, stands still, dies, or takes its process with it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, runtime_checkable

CRASH_STATUS: Final = 70


class FaultKind(StrEnum):
    NONE = "none"
    SLOW = "slow"
    HANG = "hang"
    CRASH = "crash"
    ENGINE_DIES = "engine_dies"


@dataclass(frozen=True, slots=True)
class Fault:
    """`factor`: > 0, times as long that a step takes while the kind is SLOW."""

    kind: FaultKind
    factor: float = 1.0


@runtime_checkable
class Faultable(Protocol):
    """An engine that can be broken on purpose."""

    def inject(self, fault: Fault) -> str:
        """Puts the fault in force, in place of the one before; what is in force then, for a reader."""
        ...
