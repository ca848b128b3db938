"""When the connections of one server send what was submitted: one callback for all that a turn of the loop fills.

Written one after the other, they find readers awake that would have gone to sleep between them; and what is gathered
longer than a step makes fewer and larger writes, which is what costs.
"""

import asyncio
from typing import Protocol


class Departing(Protocol):
    """A connection that has something to send."""

    def flush_if_due(self) -> None:
        """Sends what was submitted, unless that has left meanwhile. Does not raise."""


class Departures:
    """Of one server.

    Args:
        gather_s: for what may wait for company; 0: it leaves with the rest of its turn.
    """

    def __init__(self, gather_s: float = 0.0) -> None:
        self._gather_s = gather_s
        self._loop: asyncio.AbstractEventLoop | None = None  # asking for it is a system call each time
        self._soon: list[Departing] = []
        self._gathered: list[Departing] = []

    @property
    def gathers(self) -> bool:
        """Whether anything is kept longer than a turn."""
        return self._gather_s > 0

    def soon(self, connection: Departing) -> None:
        """At the end of this turn of the loop."""
        if not self._soon:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._leave_soon)
        self._soon.append(connection)

    def gathered(self, connection: Departing) -> None:
        """With what comes for any of the connections within `gather_s`."""
        if not self._gathered:
            asyncio.get_running_loop().call_later(self._gather_s, self._leave_gathered)
        self._gathered.append(connection)

    def _leave_soon(self) -> None:
        leaving, self._soon = self._soon, []
        for connection in leaving:
            connection.flush_if_due()

    def _leave_gathered(self) -> None:
        leaving, self._gathered = self._gathered, []
        for connection in leaving:
            connection.flush_if_due()
