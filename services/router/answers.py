"""Answered requests, shared among routers: one request id is not answered twice, whichever router gets it.

In: what this router answered to the end, what the others say that they did, and at the start what the stream of ended
requests holds. Out: `RequestsAnswered`, at most twenty times a second, and others' answers in this router's records, as
many as `router.decision_records`. Within that twentieth of a second, or when an event is lost, a request that is sent
twice may be generated twice; it is billed once in any case.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.errors import BusUnavailable
from services.mesh.events import Outcome, RequestFinished, RequestsAnswered
from services.mesh.subjects import ADMITTED, ANSWERED, FINISHED
from services.router.core.records import DecisionRecords

log = logging.getLogger(__name__)

_SAY_EVERY_S: Final = 0.05
_SAID_AT_ONCE: Final = 4096
_RECALLED: Final = 20_000  # messages of the stream: two for each request
_METER: Final = "meter-requests"  # how far it has read tells where the stream's end is
_TO_THE_END: Final = frozenset({Outcome.STOP, Outcome.LENGTH, Outcome.BUDGET})


class Answers:
    """What one router knows of answers, its own and others'."""

    def __init__(self, router: str, records: DecisionRecords, bus: Bus, clock: Clock) -> None:
        self._router = router
        self._records = records
        self._bus = bus
        self._clock = clock

    async def speak(self) -> None:
        """Runs until cancelled: tells the others."""
        while True:
            if answered := self._records.take_answered(_SAID_AT_ONCE):
                at_unix_ms = self._clock.unix_ms()
                self._bus.publish(RequestsAnswered(router=self._router, request_ids=answered, at_unix_ms=at_unix_ms))
            await asyncio.sleep(_SAY_EVERY_S)

    async def listen(self) -> None:
        """Runs until cancelled: takes in what the others say."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._bus.watch([ANSWERED], self._hear))
            tasks.create_task(self._recall())

    async def _recall(self) -> None:
        """Takes in the latest answers of before this router started."""
        try:
            read = (await self._bus.progress([ADMITTED, FINISHED], _METER)).acked
            await self._bus.replay([FINISHED], self._note, after_sequence=max(0, read - _RECALLED))
        except BusUnavailable as error:
            log.warning("earlier answers are not known here: %s", error)

    async def _note(self, messages: Sequence[Delivered]) -> None:
        ended = [message.event for message in messages if isinstance(message.event, RequestFinished)]
        self._records.answered_elsewhere(
            each.request_id for each in ended if each.outcome in _TO_THE_END and each.delivered_count
        )

    async def _hear(self, delivered: Delivered) -> None:
        event = delivered.event
        if isinstance(event, RequestsAnswered) and event.router != self._router:
            self._records.answered_elsewhere(event.request_ids)
