"""When credit of the dead comes back: not before all that they may have funded is booked."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from services.mesh.bus import Bus, Progress
from services.mesh.clock import FakeClock
from services.mesh.subjects import Channel
from services.mesh.telemetry import start_telemetry
from services.meter.booked import Overdue
from services.meter.bookkeeper import Bookkeeper
from services.meter.lessor import Lessor
from services.meter.thread import WorkThreads


class Streams:
    """A bus that tells, one look after the other, how far the meter's readers are; the last look holds."""

    def __init__(self, *looks: Progress) -> None:
        self.looks = list(looks)

    async def progress(self, channels: Sequence[Channel], durable: str) -> Progress:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


class Books:
    """Books with one dead funder."""

    shard = 0

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.closed = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.dead: Sequence[str] = ()

    def overdue(self) -> Overdue:
        self.loop.call_soon_threadsafe(self.asked.set)
        return Overdue(("router-0/1",), requests=False)

    def close_overdue(self, dead: Sequence[str]) -> None:
        self.dead = dead
        self.loop.call_soon_threadsafe(self.closed.set)


async def _closes(streams: Streams, books: Books, *, missing: int = 0, within_s: float = 10.0) -> bool:
    writing = WorkThreads("writing", threads=1, max_waiting=4)
    lessor = Lessor(
        "meter-0",
        bookkeeper=cast("Bookkeeper", books),
        writing=writing,
        bus=cast("Bus", streams),
        clock=FakeClock(),
        telemetry=start_telemetry("meter", "meter-0"),
        missing=lambda: missing,
    )
    looking = asyncio.create_task(lessor.look_after())
    try:
        async with asyncio.timeout(10.0):
            await books.asked.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await books.closed.wait()
        return books.closed.is_set()
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await writing.stop()


async def test_what_a_killed_meter_was_given_is_booked_before_credit_of_the_dead_comes_back() -> None:
    books = Books()
    given = Progress(acked=10, last=14, left=4)  # to the meter before this one: nothing waits, says the server
    assert not await _closes(Streams(given), books, within_s=1.5)
    assert not books.dead
    assert await _closes(Streams(given, given, given, Progress(acked=14, last=14, left=0)), books)
    assert books.dead == ("router-0/1",)


async def test_under_load_only_what_was_there_when_it_died_is_waited_for() -> None:
    books = Books()
    then = Progress(acked=10, last=14, left=4)
    assert await _closes(Streams(then, then, Progress(acked=20, last=30, left=10)), books)


async def test_while_events_that_may_still_come_are_missing_credit_stays_where_it_is() -> None:
    books = Books()
    assert not await _closes(Streams(Progress(acked=14, last=14, left=0)), books, missing=1, within_s=1.5)
