"""Has who leads know what other meters book: what waits for them, what tenants have spent, what was used.

In: the shards, the server's word on their readers, the ledger's newest lines. Out: the feed's count of events that wait
elsewhere; spending to announce; usage to watch and to look for runaways in. Where this meter books everything itself
there is nothing to do.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from services.mesh.bus import Bus
from services.mesh.partitions import partition_of
from services.meter.announcer import Announcer
from services.meter.bookkeeper import Bookkeeper
from services.meter.catch_up import READS
from services.meter.core.amounts import Amounts
from services.meter.core.usage import UsageKey
from services.meter.feed import Feed
from services.meter.passes import pass_on
from services.meter.store.following import Following
from services.meter.store.shards import durable_of
from services.meter.thread import WorkThreads

_LOOK_EVERY_S: Final = 0.25


class Follower:
    """Lives in the event loop.

    Args:
        own: what this process books, by shard.
        used: is told what others booked.
    """

    def __init__(
        self,
        *,
        following: Following,
        own: Mapping[int, Bookkeeper],
        feed: Feed,
        announcer: Announcer,
        used: Callable[[Mapping[UsageKey, Amounts]], None],
        reading: WorkThreads,
        bus: Bus,
    ) -> None:
        self._following = following
        self._own = own
        self._feed = feed
        self._announcer = announcer
        self._used = used
        self._reading = reading
        self._bus = bus
        self._line = -1  # none was seen: nobody else books

    async def run(self) -> None:
        """Looks until cancelled."""
        await pass_on(self.look, _LOOK_EVERY_S, "looking at what other meters book")

    async def look(self) -> None:
        shards = await self._reading.run(self._following.shards)
        elsewhere = [each for each in shards if each.shard not in self._own]
        if not elsewhere:
            self._feed.elsewhere_events, self._line = 0, -1
            return
        waiting = 0
        for each in elsewhere:
            for name, channels in READS:
                waiting += (await self._bus.progress(channels, durable_of(name, each.shard))).left
        self._feed.elsewhere_events = waiting
        partitions = frozenset[int]().union(*(each.partitions for each in elsewhere))
        for credit in await self._reading.run(partial(self._following.credits, partitions)):
            # Unless it was taken meanwhile, and what is booked of it is told by the feed.
            if not any(partition_of(credit.tenant) in each.partitions for each in self._own.values()):
                self._announcer.correct(credit.tenant, credit.spent_nusd)
        if self._line < 0:
            self._line = await self._reading.run(self._following.last_line)
        self._line, usage = await self._reading.run(partial(self._following.lines, self._line, partitions))
        if usage:
            self._used(usage)
