import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from services.mesh.bus import Bus, EventId
from services.mesh.clock import FakeClock
from services.mesh.errors import OutboxFull
from services.mesh.events import CreditChanged, Event
from services.meter.announcer import Announcer
from services.meter.core.budgets import Accounts, Credit


class _Outbox:
    """The publishing half of a bus, with room for `room` events."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.events: list[CreditChanged] = []
        self.changed = asyncio.Event()

    def publish(self, event: Event, *, traceparent: str = "") -> EventId:
        assert isinstance(event, CreditChanged)
        if len(self.events) >= self.room:
            raise OutboxFull("the outbox is full")
        self.events.append(event)
        self.changed.set()
        return EventId("meter.meter-0.credit", "e1", len(self.events))

    async def holds(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.events) < count:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def _running(accounts: Accounts, outbox: _Outbox) -> AsyncIterator[Announcer]:
    announcer = Announcer(accounts, cast("Bus", outbox), FakeClock())
    task = asyncio.create_task(announcer.run())
    yield announcer
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_restored_budgets_are_announced_at_the_start() -> None:
    accounts, outbox = Accounts(), _Outbox(10)
    accounts.restore(Credit("acme", 100, 30))
    async with _running(accounts, outbox):
        await outbox.holds(1)
    assert (outbox.events[0].tenant, outbox.events[0].remaining_nusd) == ("acme", 70)


async def test_exhaustion_is_announced_without_waiting() -> None:
    outbox = _Outbox(10)
    async with _running(Accounts(), outbox) as announcer:
        announcer.set_limit("acme", 100, 0)
        await outbox.holds(1)
        announcer.spend({"acme": 100, "free": 5})
        await outbox.holds(2)
    assert [event.exhausted for event in outbox.events] == [False, True]


async def test_what_a_full_outbox_refused_is_announced_when_there_is_room() -> None:
    outbox = _Outbox(0)
    async with _running(Accounts(), outbox) as announcer:
        announcer.set_limit("acme", 100, 0)
        announcer.spend({"acme": 40})
        await asyncio.sleep(0)  # lets the announcer meet the full outbox
        outbox.room = 10
        await outbox.holds(1)
    assert outbox.events[0].remaining_nusd == 60
