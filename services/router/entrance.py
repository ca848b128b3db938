"""The way in that relayed and direct requests share: checked, given a place and credit; or refused, which is told.

In: a request with the check and the credit that its way of streaming needs. Out: its passage and what is held for it.
A request that waits for credit gives its place up meanwhile, and is checked and placed anew when it has some.
"""

from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from services.mesh.errors import TokenworksError
from services.mesh.holds import RequestCredit
from services.router.announcer import Announcer
from services.router.core.request import Asked
from services.router.funds import Funds
from services.router.measures import Measures
from services.router.room import Passage, Room

# Holds credit for a request of so many prompt tokens, let in at that time; and whether it waited. See `Funds.fund`.
Fund = Callable[[Asked, int, int], Awaitable[tuple[RequestCredit | None, bool]]]


class Entered(NamedTuple):
    """A request that was let in; `credit` is None where no budget bounds it."""

    passage: Passage
    credit: RequestCredit | None


class Entrance:
    """The way into one router."""

    def __init__(self, room: Room, funds: Funds, *, measures: Measures, announcer: Announcer) -> None:
        self._room = room
        self._funds = funds
        self._measures = measures
        self._announcer = announcer

    async def enter(
        self,
        asked: Asked,
        traceparent: str,
        *,
        check: Callable[[], object],
        fund: Fund,
        excluded: Collection[str],
        time_left_s: float | None,
    ) -> Entered:
        """Lets a request in. Waits for capacity where there is none, and for credit that others hold.

        Args:
            check: raises why it may not come in; called again when much may have changed.
            excluded: workers that it is not to go to.
            time_left_s: of the caller's deadline; None where there is none.

        Raises:
            TokenworksError: of `check`, `Room.enter` and `fund`. Nothing is held for the request then.
        """
        credit = None
        try:
            check()
            passage = await self._room.enter(asked, traceparent, excluded=excluded, time_left_s=time_left_s)
            if self._funds.budgets:
                record = passage.record
                credit, waited = await self._funded(passage, fund)
                if waited:
                    check()
                    passage = await self._room.enter(asked, traceparent, excluded=excluded, time_left_s=time_left_s)
                    passage.record.decided_unix_ms = record.decided_unix_ms  # it pays the prices of then
        except TokenworksError as error:
            if credit is not None:
                self._funds.unused(asked, credit)
            self._measures.refused(error)
            self._announcer.refused(asked, error, traceparent)
            raise
        return Entered(passage, credit)

    async def _funded(self, passage: Passage, fund: Fund) -> tuple[RequestCredit | None, bool]:
        """Credit for a request that has its place, which it gives up while it waits for credit; whether it waited."""
        record = passage.record
        try:
            credit, waited = await fund(passage.asked, record.prompt_tokens, record.decided_unix_ms)
        except BaseException:
            self._room.give_up(passage)
            raise
        if waited:
            self._room.give_up(passage)
        return credit, waited
