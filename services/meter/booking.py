"""One shard of the books, as this process books it: from what the streams hold that it lacks, to credit given out.

In: the shard's number; whoever has it by the shard's row. Out: a bookkeeper that books what comes until it is stopped,
or gives partitions to another meter.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.lifecycle import Lifecycle, cancel_all
from services.mesh.telemetry import Telemetry
from services.meter.bookkeeper import Bookkeeper
from services.meter.catch_up import READS, booked_up_to, catch_up, find_behind
from services.meter.ears import Ears
from services.meter.feed import Feed
from services.meter.lessor import Lessor
from services.meter.store.database import Database
from services.meter.store.shards import durable_of, written
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)


class Booking:
    """Lives in the event loop.

    Args:
        open_books: the bookkeeper of the shard, made in the thread that writes.
        own: where its bookkeeper is put while it books.
    """

    def __init__(
        self,
        meter_id: str,
        shard: int,
        *,
        open_books: Callable[[], Bookkeeper],
        database: Database,
        feed: Feed,
        life: Lifecycle,
        writing: WorkThreads,
        bus: Bus,
        clock: Clock,
        telemetry: Telemetry,
        own: dict[int, Bookkeeper],
        ears: Ears,
    ) -> None:
        self._own = own
        self._ears = ears
        self.shard = shard
        self._meter_id = meter_id
        self._open_books = open_books
        self._database = database
        self._feed = feed
        self._life = life
        self._writing = writing
        self._bus = bus
        self._clock = clock
        self._telemetry = telemetry
        self._running: list[asyncio.Task[None]] = []

    @property
    def partitions(self) -> frozenset[int]:
        """What is booked; none before it was started and after it was stopped."""
        bookkeeper = self._own.get(self.shard)
        return frozenset() if bookkeeper is None else bookkeeper.partitions

    async def start(self) -> None:
        """Catches up with the streams, then books in the background.

        Raises:
            BusUnavailable: the streams do not answer.
            InvariantBroken: another meter has taken the shard.
        """
        bookkeeper = await self._writing.run(self._open_books)
        positions = await self._writing.run(partial(booked_up_to, self._database))
        for each in await find_behind(self._bus, positions, [self.shard]):
            self._ears.repaired(await catch_up(self._bus, bookkeeper, each, self._writing, self._clock))
        await self._writing.run(bookkeeper.adopt_limits)
        self._own[self.shard] = bookkeeper
        await self._ears.taken(bookkeeper)
        self._lessor = Lessor(
            self._meter_id,
            bookkeeper=bookkeeper,
            writing=self._writing,
            bus=self._bus,
            clock=self._clock,
            telemetry=self._telemetry,
            missing=lambda: self._feed.lately_missing,
        )
        await self._lessor.announce()
        name = f"shard {self.shard}"
        self._running = [
            self._life.spawn(self._feed.run(bookkeeper, self._lessor, positions), f"{name}: feed"),
            self._life.spawn(self._lessor.serve(), f"{name}: leases"),
            self._life.spawn(self._lessor.look_after(), f"{name}: look after leases"),
        ]
        log.info("%s books partitions %s (shard %d)", self._meter_id, written(bookkeeper.partitions), self.shard)

    async def give(self, given: frozenset[int], writer: str) -> None:
        """Has another meter book some of the partitions from now on; or all, which ends this booking.

        Raises:
            BusUnavailable: nothing was given.
        """
        bookkeeper = self._own[self.shard]
        if given == bookkeeper.partitions:
            await self.stop()
            await self._writing.run(partial(bookkeeper.give, given, writer, {}))
            return
        # All below is acked, so booked; what comes again above it is known by the marks, which the new shard gets.
        positions = {
            name: (await self._bus.progress(channels, durable_of(name, self.shard))).acked for name, channels in READS
        }
        self._lessor.leave(given)
        try:
            await self._writing.run(partial(bookkeeper.give, given, writer, positions))
        finally:
            self._lessor.leave(frozenset())

    async def stop(self) -> None:
        """Books nothing more; what is not acked comes again to whoever has the shard next."""
        running, self._running = self._running, []
        await cancel_all(running)
        self._own.pop(self.shard, None)
