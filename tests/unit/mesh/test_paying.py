"""Who waits for credit: a meter that is away has not said that there is none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from services.mesh.bus import Bus
from services.mesh.clock import SystemClock
from services.mesh.credit import Unit
from services.mesh.errors import BusUnavailable
from services.mesh.events import LeaseAsked, LeaseGrant, LeaseGranted
from services.mesh.holds import Bound, RequestCredit, RequestCredits
from services.mesh.lessee import Lessee
from services.mesh.paying import Paid, Payer, Slice
from services.mesh.pricing import Rates

WANTED = Slice(prompt_tokens=10, least_prompt_tokens=10, tokens=64, least_tokens=1)


class Meter:
    """Answers words while it is there; `credit`: tokens it has to give to everybody."""

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.there = asyncio.Event()
        self.asked_in_vain = asyncio.Event()
        self._words = 0

    async def ask_lease(self, word: LeaseAsked, timeout_s: float, *, partition: int = 0) -> LeaseGranted:
        self._words += 1
        if not self.there.is_set():
            if self._words == 5:
                self.asked_in_vain.set()
            await asyncio.sleep(0.001)
            raise BusUnavailable("no meter")
        grants = tuple(
            LeaseGrant(
                budget=line.budget,
                subject=line.subject,
                window=line.window,
                granted=self.credit,
                limit=self.credit,
                spent=0,
                short=line.least > self.credit,
                coming=False,
                recalled=False,
            )
            for line in word.lines
        )
        return LeaseGranted(refused="", ttl_ms=60_000, grants=grants)


@asynccontextmanager
async def paying(meter: Meter) -> AsyncIterator[tuple[Payer, RequestCredit]]:
    clock = SystemClock()
    lessee = Lessee("router-0", cast("Bus", meter), clock, partition=0)
    credit = RequestCredits().begin(("r", "acme"), [Bound(1, "", Unit.TOKENS, "once", True)], Rates(0, 0, 0))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(lessee.run())
        yield Payer(lessee, clock), credit
        running.cancel()


async def test_a_meter_that_is_away_has_not_refused() -> None:
    async with paying(Meter(credit=1000)) as (payer, credit):
        assert await payer.pay(credit, WANTED, wait_s=0.05) is Paid.UNANSWERED


async def test_a_meter_that_has_nothing_has_refused() -> None:
    meter = Meter(credit=0)
    meter.there.set()
    async with paying(meter) as (payer, credit):
        assert await payer.pay(credit, WANTED, wait_s=30.0) is Paid.NOT
        assert await payer.pay(credit, WANTED, wait_s=30.0) is Paid.NOT  # nor is it asked again at once


async def test_a_running_stream_outlasts_a_meters_absence() -> None:
    meter = Meter(credit=1000)
    async with paying(meter) as (payer, credit):
        waiting = asyncio.create_task(payer.pay_on(credit, WANTED, wait_s=0.02))
        await meter.asked_in_vain.wait()
        assert not waiting.done()
        meter.there.set()
        assert await waiting
        assert credit.completion_tokens == WANTED.tokens


async def test_a_stream_that_has_ended_waits_for_no_meter() -> None:
    async with paying(Meter(credit=1000)) as (payer, credit):
        waiting = asyncio.create_task(payer.pay_on(credit, WANTED, wait_s=0.02))
        credit.ended = True
        assert not await waiting
