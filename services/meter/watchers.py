"""Live usage: what is booked, as it is booked, for those who watch.

In: the usage of each batch. Out: for each watcher, sums by its groups since it last asked. Amounts that only grow are
never reported negative: where a correction takes off more than was booked since, the rest is taken off later reports.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final

from services.mesh.errors import QueueFull
from services.meter.core.amounts import NOTHING, Amounts
from services.meter.core.usage import Group, Grouping, UsageKey

_MAX_WATCHERS: Final = 64
_MAX_GROUPS: Final = 10_000


class Watcher:
    """One caller's view."""

    def __init__(self, grouping: Grouping) -> None:
        self._grouping = grouping
        self._sums: dict[Group, Amounts] = {}
        self.overrun = False

    def add(self, usage: Mapping[UsageKey, Amounts]) -> None:
        for key, amounts in usage.items():
            group = self._grouping.group(key)
            if group is not None:
                self._sums[group] = self._sums.get(group, NOTHING).plus(amounts)
        if len(self._sums) > _MAX_GROUPS:
            self.overrun = True
            self._sums.clear()

    def take(self) -> list[tuple[Group, Amounts]]:
        """The sums of each group since the last call, ordered by group.

        Raises:
            QueueFull: more groups came together than one message may hold.
        """
        if self.overrun:
            raise QueueFull(f"usage fell into more than {_MAX_GROUPS} groups at once; group by fewer fields")
        reported, carried = [], {}
        for group, amounts in sorted(self._sums.items()):
            report = Amounts(*(max(0, each) for each in amounts))
            rest = amounts.minus(report)
            if any(report):
                reported.append((group, report))
            if any(rest):
                carried[group] = rest
        self._sums = carried
        return reported


class Watchers:
    """All who watch. Lives in the event loop."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()
        self._closed = asyncio.Event()

    def open(self, grouping: Grouping) -> Watcher:
        """A new watcher that sees what is booked from now on; give it back with `close`.

        Raises:
            QueueFull: as many watch as may.
        """
        if len(self._watchers) >= _MAX_WATCHERS:
            raise QueueFull(f"{_MAX_WATCHERS} callers watch usage already; end one, or ask GetUsage")
        watcher = Watcher(grouping)
        self._watchers.add(watcher)
        return watcher

    def close(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def add(self, usage: Mapping[UsageKey, Amounts]) -> None:
        for watcher in self._watchers:
            watcher.add(usage)

    async def wait(self, seconds: float) -> bool:
        """Waits; False as soon as the service stops and watching is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)
        return not self._closed.is_set()

    async def stop(self) -> None:
        """Ends all watching."""
        self._closed.set()
