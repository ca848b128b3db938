"""Adds hours up: usage once they have ended, and by who called once their bill is booked; the latter again where
something was booked in them since.

In: the books. Out: `usage_hours` (`store/hours.py`), `caller_hours` and its like (`store/caller_tables.py`) in them, so
that questions over long times read neither minutes nor the ledger. Batch work, in the meter's threads; nothing is wrong
while it lags, only slower.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from services.mesh.clock import Clock
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.presence import MS_PER_HOUR
from services.meter.passes import pass_on
from services.meter.store.books import Transaction
from services.meter.store.rolling import DueHour, HourRoller
from services.meter.thread import WorkThreads

_EVERY_S: Final = 30.0
_HOURS_A_PASS: Final = 24
_USAGE_HOURS_A_PASS: Final = 500
_LATE_MS: Final = 300_000  # what comes later than this is added to hours that are added up already
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
        await pass_on(self.roll, _EVERY_S, "adding hours up")

    async def roll(self) -> int:
        """One pass: how many hours were added up."""
        await self._roll_usage()
        await self._write(self._hours.look)
        look = partial(self._hours.due, self._clock.unix_ms(), ask_again_ms=_ASK_AGAIN_MS, most=_HOURS_A_PASS)
        due = await self._reading.run(look)
        for each in due:
            await self._roll_one(each)
        return len(due)

    async def _roll_usage(self) -> None:
        """Some of the hours that ended, each in a transaction of its own: after an upgrade there may be years."""
        before_hour = (self._clock.unix_ms() - _LATE_MS) // MS_PER_HOUR
        for _ in range(_USAGE_HOURS_A_PASS):
            if not await self._writing.run(partial(self._bookkeeper.roll_up, before_hour)):
                return

    async def _roll_one(self, due: DueHour) -> None:
        rolled = await self._reading.run(partial(self._hours.add_up, due))
        now_unix_ms = self._clock.unix_ms()
        await self._write(lambda transaction: self._hours.begin(transaction, due, now_unix_ms))
        for table, rows in self._hours.parts(rolled):
            await self._write(partial(self._hours.add, table=table, rows=rows))
        await self._write(lambda transaction: self._hours.end(transaction, rolled, now_unix_ms))

    async def _write(self, store: Callable[[Transaction], None]) -> None:
        await self._writing.run(partial(self._bookkeeper.within, store))
