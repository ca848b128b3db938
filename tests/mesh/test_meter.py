"""The meter as a service: a bus in memory, a real SQLite file, a real gRPC server."""

import asyncio
import math
import tempfile
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.mesh import conventions as names
from services.mesh.bus import BatchHandler, Bus, Delivered
from services.mesh.errors import TokenworksError
from services.mesh.events import Event, RequestFinished
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import PriceCalendar
from services.mesh.pricing import Pricing
from services.mesh.rpc import MESH_SECRET, error_of
from services.mesh.subjects import FINISHED, TOKENS, Channel
from services.mesh.telemetry import fresh_traceparent, span_context_of, start_telemetry
from services.meter.core.amounts import NOTHING
from services.meter.core.costs import RateCard
from services.meter.core.ledger import Ledger
from services.meter.core.usage import roll_up
from tests.mesh.local_mesh import eventually
from tests.mesh.running_meter import DEADLINE_S, Meter, running_meter
from tests.unit.meter.facts import admitted, entry, finished, lives, tokens
from tokenworks.v1 import metering_pb2 as metering

pytestmark = pytest.mark.mesh

RATES = Pricing(PriceBook()).rates("llama-3.1-8b", "acme", "standard")


@pytest.fixture
async def meter(tmp_path: Path) -> AsyncIterator[Meter]:
    async with running_meter(tmp_path) as meter:
        yield meter


async def _refused(call: Awaitable[Any]) -> TokenworksError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return error_of(failure.value)


async def test_tokens_delivered_are_tokens_billed_and_the_rest_is_the_houses(meter: Meter) -> None:
    meter.publish(admitted("r"), tokens(entry("r", 0, 50, last=True)), finished("r", 40, outcome="cancelled"))
    total = await meter.total(lambda row: row.finished_requests == 1)
    assert (total.requests, total.prompt_tokens, total.generated_tokens, total.delivered_tokens) == (1, 100, 50, 40)
    assert total.price_nusd == RATES.price_nusd(100, 0, 40)
    assert total.use_cost_nusd > 0
    assert total.energy_cost_nusd > 0


async def test_finished_before_its_tokens_ends_in_the_same_bill(meter: Meter) -> None:
    meter.publish(finished("late", 9))
    await meter.total(lambda row: row.finished_requests == 1)
    meter.publish(tokens(entry("late", 0, 12, last=True)))
    total = await meter.total(lambda row: row.generated_tokens == 12)
    assert (total.requests, total.delivered_tokens) == (1, 9)
    assert total.price_nusd == RATES.price_nusd(100, 0, 9)


async def test_cached_input_is_priced_at_its_own_rate(meter: Meter) -> None:
    meter.publish(
        tokens(entry("r", 0, 5, cached_prompt_tokens=64, last=True)), finished("r", 5, cached_prompt_tokens=64)
    )
    total = await meter.total(lambda row: row.finished_requests == 1)
    assert total.cached_prompt_tokens == 64
    assert total.price_nusd == RATES.price_nusd(100, 64, 5)


class _LosesAcks:
    """A bus on which batches are handled and come again, as when their acks were lost: the first `acks` of a reader."""

    def __init__(self, bus: Bus, acks: float) -> None:
        self._bus = bus
        self._acks = acks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def consume(self, channels: Sequence[Channel], durable: str, handler: BatchHandler, **rest: Any) -> None:
        left = self._acks

        async def handle(messages: Sequence[Delivered]) -> None:
            nonlocal left
            await handler(messages)
            if left:
                left -= 1
                raise ConnectionError("the ack was lost")

        await self._bus.consume(channels, durable, handle, **rest)


async def test_a_batch_whose_ack_was_lost_is_billed_once(tmp_path: Path) -> None:
    async with running_meter(tmp_path, through=lambda bus: _LosesAcks(bus, 1)) as meter:
        meter.publish(
            admitted("r"), tokens(entry("r", 0, 30)), tokens(entry("r", 30, 10, last=True)), finished("r", 40)
        )
        total = await meter.total(lambda row: row.finished_requests == 1 and row.generated_tokens == 40)
        assert (total.requests, total.delivered_tokens, total.device_ns) == (1, 40, 2_000_000)
        assert total.price_nusd == RATES.price_nusd(100, 0, 40)


async def test_what_was_committed_and_not_acked_before_a_restart_is_billed_once(tmp_path: Path) -> None:
    events = (tokens(entry("r", 0, 30)), tokens(entry("r", 30, 10)), tokens(entry("r", 40, 10, last=True)))
    async with running_meter(tmp_path, through=lambda bus: _LosesAcks(bus, math.inf)) as first:
        first.publish(*events)

        async def is_booked() -> bool:
            return (await first.usage()).total.delivered_tokens == 50

        # Of a reader whose acks are all lost, messages wait as long as it runs.
        await eventually(is_booked, "everything is booked", DEADLINE_S)
    async with running_meter(tmp_path, broker=first.broker) as second:
        second.publish(finished("r", 50))
        total = await second.total(lambda row: row.finished_requests == 1)
        assert (total.delivered_tokens, total.device_ns) == (50, 3_000_000)


async def test_a_restart_keeps_the_books(tmp_path: Path) -> None:
    async with running_meter(tmp_path) as first:
        first.publish(tokens(entry("r", 0, 30)))
        await first.total(lambda row: row.delivered_tokens == 30)
        await first.stub.SetBudget(metering.SetBudgetRequest(tenant="acme", limit_nusd=10**9), timeout=DEADLINE_S)
        await first.life.stop()
        first.publish(tokens(entry("r", 30, 10, last=True)), finished("r", 40))
    async with running_meter(tmp_path, broker=first.broker) as second:
        total = await second.total(lambda row: row.finished_requests == 1 and row.generated_tokens == 40)
        assert (total.requests, total.delivered_tokens) == (1, 40)
        budget = await second.stub.GetBudget(metering.GetBudgetRequest(tenant="acme"), timeout=DEADLINE_S)
        assert (budget.limit_nusd, budget.spent_nusd) == (10**9, total.price_nusd)
        credit = await second.credit_is(lambda credit: credit.spent_nusd == total.price_nusd)
        assert credit.limit_nusd == 10**9


async def test_the_last_nano_dollar_spent_is_announced_and_a_top_up_too(meter: Meter) -> None:
    price_nusd = RATES.price_nusd(100, 0, 20)
    budget = await meter.stub.SetBudget(
        metering.SetBudgetRequest(tenant="acme", limit_nusd=price_nusd), timeout=DEADLINE_S
    )
    assert (budget.remaining_nusd, budget.exhausted, budget.unlimited) == (price_nusd, False, False)
    await meter.credit_is(lambda credit: credit.remaining_nusd == price_nusd)
    meter.publish(tokens(entry("r", 0, 20, last=True)), finished("r", 20))
    credit = await meter.credit_is(lambda credit: credit.exhausted)
    assert (credit.tenant, credit.limit_nusd, credit.spent_nusd, credit.remaining_nusd) == (
        "acme",
        price_nusd,
        price_nusd,
        0,
    )
    await meter.stub.SetBudget(metering.SetBudgetRequest(tenant="acme", limit_nusd=2 * price_nusd), timeout=DEADLINE_S)
    assert (await meter.credit_is(lambda credit: not credit.exhausted)).remaining_nusd == price_nusd
    await meter.stub.SetBudget(metering.SetBudgetRequest(tenant="acme", unlimited=True), timeout=DEADLINE_S)
    assert (await meter.credit_is(lambda credit: credit.unlimited)).exhausted is False


async def test_a_tenant_without_a_budget_is_unlimited_and_not_announced(meter: Meter) -> None:
    meter.publish(finished("r", 5))
    await meter.total(lambda row: row.finished_requests == 1)
    budget = await meter.stub.GetBudget(metering.GetBudgetRequest(tenant="acme"), timeout=DEADLINE_S)
    assert budget.unlimited
    assert budget.spent_nusd == RATES.price_nusd(100, 0, 5)
    assert meter.credit == []


async def test_a_bill_names_tokens_price_costs_and_hardware(meter: Meter) -> None:
    meter.publish(
        admitted("r"),
        tokens(entry("r", 0, 60)),
        tokens(entry("r", 50, 50, last=True), worker="l4-0", accelerator="nvidia-l4"),
        finished("r", 100, worker="l4-0", accelerator="nvidia-l4", slo_met=False),
    )
    total = await meter.total(lambda row: row.finished_requests == 1 and row.generated_tokens == 110)
    bill = await meter.stub.GetRequest(metering.GetRequestRequest(request_id="r"), timeout=DEADLINE_S)
    assert (bill.outcome, bill.prompt_tokens, bill.generated_tokens, bill.delivered_tokens) == ("length", 100, 110, 100)
    assert bill.price_nusd == total.price_nusd == RATES.price_nusd(100, 0, 100)
    costs_nusd = bill.use_cost_nusd + bill.energy_cost_nusd + bill.idle_cost_nusd + bill.house_cost_nusd
    assert bill.margin_nusd == bill.price_nusd - costs_nusd
    assert [(each.worker, each.accelerator, each.from_index, each.count) for each in bill.segments] == [
        ("h100-0", "nvidia-h100-sxm", 0, 60),
        ("l4-0", "nvidia-l4", 50, 50),
    ]
    by_bill_nusd = sum(each.amount_nusd for each in bill.postings if each.account == "use")
    assert sum(each.use_cost_nusd for each in bill.segments) + by_bill_nusd == bill.use_cost_nusd
    assert bill.price_book == "list@1"
    assert bill.HasField("slo_met")
    assert not bill.slo_met
    assert bill.trace_id == "0af7651916cd43dd8448eb211c80319c"


async def test_a_request_that_runs_has_a_bill_so_far(meter: Meter) -> None:
    meter.publish(admitted("r"), tokens(entry("r", 0, 7)))
    await meter.total(lambda row: row.delivered_tokens == 7)
    bill = await meter.stub.GetRequest(metering.GetRequestRequest(request_id="r"), timeout=DEADLINE_S)
    assert (bill.outcome, bill.delivered_tokens, bill.HasField("slo_met")) == ("running", 7, False)


async def test_questions_that_make_no_sense_are_refused_by_name(meter: Meter) -> None:
    cases: list[tuple[Awaitable[Any], str, str]] = [
        (meter.usage("region"), "InvalidRequest", "cannot group by 'region'"),
        (meter.usage("tenant", "tenant"), "InvalidRequest", "twice"),
        (meter.usage("hour", "day"), "InvalidRequest", "hour and day"),
        (
            meter.usage(filters=[metering.UsageFilter(field="minute", values=["1"])]),
            "InvalidRequest",
            "cannot filter on 'minute'",
        ),
        (meter.usage(filters=[metering.UsageFilter(field="tenant")]), "InvalidRequest", "no values"),
        (meter.usage(from_unix_ms=-1), "InvalidRequest", "from_unix_ms = -1"),
        (meter.usage(from_unix_ms=2, to_unix_ms=1), "InvalidRequest", "exchange"),
        (
            meter.stub.GetRequest(metering.GetRequestRequest(request_id="none"), timeout=DEADLINE_S),
            "UnknownRequest",
            "'none'",
        ),
        (meter.stub.GetRequest(metering.GetRequestRequest(), timeout=DEADLINE_S), "InvalidRequest", "request_id"),
        (meter.stub.GetBudget(metering.GetBudgetRequest(), timeout=DEADLINE_S), "InvalidRequest", "tenant"),
        (
            meter.stub.SetBudget(metering.SetBudgetRequest(tenant="acme", limit_nusd=-5), timeout=DEADLINE_S),
            "InvalidRequest",
            "limit_nusd = -5",
        ),
        (
            meter.stub.SetBudget(
                metering.SetBudgetRequest(tenant="acme", limit_nusd=5, unlimited=True), timeout=DEADLINE_S
            ),
            "InvalidRequest",
            "unlimited",
        ),
        (
            _first(meter.stub.WatchUsage(metering.WatchUsageRequest(every_ms=5), timeout=DEADLINE_S)),
            "InvalidRequest",
            "5",
        ),
    ]
    for call, reason, says in cases:
        error = await _refused(call)
        assert (error.reason, says in str(error)) == (reason, True), str(error)


async def _first(stream: Any) -> Any:
    async for message in stream:
        return message
    raise AssertionError("the stream ended without a message")


async def test_only_who_knows_the_meshs_secret_is_answered(tmp_path: Path) -> None:
    async with running_meter(tmp_path, secret="quiet") as meter:
        assert (await _refused(meter.usage())).reason == "Unauthenticated"
        await meter.stub.GetUsage(metering.GetUsageRequest(), timeout=DEADLINE_S, metadata=((MESH_SECRET, "quiet"),))


async def test_watching_shows_what_is_booked_and_ends_when_the_meter_stops(meter: Meter) -> None:
    stream = meter.stub.WatchUsage(metering.WatchUsageRequest(group_by=["tenant"], every_ms=100), timeout=DEADLINE_S)
    await _first(stream)
    meter.publish(tokens(entry("r", 0, 30, last=True)), finished("r", 20))
    seen = metering.UsageRow()
    async for delta in stream:
        for row in delta.rows:
            assert row.key.tenant == "acme"
            seen.requests += row.requests
            seen.generated_tokens += row.generated_tokens
        if seen.generated_tokens == 30:
            break
    assert seen.requests == 1
    async with asyncio.timeout(DEADLINE_S):
        await meter.life.stop()
        rest = [delta async for delta in stream]  # ends, and is not broken off
    assert sum(row.requests for delta in rest for row in delta.rows) == 0


async def test_what_cannot_be_booked_is_left_out_and_the_rest_is_booked(meter: Meter) -> None:
    meter.publish(
        tokens(entry("bad", 0, 5, device_ns=2**63), entry("good", 0, 5)),
        finished("odd", 5, prompt_tokens=3, cached_prompt_tokens=9),
    )
    total = await meter.total(lambda row: row.requests == 2)
    assert total.delivered_tokens == 10


@settings(max_examples=8, deadline=None)
@given(events=lives(), fields=st.permutations(("tenant", "workload", "accelerator", "worker", "minute")))
async def test_usage_equals_what_was_delivered_for_any_traffic(events: list[Event], fields: list[str]) -> None:
    ledger = Ledger(PriceCalendar(PriceBook()), RateCard({}, 0))
    for event in events:
        ledger.note(event)
    expected = NOTHING
    for amounts in roll_up(ledger.settle()[0]).values():
        expected = expected.plus(amounts)
    ends = [event for event in events if isinstance(event, RequestFinished)]
    with tempfile.TemporaryDirectory() as folder:
        async with running_meter(Path(folder)) as meter:
            meter.publish(*events)
            # All but the costs, which are the rates' matter.
            total = await meter.total(
                lambda row: all(
                    getattr(row, name) == amount for name, amount in expected._asdict().items() if "cost" not in name
                )
            )
            for many in range(len(fields)):
                answer = await meter.usage(*fields[: many + 1])
                for name in (*expected._fields, "idle_cost_nusd", "house_cost_nusd", "carbon_ug", "margin_nusd"):
                    assert sum(getattr(row, name) for row in answer.rows) == getattr(answer.total, name), name
                # The bill may be made meanwhile: it moves costs between requests and the house, and adds idle time.
                for name in expected._fields:
                    assert "cost" in name or getattr(answer.total, name) == getattr(total, name), name
            for end in ends:
                request = metering.GetRequestRequest(request_id=end.request_id)
                bill = await meter.stub.GetRequest(request, timeout=DEADLINE_S)
                assert bill.delivered_tokens == end.delivered_count


async def test_bookings_are_children_of_their_message_and_batches_link_to_theirs(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    telemetry = start_telemetry("meter", "meter-0", exporter=exporter)
    created = fresh_traceparent()[:-2] + "01"  # sampled
    async with running_meter(tmp_path, telemetry=telemetry) as meter:
        meter.publish(tokens(entry("r", 0, 5, last=True, traceparent=created)))
        await meter.total(lambda row: row.delivered_tokens == 5)
    await asyncio.to_thread(telemetry.shutdown)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    settle = spans[names.settle_span(TOKENS.template)]
    assert settle.parent is not None
    assert settle.parent.span_id == span_context_of(created).span_id
    assert settle.attributes is not None
    assert settle.attributes[names.REQUEST_ID] == "r"
    assert settle.attributes[names.PRICE_NUSD] == RATES.price_nusd(100, 0, 5)
    process = spans[names.process_span(TOKENS.template)]
    assert process.parent is None
    assert process.kind is SpanKind.CONSUMER
    assert names.settle_span(FINISHED.template) not in spans
