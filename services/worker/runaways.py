"""A worker's part in holding back what runs away: it finds answers that go in circles, and ends what is stopped.

In: what streams make, `RunawayFound` of the meter. Out: `RunawayFound` of its own, and which streams are to end.
"""

import logging
from collections.abc import Callable
from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.errors import OutboxFull
from services.mesh.events import RunawayFound, RunawayGrade
from services.mesh.settings import RunawaySettings
from services.mesh.subjects import RUNAWAY
from services.worker.core.repetition import Loop, Repetition
from services.worker.identity import Identity
from services.worker.requests import Order
from services.worker.stream import Stream

log = logging.getLogger(__name__)

_SURELY: Final = 2  # times what makes a loop worth a word, it is worth an end
_HOLDS_MS: Final = 180_000


class Runaways:
    """Lives in the event loop.

    Args:
        settings: how long a loop must be, and how far to go.
    """

    def __init__(self, settings: RunawaySettings, identity: Identity, bus: Bus, clock: Clock) -> None:
        self._settings = settings
        self._identity = identity
        self._bus = bus
        self._clock = clock

    def watched(self, order: Order) -> Repetition | None:
        """What watches a new stream; None where a length was asked for whatever is said, or nothing is watched."""
        if self._settings.most is RunawayGrade.NONE or order.engine.sampling.ignore_eos:
            return None
        return Repetition(least_repeats=self._settings.loop_repeats, least_units=self._settings.loop_tokens)

    def found(self, stream: Stream) -> bool:
        """A stream goes in circles: says so once for each grade; whether it is to end."""
        repetition = stream.repetition
        assert repetition is not None, "it was watched"
        loop = repetition.loop
        assert loop is not None, "it was found"
        grade = RunawayGrade.NOTIFY
        if self._settings.most is RunawayGrade.STOP and self._surely(loop):
            grade = RunawayGrade.STOP
        if stream.runaway != grade:
            stream.runaway = grade
            self._say(stream, loop, grade, "characters" if repetition.in_characters else "tokens")
        return grade is RunawayGrade.STOP and not self._settings.dry_run

    async def watch(self, end: Callable[[RunawayFound], int]) -> None:
        """Until cancelled: `end` ends the streams of a scope that is stopped, and says how many those were."""

        async def hear(delivered: Delivered) -> None:
            found = delivered.event
            assert isinstance(found, RunawayFound), "that is what the channel carries"
            stopped = found.grade == RunawayGrade.STOP and not found.dry_run and found.scope != "request"
            if stopped and (ended := end(found)):
                log.warning("ended %d streams as runaways: %s", ended, found.evidence)

        await self._bus.watch([RUNAWAY], hear)

    def _surely(self, loop: Loop) -> bool:
        settings = self._settings
        return (
            loop.repeats >= _SURELY * settings.loop_repeats
            and loop.repeats * loop.period >= _SURELY * settings.loop_tokens
        )

    def _say(self, stream: Stream, loop: Loop, grade: RunawayGrade, unit: str) -> None:
        now_unix_ms = self._clock.unix_ms()
        request_id = stream.account.request_id
        evidence = (
            f"request {request_id!r} of workload {stream.order.workload!r} repeats its last {loop.period} {unit}"
            f" {loop.repeats} times, after {stream.next_index} tokens"
        )
        log.warning("runaway, %s: %s", grade, evidence)
        event = RunawayFound(
            found_by=self._identity.worker,
            tenant=stream.order.tenant,
            scope="request",
            name=request_id,
            kind="repetition",
            grade=str(grade),
            dry_run=self._settings.dry_run,
            observed=loop.repeats,
            usual=1.0,
            unit="repeats",
            allowed_rps=0.0,
            cap_tokens=0,
            evidence=evidence,
            at_unix_ms=now_unix_ms,
            until_unix_ms=now_unix_ms + _HOLDS_MS,
        )
        try:
            self._bus.publish(event)
        except OutboxFull:
            log.warning("the outbox of runaways is full; that was not published")


def falls_under(order: Order, found: RunawayFound) -> bool:
    """Whether a request is of the tenant, workload or session that was found."""
    if order.tenant != found.tenant:
        return False
    names = {"tenant": found.name, "workload": order.workload, "session": order.session_id}  # of callers routers know
    return found.name == names.get(found.scope)
