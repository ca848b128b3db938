"""Faults as data: what is broken, how, when, for how long. Pure."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final


class FaultKind(StrEnum):
    KILL = "kill"  # SIGKILL; what looks after the process starts it again
    FREEZE = "freeze"  # SIGSTOP, and SIGCONT at the end
    DRAIN = "drain"  # SIGTERM, as in a rolling restart
    CRASH = "crash"  # a worker exits at once, from within
    SLOW = "slow"  # a worker's steps take `factor` times as long
    HANG = "hang"  # no step of a worker ends
    ENGINE_DIES = "engine_dies"  # the engine alone; its worker starts another
    CUT = "cut"  # nothing passes over a link, and its connections stand: a network that is cut
    SEVER = "sever"  # a link's connections are reset and new ones refused
    UNPLUG = "unplug"  # the kernel carries nothing between two hosts
    DELAY = "delay"  # what passes over a link comes `factor` seconds late
    REPEAT = "repeat"  # `factor` stored messages are stored once more: delivered twice, late
    DISK_FULL = "disk_full"  # a process can write nothing more to any file


class Role(StrEnum):
    ROUTER = "router"
    WORKER = "worker"
    METER = "meter"
    OPTIMIZER = "optimizer"
    BUS = "bus"  # a NATS server
    WORKER_LINK = "worker link"  # what routers and clients reach a worker by
    BUS_LINK = "bus link"  # what a service reaches NATS by
    CABLE = "cable"  # between a worker's host and all others


@dataclass(frozen=True, slots=True)
class Target:
    """Something that can be broken.

    Attributes:
        name: of the service; a link's is that of the service at its end.
        kinds: what can be done to it here.
    """

    name: str
    role: Role
    kinds: tuple[FaultKind, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is broken.

    Attributes:
        number: from 1, in the order of the schedule.
        at_s: seconds from the first moment of the load; later where its target is not back from the fault before.
        lasts_s: until it is mended; 0: it passes by itself.
        factor: see `FaultKind`; 0 where the kind has none.
    """

    number: int
    at_s: float
    kind: FaultKind
    role: Role
    target: str
    lasts_s: float = 0.0
    factor: float = 0.0

    @property
    def words(self) -> str:
        what = f"{self.kind} {f'{self.role} ' if self.role in _LINKS else ''}{self.target}"
        factor = {FaultKind.SLOW: " {:g} times", FaultKind.DELAY: " by {:g} s", FaultKind.REPEAT: " {:g} messages"}
        amount = factor.get(self.kind, "").format(self.factor)
        return f"{what}{amount}{f' for {self.lasts_s:.1f} s' if self.lasts_s else ''}"

    def document(self) -> dict[str, Any]:
        return asdict(self)


_LINKS: Final = (Role.WORKER_LINK, Role.BUS_LINK, Role.CABLE)
OF_PROCESSES: Final = (FaultKind.KILL, FaultKind.FREEZE, FaultKind.DRAIN)
OF_ENGINES: Final = (FaultKind.CRASH, FaultKind.SLOW, FaultKind.HANG, FaultKind.ENGINE_DIES)
OF_LINKS: Final = (FaultKind.CUT, FaultKind.SEVER, FaultKind.DELAY)
