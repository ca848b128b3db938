"""Tells a receiver of each line of the ledger, as a CloudEvent, at least once.

The ledger is the outbox: it is read behind a mark, which is stored after the receiver has acknowledged. So booking
never waits for a receiver, a crash tells some again under the same ids, and a receiver that was down for long finds
everything. Lives in the event loop, with one bounded page of lines in memory.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Sequence
from functools import partial
from typing import Final

from opentelemetry.metrics import CallbackOptions, Observation

from services.mesh import conventions as names
from services.mesh.errors import InvariantBroken, QueueFull
from services.mesh.settings import CloudEventsSettings
from services.mesh.telemetry import Telemetry
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.lines import BookedLine, cloud_event
from services.meter.receivers import Receiver, ReceiverAway, Told, receiver_name
from services.meter.store.exports import ExportReader, put_told
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)

_PAGE: Final = 512  # lines
_FIRST_RETRY_S: Final = 0.5
_LAST_STORE_S: Final = 2.0


class Telling:
    """Args:
    exporting: threads that read.
    """

    def __init__(
        self,
        *,
        settings: CloudEventsSettings,
        receiver: Receiver,
        reader: ExportReader,
        bookkeeper: Bookkeeper,
        exporting: WorkThreads,
        writing: WorkThreads,
        telemetry: Telemetry,
    ) -> None:
        self._settings = settings
        self._name = receiver_name(settings)
        self._receiver = receiver
        self._reader = reader
        self._bookkeeper = bookkeeper
        self._exporting = exporting
        self._writing = writing
        self._waiting = 0
        self._failures = 0
        self._books = ""
        self._line = 0
        self._stored = 0
        self._settled: set[str] = set()  # of the lines after the mark, at most as many as are told at once
        meter = telemetry.meter
        self._told = meter.create_counter(names.CLOUD_EVENTS_TOLD, "{event}", "CloudEvents that a receiver has")
        self._refused = meter.create_counter(names.CLOUD_EVENTS_REFUSED, "{event}", "CloudEvents passed over: refused")
        meter.create_observable_gauge(
            names.CLOUD_EVENTS_WAITING, [self._observe_waiting], "{line}", "Lines that the receiver was not told of"
        )

    async def run(self) -> None:
        """Tells until cancelled, or until another meter has the books."""
        try:
            while True:
                try:
                    pause_s = await self._pass()
                except InvariantBroken as lost:
                    log.warning("no more is told to %s: %s", self._name, lost)
                    return
                except (ReceiverAway, QueueFull) as away:
                    pause_s = self._backed_off(str(away))
                except Exception as error:
                    log.exception("telling %s failed", self._name)
                    pause_s = self._backed_off(repr(error))
                await asyncio.sleep(pause_s)
        finally:
            try:
                async with asyncio.timeout(_LAST_STORE_S):
                    await self._store()
            except (InvariantBroken, QueueFull, TimeoutError) as error:
                log.info("some events will be told to %s again: %s", self._name, error)
            await self._receiver.close()

    async def _pass(self) -> float:
        """Tells what is there; seconds until the next look."""
        if not self._books:
            await self._begin()
        newest = await self._exporting.run(self._reader.newest_line)
        self._waiting = max(0, newest - self._line)
        while self._line < newest:
            read = partial(self._reader.lines, self._line, newest, limit=_PAGE)
            await self._tell(await self._exporting.run(read), newest)
            self._waiting = max(0, newest - self._line)
        await self._store()
        return self._settings.every_s

    async def _begin(self) -> None:
        found = await self._exporting.run(partial(self._reader.told, self._name))
        if found is not None:
            self._books, self._line = found
            self._stored = self._line
            return
        at_once = self._settings.start == "now"
        line = await self._exporting.run(self._reader.newest_line) if at_once else 0
        books = secrets.token_hex(8)
        await self._writing.run(
            partial(self._bookkeeper.within, partial(put_told, receiver=self._name, books=books, line=line))
        )
        self._books, self._line, self._stored = books, line, line
        log.info("%s is told of the ledger's lines after %d", self._name, line)

    async def _tell(self, lines: Sequence[BookedLine], newest: int) -> None:
        """Tells a page, some at a time, and stores how far it came; `newest` is reached where the page is the last."""
        at_once = self._receiver.at_once
        try:
            for start in range(0, len(lines), at_once):
                await self._tell_some(lines[start : start + at_once])
        except ReceiverAway:
            await self._store()
            raise
        if len(lines) < _PAGE:
            self._line = newest
        await self._store()

    async def _tell_some(self, lines: Sequence[BookedLine]) -> None:
        """Tells what the receiver has not yet settled of some lines; the mark goes up to the first that is left.

        Raises:
            ReceiverAway: one is left.
        """
        events = {each.line: cloud_event(self._books, each) for each in lines if each.billed}
        to_tell = [each for each in events.values() if each["id"] not in self._settled]
        told = await self._receiver.tell(to_tell) if to_tell else Told()
        for event_id, why in told.refused:
            log.error("%s refuses event %s, which is passed over: %s", self._name, event_id, why)
        self._refused.add(len(told.refused))
        self._told.add(len(told.settled) - len(told.refused))
        self._settled |= told.settled
        for each in lines:
            if each.line in events and events[each.line]["id"] not in self._settled:
                break
            self._line = each.line
        if told.settled:
            self._recovered()
        if told.away:
            raise ReceiverAway(told.away)
        self._settled.clear()

    async def _store(self) -> None:
        if self._line > self._stored:
            line = self._line
            put = partial(put_told, receiver=self._name, books=self._books, line=line)
            await self._writing.run(partial(self._bookkeeper.within, put))
            self._stored = line

    def _backed_off(self, why: str) -> float:
        """Counts a failure; seconds until the next attempt, half of them by chance."""
        longest_s = self._settings.longest_retry_s
        pause_s = min(longest_s, _FIRST_RETRY_S * 2 ** min(self._failures, 16))
        if not self._failures:
            log.warning("%s does not take events, which wait in the ledger: %s", self._name, why)
        self._failures += 1
        return float(pause_s * (0.5 + random.random() / 2))

    def _recovered(self) -> None:
        if self._failures:
            log.info("%s takes events again, after %d attempts", self._name, self._failures)
        self._failures = 0

    def _observe_waiting(self, _: CallbackOptions) -> list[Observation]:
        return [Observation(self._waiting)]
