"""Several meters on one set of books share its partitions of tenants out: each takes what is free, and who has much
gives to who has little.

In: who is there and who has which shard, as `store/sharing.py` sees it. Out: bookings that run for the shards that are
this meter's; `InvariantBroken` where others have taken one, since this meter was silent for too long. A shard that is
given whole is stopped first, then written over, and goes on at its new meter at its next look; of one that is split,
what stays goes on all the while.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from services.mesh.errors import BusUnavailable, InvariantBroken, QueueFull
from services.mesh.lifecycle import cancel_all
from services.meter.booking import Booking
from services.meter.core.balance import Part, to_give, to_take
from services.meter.store.shards import written
from services.meter.store.sharing import Membership, View

log = logging.getLogger(__name__)

_RENEWALS: Final = 3  # in the time that it counts as there
_LOOKS: Final = 6


class Sharing:
    """One meter's side. Lives in the event loop.

    Args:
        ttl_s: as the membership's.
        begin: the booking of a shard, not started.
        changed: is told in words what this meter books.
    """

    def __init__(
        self,
        membership: Membership,
        ttl_s: float,
        begin: Callable[[int], Booking],
        changed: Callable[[str], Awaitable[None]],
    ) -> None:
        self._membership = membership
        self._ttl_s = ttl_s
        self._begin = begin
        self._changed = changed
        self._running: dict[int, Booking] = {}
        self._turn = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        self._said = ""

    async def join(self) -> None:
        """Counts as there from now on.

        Raises:
            SQLAlchemyError: the server does not answer.
        """
        await asyncio.to_thread(self._membership.renew)
        self._keeping = asyncio.create_task(self._keep(), name="keep the membership")

    async def lead(self, serve: Callable[[], Awaitable[int]]) -> int:
        """Has this meter lead: nothing is booked here while it begins to; what `serve` gives."""
        async with self._turn:
            await self._stop_all()
            result = await serve()
            await asyncio.to_thread(self._membership.open)
        return result

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            try:
                await self.look()
            except (SQLAlchemyError, BusUnavailable, QueueFull) as error:
                log.warning("the books' partitions are not shared out just now: %s", error)
            await asyncio.sleep(self._ttl_s / _LOOKS)

    async def look(self) -> None:
        """Takes, begins and gives what is due."""
        async with self._turn:
            view = await asyncio.to_thread(self._membership.look)
            await self._begin_what_is_mine(view)
            me, parts = self._membership.writer, [Part(each.shard, each.partitions) for each in view.free()]
            if view.open and (part := to_take(me, parts, view.held)) is not None:
                shard = next(each for each in view.shards if each.shard == part.shard)
                if await asyncio.to_thread(self._membership.take, shard):
                    log.warning("partitions %s (shard %d) were free: taken", written(part.partitions), part.shard)
                    await self._start(part.shard)
            elif view.open:
                await self._give(view)
            await self._tell()

    async def stop(self) -> None:
        """Books nothing more; others may take what this meter had."""
        async with self._turn:
            await self._stop_all()
        if self._keeping is not None:
            await cancel_all([self._keeping])
            await asyncio.to_thread(self._membership.leave)
        await asyncio.to_thread(self._membership.close)

    async def _begin_what_is_mine(self, view: View) -> None:
        mine = {each.shard for each in view.shards if each.writer == self._membership.writer}
        if lost := self._running.keys() - mine:
            raise InvariantBroken(
                f"shards {sorted(lost)} of the books were taken over by another meter, since this one was silent"
            )
        for shard in sorted(mine - self._running.keys()):
            await self._start(shard)

    async def _start(self, shard: int) -> None:
        booking = self._begin(shard)
        await booking.start()
        self._running[shard] = booking

    async def _give(self, view: View) -> None:
        mine = [Part(shard, booking.partitions) for shard, booking in self._running.items()]
        gift = to_give(self._membership.writer, mine, view.held)
        if gift is None:
            return
        booking = self._running[gift.shard]
        if gift.partitions == booking.partitions:
            del self._running[gift.shard]
        log.info("partitions %s are given to %s", written(gift.partitions), gift.to)
        await booking.give(gift.partitions, gift.to)

    async def _stop_all(self) -> None:
        for shard in list(self._running):
            await self._running.pop(shard).stop()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / _RENEWALS)
            try:
                await asyncio.to_thread(self._membership.renew)
            except SQLAlchemyError as error:
                # Whether another has taken what is booked here, its next transaction says.
                log.warning("that this meter is there could not be renewed: %s", error)

    async def _tell(self) -> None:
        partitions = frozenset[int]().union(*(each.partitions for each in self._running.values()))
        said = f"books partitions {written(partitions)}" if partitions else "books no partition"
        if said != self._said:
            self._said = said
            await self._changed(said)
