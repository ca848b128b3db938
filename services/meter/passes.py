"""Passes over the books, one after the other, until cancelled: what the audit, the bill and their like are made of.

In: one pass, and how long to rest after it. Out: nothing; a pass that fails is logged, and the next one does what it
did not: what a pass has done is in the books, so none needs to know of another's end.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from sqlalchemy.exc import OperationalError

from services.mesh.errors import BusUnavailable, InvariantBroken, OutboxFull, QueueFull

log = logging.getLogger(__name__)

# What passes by itself, or ends this meter's part by somebody else's doing: another meter has the books.
_WAITS: Final = (BusUnavailable, InvariantBroken, OperationalError, OutboxFull, QueueFull)


async def pass_on(one_pass: Callable[[], Awaitable[object]], every_s: float, what: str) -> NoReturn:
    """Makes passes until cancelled.

    Args:
        every_s: rest after each.
        what: is done by a pass, in words of the log: "the audit".
    """
    while True:
        try:
            await one_pass()
        except _WAITS as error:
            log.info("%s waits: %s", what, error)
        except Exception:
            log.exception("a pass of %s failed", what)
        await asyncio.sleep(every_s)
