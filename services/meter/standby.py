"""Several meters on one set of books: one leads, the others stand by and take that over when it falls silent.

In: the database, and whether the books are free. Out: the moment from which they are this meter's, and the end of the
service should another have taken them. What is in memory of whoever takes over is read from the database and the
streams, as at any start.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from services.mesh.errors import InvariantBroken
from services.mesh.lifecycle import cancel_all
from services.meter.store.holding import Holding

log = logging.getLogger(__name__)

_RENEWALS: Final = 3  # in the time that it holds
_LOOKS: Final = 6


class Standby:
    """One meter's side. Lives in the event loop.

    Args:
        ttl_s: as the holding's.
        on_lost: called when another has taken the books.
    """

    def __init__(self, holding: Holding, ttl_s: float, on_lost: Callable[[BaseException], None]) -> None:
        self._holding = holding
        self._ttl_s = ttl_s
        self._on_lost = on_lost
        self._keeping: asyncio.Task[None] | None = None

    async def take(self) -> str:
        """Takes the books if they are free, and keeps them; who has them, empty when it is this meter.

        Raises:
            SQLAlchemyError: the server does not answer.
        """
        holder = await asyncio.to_thread(self._holding.take)
        if not holder:
            self._keeping = asyncio.create_task(self._keep(), name="keep the books")
        return holder

    async def wait(self) -> None:
        """Returns when the books are this meter's."""
        while True:
            try:
                holder = await self.take()
            except SQLAlchemyError as error:
                log.warning("the books cannot be asked for: %s", error)
                holder = "?"
            if not holder:
                log.warning("the books are free; this meter takes them over")
                return
            await asyncio.sleep(self._ttl_s / _LOOKS)

    async def stop(self) -> None:
        """Gives the books up, where they were this meter's; to be called when nothing is written any more."""
        if self._keeping is not None:
            await cancel_all([self._keeping])
            await asyncio.to_thread(self._holding.release)
        await asyncio.to_thread(self._holding.close)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / _RENEWALS)
            try:
                mine = await asyncio.to_thread(self._holding.renew)
            except SQLAlchemyError as error:
                # Whether another has them, the next transaction says.
                log.warning("the hold on the books could not be renewed: %s", error)
                continue
            if not mine:
                self._on_lost(InvariantBroken("the books were taken over by another meter, since this one was silent"))
                return
