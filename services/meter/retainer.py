"""Lets go of detail that is older than `meter.keep_detail_days`: requests, their lines, postings by request.

In: the books. Out: the same sums with less behind them (`store/dropping.py`). Some requests at a time, each in a
transaction, with a rest between, so that booking goes on; a pass that was cut short is gone through again. From when an
hour's detail is to go, exports and re-ratings that would need it are refused.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from services.mesh.clock import Clock
from services.mesh.settings import Settings
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.presence import MS_PER_HOUR
from services.meter.core.requests import Key
from services.meter.passes import pass_on
from services.meter.receivers import receiver_name
from services.meter.store.books import Transaction
from services.meter.store.database import Database
from services.meter.store.dropped import POSTINGS, REQUESTS
from services.meter.store.dropping import DetailDropper
from services.meter.store.months import Summed, suffix_of
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)

_EVERY_S: Final = 600.0
_REST_S: Final = 0.05
_LOOKED_AT_ONCE: Final = 2000  # requests
_DROPPED_AT_ONCE: Final = 500


class Retainer:
    """Lives in the event loop; works in the meter's threads."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        bookkeeper: Bookkeeper,
        *,
        reading: WorkThreads,
        writing: WorkThreads,
        clock: Clock,
    ) -> None:
        receiver = receiver_name(settings.cloudevents) if settings.cloudevents.url else ""
        self._dropper = DetailDropper(database, receiver)
        self._keep_hours = settings.meter.keep_detail_days * 24
        self._bookkeeper = bookkeeper
        self._reading = reading
        self._writing = writing
        self._clock = clock

    async def run(self) -> None:
        """Passes until cancelled; one that fails is logged, and the next does what it did not."""
        await pass_on(self.let_go, _EVERY_S, "dropping detail")

    async def let_go(self) -> int:
        """One pass: how many requests are gone."""
        wanted_hour = self._clock.unix_ms() // MS_PER_HOUR - self._keep_hours
        progress = await self._reading.run(partial(self._dropper.progress, wanted_hour))
        before = progress.before
        if not before:
            return 0
        await self._writing.run(partial(self._bookkeeper.keep_detail_from, before))
        count = 0
        if progress.requests < before:
            count = await self._drop_months(before) + await self._drop_requests(before)
            await self._put(REQUESTS, before)
        if progress.postings < before:
            merged = await self._merge_postings(progress.postings, before)
            log.info("detail before hour %d since 1970: %d requests and %d postings dropped", before, count, merged)
        return count

    async def _drop_months(self, before: int) -> int:
        """Those that may go as a whole; of others, requests go one by one."""
        count = 0
        for month in await self._reading.run(partial(self._dropper.due_months, before)):
            summed = await self._reading.run(partial(self._dropper.month, month, before))
            gone = None if summed.open else await self._writing.run(partial(self._drop_month, summed, before))
            if gone is None:
                log.info("%s is dropped by request: %s", suffix_of(month), summed.open or "something was booked in it")
            count += gone or 0
            await asyncio.sleep(_REST_S)
        return count

    def _drop_month(self, summed: Summed, before: int) -> int | None:
        return self._bookkeeper.within(partial(self._dropper.drop_month, summed=summed, before_hour=before), alone=True)

    async def _drop_requests(self, before: int) -> int:
        count = 0
        after: Key | None = ("", "")
        while after is not None:
            old, after = await self._reading.run(
                partial(self._dropper.candidates, after, before, limit=_LOOKED_AT_ONCE)
            )
            for start in range(0, len(old), _DROPPED_AT_ONCE):
                some = old[start : start + _DROPPED_AT_ONCE]
                drop = partial(self._dropper.drop, keys=some, before_hour=before)
                count += await self._writing.run(partial(self._bookkeeper.drop_detail, drop))
                await asyncio.sleep(_REST_S)
        return count

    async def _merge_postings(self, from_hour: int, before: int) -> int:
        count, after = 0, from_hour
        while (hour := await self._reading.run(partial(self._dropper.next_hour, after, before))) is not None:
            merged = 0

            def merge(transaction: Transaction, hour: int = hour) -> None:
                nonlocal merged
                merged = self._dropper.merge_postings(transaction, hour)
                self._dropper.put_progress(transaction, POSTINGS, hour + 1)

            await self._write(merge)
            count, after = count + merged, hour + 1
            await asyncio.sleep(_REST_S)
        await self._put(POSTINGS, before)
        return count

    async def _put(self, what: str, hour: int) -> None:
        await self._write(lambda transaction: self._dropper.put_progress(transaction, what, hour))

    async def _write(self, store: Callable[[Transaction], None]) -> None:
        await self._writing.run(partial(self._bookkeeper.within, store))
