import asyncio
from typing import Any

import pytest

from services.mesh.accelerators import load_catalogue
from services.mesh.bus import EventId
from services.mesh.clock import FakeClock
from services.mesh.errors import OutboxFull
from services.mesh.events import Event, LatencyObserved, RequestLatency, TokensGenerated
from services.mesh.telemetry import start_telemetry
from services.mesh.timing import StepLoad
from services.worker.account import Account
from services.worker.engine import StepOutput
from services.worker.identity import Identity
from services.worker.reporter import Reporter
from tests.unit.worker.waiting import until

WHO = Identity(worker="w", pool="p", accelerator=load_catalogue().accelerator("nvidia-h100-sxm"), epoch="e")


class KeepingBus:
    """Takes events while it has room; the rest of the Bus is not asked of it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.room = 1_000_000

    def publish(self, event: Event, *, traceparent: str = "") -> EventId:
        if len(self.events) >= self.room:
            raise OutboxFull("no room")
        self.events.append(event)
        return EventId("w.tokens", "e", len(self.events))


@pytest.fixture
def bus() -> KeepingBus:
    return KeepingBus()


@pytest.fixture
def reporter(bus: KeepingBus) -> Reporter:
    as_bus: Any = bus
    return Reporter(WHO, as_bus, FakeClock(), start_telemetry("worker", "w"))


def account(request_id: str) -> Account:
    return Account(
        request_id=request_id,
        tenant="acme",
        workload="",
        model="m",
        slo_class="standard",
        traceparent="",
        from_index=0,
    )


def latency(request_id: str) -> RequestLatency:
    return RequestLatency(
        request_id=request_id,
        slo_class="standard",
        prompt_tokens=1,
        cached_prompt_tokens=0,
        completion_tokens=2,
        queue_s=0.0,
        ttft_s=0.1,
        tpot_s=0.1,
        worst_gap_s=0.1,
        batch=1,
        kv_cache_usage=0.0,
    )


def made(reporter: Reporter, account: Account, tokens: int, device_ns: int) -> None:
    account.count += tokens
    account.device_ns += device_ns
    if not account.noted:
        reporter.note(account)


def batches(bus: KeepingBus) -> list[TokensGenerated]:
    return [event for event in bus.events if isinstance(event, TokensGenerated)]


def test_tokens_of_one_request_are_merged_until_they_are_reported(reporter: Reporter, bus: KeepingBus) -> None:
    first = account("r-1")
    made(reporter, first, 1, 100)
    made(reporter, first, 2, 50)
    reporter.flush()
    made(reporter, first, 1, 7)
    first.last = True
    reporter.flush()
    entries = [entry for batch in batches(bus) for entry in batch.entries]
    assert [(entry.from_index, entry.count, entry.device_ns, entry.last) for entry in entries] == [
        (0, 3, 150, False),
        (3, 1, 7, True),
    ]


def test_nothing_is_said_when_there_is_nothing_to_say(reporter: Reporter, bus: KeepingBus) -> None:
    assert reporter.flush() == 0
    assert bus.events == []


def test_a_batch_has_at_most_256_entries(reporter: Reporter, bus: KeepingBus) -> None:
    for index in range(600):
        made(reporter, account(f"r-{index}"), 1, 1)
    reporter.flush()
    assert [len(batch.entries) for batch in batches(bus)] == [256, 256, 88]


def test_what_the_bus_does_not_take_is_kept_and_grows_together(reporter: Reporter, bus: KeepingBus) -> None:
    first = account("r-1")
    bus.room = 0
    made(reporter, first, 1, 100)
    assert reporter.flush() == 1
    made(reporter, first, 2, 50)
    assert reporter.flush() == 1
    bus.room = 10
    assert reporter.flush() == 0
    (batch,) = batches(bus)
    assert [(entry.from_index, entry.count, entry.device_ns) for entry in batch.entries] == [(0, 3, 150)]


def test_latencies_are_reported_by_model_with_few_of_many_steps(reporter: Reporter, bus: KeepingBus) -> None:
    for step in range(100):
        load = StepLoad(decode_sequences=1, kv_tokens=step)
        reporter.step(StepOutput(step_s=0.01, outputs=(), load=load, model="m"), step * 0.01)
    reporter.step(StepOutput(step_s=0.01, outputs=(), load=None, model="m"), 2.0)
    reporter.finished("m", latency("r-1"))
    reporter.finished("n", latency("r-2"))
    reporter.flush()
    found = {event.model: event for event in bus.events if isinstance(event, LatencyObserved)}
    assert [each.request_id for each in found["m"].requests] == ["r-1"]
    assert [each.request_id for each in found["n"].requests] == ["r-2"]
    assert len(found["m"].steps) == 10
    assert found["n"].steps == ()


async def test_reports_go_out_by_themselves(reporter: Reporter, bus: KeepingBus) -> None:
    running = asyncio.create_task(reporter.run())
    made(reporter, account("r-1"), 1, 1)
    await until(lambda: bool(batches(bus)), "the batch is out")
    bus.room = len(bus.events)
    made(reporter, account("r-2"), 1, 1)
    bus.room += 1
    await until(lambda: len(batches(bus)) == 2, "the next batch is out")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
