"""Adds hours up by who called, once their bill is booked; again where something was booked in them since.

In: the books. Out: `caller_hours` and its like in them (`store/caller_tables.py`), so that questions over long times do
not read the ledger. Batch work, in the meter's threads; nothing is wrong while it lags, only slower.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from services.mesh.clock import Clock
from services.mesh.errors import InvariantBroken, QueueFull
from services.meter.bookkeeper import Bookkeeper
from services.meter.store.books import Transaction
from services.meter.store.rolling import DueHour, HourRoller
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)

_EVERY_S: Final = 30.0
_HOURS_A_PASS: Final = 24
_ASK_AGAIN_MS: Final = 3_600_000


class Roller:
    """Adds up until cancelled. Lives in the event loop."""

    def __init__(
        self,
        *,
        hours: HourRoller,
        bookkeeper: Bookkeeper,
        reading: WorkThreads,
        writing: WorkThreads,
        clock: Clock,
    ) -> None:
        self._hours = hours
        self._bookkeeper = bookkeeper
        self._reading = reading
        self._writing = writing
        self._clock = clock

    async def run(self) -> None:
        """Passes until cancelled; one that fails is logged, and the next does what it did not."""
        while True:
            try:
                await self.roll()
            except (InvariantBroken, QueueFull) as error:
                log.info("hours are not added up for now: %s", error)
            except Exception:
                log.exception("adding hours up by caller failed")
            await asyncio.sleep(_EVERY_S)

    async def roll(self) -> int:
        """One pass: how many hours were added up."""
        await self._write(self._hours.look)
        look = partial(self._hours.due, self._clock.unix_ms(), ask_again_ms=_ASK_AGAIN_MS, most=_HOURS_A_PASS)
        due = await self._reading.run(look)
        for each in due:
            await self._roll_one(each)
        return len(due)

    async def _roll_one(self, due: DueHour) -> None:
        rolled = await self._reading.run(partial(self._hours.add_up, due))
        now_unix_ms = self._clock.unix_ms()
        await self._write(lambda transaction: self._hours.begin(transaction, due, now_unix_ms))
        for table, rows in self._hours.parts(rolled):
            await self._write(partial(self._hours.add, table=table, rows=rows))
        await self._write(lambda transaction: self._hours.end(transaction, rolled, now_unix_ms))

    async def _write(self, store: Callable[[Transaction], None]) -> None:
        await self._writing.run(partial(self._bookkeeper.within, store))
