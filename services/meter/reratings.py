"""Prices requests again, some at a time, so that booking goes on meanwhile; and says beforehand what it would come to.

In: from when, until when. Out: new lines in the ledger, spending corrected, and the re-rating in the stream, so that
books made again from the streams have the same prices. A meter that dies in between goes on at its next start.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import InvalidRequest, QueueFull
from services.mesh.price_calendar import PriceCalendar, Rerating
from services.meter.announcer import Announcer
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.conservation import Audited
from services.meter.core.requests import Key
from services.meter.store.audit import Audits
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)

_AT_ONCE: Final = 500
_MOST_WAITING: Final = 16  # each goes through all requests that are kept


@dataclass(slots=True)
class Repriced:
    """One tenant's requests whose price changes; nano-dollars of these."""

    requests: int = 0
    before_nusd: int = 0
    after_nusd: int = 0


@dataclass(slots=True)
class Outcome:
    """What a re-rating came to, or would."""

    rerating: str = ""
    looked_at: int = 0
    entries: int = 0
    tenants: dict[str, Repriced] = field(default_factory=dict)


class Reratings:
    """Lives in the event loop; works in the meter's threads."""

    def __init__(
        self,
        *,
        bookkeeper: Bookkeeper,
        audits: Audits,
        announcer: Announcer,
        reading: WorkThreads,
        writing: WorkThreads,
        bus: Bus,
        clock: Clock,
    ) -> None:
        self._bookkeeper = bookkeeper
        self._prices: PriceCalendar = bookkeeper.prices
        self._audits = audits
        self._announcer = announcer
        self._reading = reading
        self._writing = writing
        self._bus = bus
        self._clock = clock
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._last_ms = 0  # that names a re-rating

    async def rerate(self, from_unix_ms: int, to_unix_ms: int, *, dry_run: bool) -> Outcome:
        """Prices what was admitted between two times by the books as they are known now.

        Args:
            to_unix_ms: exclusive; 0: no end.
            dry_run: change nothing.

        Raises:
            InvalidRequest: some of these requests are not kept any more.
            OutboxFull: the bus is away; nothing was changed.
            QueueFull: `_MOST_WAITING` others wait for their turn.
        """
        kept_ms = self._bookkeeper.detail_from_unix_ms
        if from_unix_ms < kept_ms:
            raise InvalidRequest(
                f"from_unix_ms = {from_unix_ms}: requests from before {kept_ms} are dropped by meter.keep_detail_days,"
                f" and stay as they were billed; re-rate from {kept_ms} on"
            )
        if self._waiting >= _MOST_WAITING:
            raise QueueFull(f"{self._waiting} re-ratings run or wait; try again when some have ended", retry_after_s=1)
        self._waiting += 1
        try:
            async with self._turn:
                # Of two in one millisecond the second would take the first one's name, and so its place.
                now_ms = self._last_ms = max(self._clock.unix_ms(), self._last_ms + 1)
                rerating = Rerating(f"{now_ms:x}", from_unix_ms, to_unix_ms, now_ms)
                if dry_run:
                    return await self._go_through(rerating, write=False)
                self._bus.publish(rerating.event)
                await self._writing.run(partial(self._bookkeeper.begin_rerating, rerating))
                return await self._finish(rerating)
        finally:
            self._waiting -= 1

    async def resume(self) -> None:
        """Finishes what a crash cut short, or what the streams tell of and the database lacked."""
        for rerating in await self._writing.run(self._bookkeeper.unfinished_reratings):
            log.warning("re-rating %s goes on", rerating.rerating)
            await self._finish(rerating)

    async def _finish(self, rerating: Rerating) -> Outcome:
        outcome = await self._go_through(rerating, write=True)
        await self._writing.run(partial(self._bookkeeper.end_rerating, rerating))
        log.info("re-rating %s: %d lines of %d requests", rerating.rerating, outcome.entries, outcome.looked_at)
        return outcome

    async def _go_through(self, rerating: Rerating, *, write: bool) -> Outcome:
        outcome = Outcome(rerating.rerating if write else "")
        last: Key = ("", "")
        while True:
            found = await self._reading.run(partial(self._audits.after, last, _AT_ONCE))
            covered = {
                key: each
                for key, each in found.items()
                if each.request is not None and rerating.covers(each.request.admitted_unix_ms)
            }
            outcome.looked_at += len(covered)
            self._compare(rerating, covered, outcome)
            if write and covered:
                done = await self._writing.run(partial(self._bookkeeper.rerate, list(covered), self._clock.unix_ms()))
                outcome.entries += len(done.entries)
                self._announcer.spend(done.spent)
            if len(found) < _AT_ONCE:
                return outcome
            last = max(found)

    def _compare(self, rerating: Rerating, requests: Mapping[Key, Audited], outcome: Outcome) -> None:
        """Counts what changes, by the books as the re-rating knows them."""
        for (_, tenant), audited in requests.items():
            request = audited.request
            assert request is not None
            pricing = self._prices.at(request.admitted_unix_ms, rerating.recorded_unix_ms)
            targets = request.targets(pricing.rates(request.model, tenant, request.slo_class))
            after_nusd, before_nusd = sum(each.price_nusd for each in targets.values()), request.booked.price_nusd
            if after_nusd != before_nusd:
                repriced = outcome.tenants.setdefault(tenant, Repriced())
                repriced.requests += 1
                repriced.before_nusd += before_nusd
                repriced.after_nusd += after_nusd
