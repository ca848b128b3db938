"""Answers shared among routers: what one has answered no other answers anew, also one that starts later."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from services.mesh.clock import SystemClock
from services.mesh.memory_bus import MemoryBroker
from services.router.answers import Answers
from services.router.core.records import DecisionRecord, DecisionRecords
from services.router.core.request import Asked, PromptFacts, PromptKind, SamplingValues
from tests.contract.bus_worlds import eventually, finished


@asynccontextmanager
async def _router(broker: MemoryBroker, name: str) -> AsyncIterator[DecisionRecords]:
    records, bus = DecisionRecords(100), broker.bus("router", name)
    answers = Answers(name, records, bus, SystemClock())
    tasks = [asyncio.create_task(answers.listen()), asyncio.create_task(answers.speak())]
    try:
        yield records
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await bus.close()


def _ended(request_id: str, outcome: str, delivered: int) -> DecisionRecord:
    shortlist: Any = None  # nothing here looks at it
    return DecisionRecord(
        asked=Asked(
            request_id=request_id,
            tenant="acme",
            model="m",
            slo_class="standard",
            workload="",
            session_id="",
            prompt=PromptFacts(kind=PromptKind.TEXT, size=20),
            sampling=SamplingValues(),
        ),
        prompt_tokens=1,
        completion_tokens=1,
        picked_worker="a",
        plan="",
        plan_age_s=0.0,
        shortlist=shortlist,
        trace_id="",
        decided_unix_ms=0,
        decision_us=1.0,
        outcome=outcome,
        delivered=delivered,
    )


async def test_what_one_router_answered_no_other_answers_anew() -> None:
    broker = MemoryBroker()
    async with _router(broker, "r0") as first, _router(broker, "r1") as second:

        def told() -> bool:
            first.ended(_ended("done", "stop", 9))  # again: an event may be lost
            return second.was_answered("done")

        await eventually(told, "the other router knows")


async def test_an_answer_that_broke_off_may_be_given_anew_elsewhere() -> None:
    broker = MemoryBroker()
    async with _router(broker, "r0") as first, _router(broker, "r1") as second:

        def told() -> bool:
            first.ended(_ended("broken", "cancelled", 9))
            first.ended(_ended("empty", "stop", 0))
            first.ended(_ended("done", "length", 9))
            return second.was_answered("done")

        await eventually(told, "the other router knows")
        assert not second.was_answered("broken")
        assert not second.was_answered("empty")


async def test_a_router_that_starts_later_knows_what_was_answered_before() -> None:
    broker = MemoryBroker()
    old = broker.bus("router", "gone")
    old.publish(finished("before"))
    async with _router(broker, "r1") as records:
        await eventually(lambda: records.was_answered("before"), "what the stream holds is known")


def test_what_is_known_of_others_is_bounded() -> None:
    records = DecisionRecords(3)
    records.answered_elsewhere(f"r{number}" for number in range(5))
    assert [records.was_answered(f"r{number}") for number in range(5)] == [False, False, True, True, True]
