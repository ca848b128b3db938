"""After the last fault: everything is mended, waited for, and held to its promises.

In: the outcomes of all streams, the mesh, its books. Out: `Check`s. The mesh is given time to come to rest: books
follow delivery by a moment, and what a dead client leaves on the bus goes by itself after a minute.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.chaos import traces_left
from services.chaos.beats import Beats
from services.chaos.core import verdict
from services.chaos.core.streams import Outcome
from services.chaos.core.verdict import Audited, Bill, Check, Footprint, Left, was_sent_more
from services.chaos.ground import Books, Ground
from services.chaos.load import Load
from services.mesh.clock import Clock
from services.mesh.errors import BusUnavailable
from tokenworks import CallError

_POLL_S: Final = 0.2
_BOOKED_WITHIN_S: Final = 150.0  # the meter repairs at most once in its patience, a minute
_AT_REST_WITHIN_S: Final = 90.0
_AGREED_WITHIN_S: Final = 150.0  # so does what it repairs
_ASKED_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Before:
    """What the mesh held before the first fault."""

    footprints: Mapping[str, Footprint]
    readers: int


class Audit:
    """The checks of one run."""

    def __init__(self, ground: Ground, books: Books, beats: Beats, clock: Clock) -> None:
        self._ground = ground
        self._books = books
        self._beats = beats
        self._clock = clock

    async def before(self) -> Before:
        """Raises BusUnavailable."""
        return Before(traces_left.footprints(self._ground), await traces_left.readers(self._ground))

    async def checks(self, load: Load, before: Before, capped: str) -> list[Check]:
        """All of them; `capped`: the tenant with a budget, empty for none."""
        found = [verdict.check_streams(load.outcomes, (capped,))]
        audited = await self._audited()  # first: what a dead worker told nobody is booked by its repairs
        bills = await self._bills(load.outcomes)
        found.append(verdict.check_conservation(load.outcomes, bills))
        found.append(verdict.check_books(audited))
        if capped:
            found.append(await self._budget(load, capped, bills))
        rebuilt = await self._books.rebuilt()
        found.append(verdict.check_rebuild(rebuilt.differences, rebuilt.events))
        found.append(verdict.check_left(await self._left(before)))
        return found

    async def _bills(self, outcomes: Sequence[Outcome]) -> dict[str, Bill]:
        """Each request's bill, once it agrees with what its client has, or waiting has ended."""
        ends_s = self._clock.monotonic_s() + _BOOKED_WITHIN_S
        bills: dict[str, Bill] = {}
        due = list(outcomes)
        while True:
            for start in range(0, len(due), _ASKED_AT_ONCE):
                some = due[start : start + _ASKED_AT_ONCE]
                asked = await asyncio.gather(*(self._bill(each.request_id) for each in some))
                bills |= {each.request_id: bill for each, bill in zip(some, asked, strict=True) if bill is not None}
            due = [each for each in due if _unsettled(each, bills.get(each.request_id))]
            if not due or self._clock.monotonic_s() > ends_s:
                return bills
            await asyncio.sleep(_POLL_S)

    async def _bill(self, request_id: str) -> Bill | None:
        try:
            return await self._books.bill(request_id)
        except CallError as error:
            if not error.passing:
                raise
            return None

    async def _audited(self) -> Audited:
        """The reconciler's word after its next pass, once it agrees, or waiting has ended."""
        ends_s = self._clock.monotonic_s() + _AGREED_WITHIN_S
        began = (await self._books.audited()).rounds
        while True:
            audited = await self._books.audited()
            if (audited.rounds > began and audited.level) or self._clock.monotonic_s() > ends_s:
                return audited
            await asyncio.sleep(_POLL_S)

    async def _budget(self, load: Load, tenant: str, bills: Mapping[str, Bill]) -> Check:
        budget = await self._books.budget(tenant)
        refused: bool | None = None
        if budget.spent_nusd >= budget.limit_nusd:
            after = await load.ask(tenant, 0, direct=False)
            refused = after.refused_because == "CreditExhausted"
        mine = {each.request_id for each in load.outcomes if each.tenant == tenant}
        billed = sum(bill.price_nusd for request_id, bill in bills.items() if request_id in mine)
        return verdict.check_budget(tenant, budget.limit_nusd, budget.spent_nusd, billed, refused)

    async def _left(self, before: Before) -> Left:
        began_s = self._clock.monotonic_s()
        while True:
            left = Left(
                running=await traces_left.running(self._ground, self._beats),
                before=before.footprints,
                after=traces_left.footprints(self._ground),
                consumers_before=before.readers,
                consumers=await self._readers(),
                waited_s=self._clock.monotonic_s() - began_s,
            )
            if not verdict.check_left(left).violations or left.waited_s > _AT_REST_WITHIN_S:
                return left
            await asyncio.sleep(_POLL_S)

    async def _readers(self) -> int:
        try:
            return await traces_left.readers(self._ground)
        except BusUnavailable:
            return -1


def _unsettled(outcome: Outcome, bill: Bill | None) -> bool:
    """Whether its bill may yet become what it should be; of an answer that is wrong nobody knows what that is."""
    if bill is None:
        return outcome.tokens > 0
    agrees = bill.delivered_tokens == outcome.tokens or was_sent_more(outcome, bill) or bool(outcome.wrong)
    return bill.outcome == "running" or not agrees or bill.generated_tokens < bill.delivered_tokens
