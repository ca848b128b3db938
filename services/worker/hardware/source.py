"""Where devices, watts and utilisation come from: the protocol of a vendor's library or tool.

A third party's source is the entry point `<name>` of the group `tokenworks.telemetry`: a callable that takes nothing
and gives a `TelemetrySource`. It is asked before the built-in ones of the machine's processor, after those of its
accelerators. docs/hardware.md shows one.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from services.worker.core.devices import Device, Reading


class SourceUnavailable(Exception):
    """A source cannot be read here, or no longer. `str(error)` says why.

    Attributes:
        would_do: what makes it readable; empty where nothing is missing: there is no such device.
    """

    def __init__(self, message: str, *, would_do: str = "") -> None:
        super().__init__(message)
        self.would_do = would_do


class TelemetrySource(Protocol):
    """One library or tool. Called by one task at a time, under deadlines; a call that is cancelled may go on unseen.

    Attributes:
        name: what figures that it measured are labelled with, e.g. "nvml".
        measures: it has readings; False: it only tells what devices there are.
        lacking: once it is open: which figures it cannot tell here, why, and what would do; empty: none.
        interval_s: the shortest time between two readings that is worth it.
    """

    name: str
    measures: bool
    lacking: str
    interval_s: float

    async def open(self) -> Sequence[Device]:
        """The machine's devices, by index; called once, first.

        Raises:
            SourceUnavailable: there are none, or they cannot be seen.
        """
        ...

    def visible(self, devices: Sequence[Device], environment: Mapping[str, str]) -> Sequence[Device]:
        """Those of the devices that an engine with this environment may use, in the order in which it counts them."""
        ...

    async def read(self, devices: Sequence[Device]) -> Sequence[Reading]:
        """(len(devices),) readings as of now.

        Raises:
            SourceUnavailable: the devices cannot be read any more.
        """
        ...

    async def close(self) -> None:
        """Lets the library go; nothing is called after it. Never raises."""
        ...
