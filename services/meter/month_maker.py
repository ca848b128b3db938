"""Has PostgreSQL's months of detail made before they begin (`store/months.py`).

In: the time. Out: partitions, three months ahead. A month that begins without costs no more than its detail's going by
request: what is booked is in `_default` until the next pass, which moves it.
"""

import logging
from functools import partial
from typing import Final

from services.mesh.clock import Clock
from services.meter.bookkeeper import Bookkeeper
from services.meter.passes import pass_on
from services.meter.store.books import Transaction
from services.meter.store.database import Database
from services.meter.store.months import add_months, lacking, suffix_of
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)

_EVERY_S: Final = 3600.0


class MonthMaker:
    """Lives in the event loop; works in the meter's threads. On SQLite there is nothing to do."""

    def __init__(
        self, database: Database, bookkeeper: Bookkeeper, *, reading: WorkThreads, writing: WorkThreads, clock: Clock
    ) -> None:
        self._engine = database.reader
        self._bookkeeper = bookkeeper
        self._reading = reading
        self._writing = writing
        self._clock = clock

    async def run(self) -> None:
        """Passes until cancelled; one that fails is logged, and the next does what it did not."""
        await pass_on(self.make_ahead, _EVERY_S, "making months of detail")

    async def make_ahead(self) -> None:
        """One pass."""
        now_unix_ms = self._clock.unix_ms()
        if wanted := await self._reading.run(partial(self._lacking, now_unix_ms)):
            await self._writing.run(
                partial(self._bookkeeper.within, partial(_add, now_unix_ms=now_unix_ms), alone=True)
            )
            log.info("made for detail: %s", ", ".join(map(suffix_of, wanted)))

    def _lacking(self, now_unix_ms: int) -> list[int]:
        with self._engine.begin() as connection:
            return lacking(connection, now_unix_ms)


def _add(transaction: Transaction, now_unix_ms: int) -> None:
    add_months(transaction.connection, now_unix_ms)
