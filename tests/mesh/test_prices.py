"""Prices and the fleet's bill through a running meter: a bus in memory, a real SQLite file, a real gRPC server."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.mesh.clock import SystemClock
from services.mesh.events import WorkerHeartbeat, WorkerState
from services.mesh.price_book import Price, PriceBook, Tier
from services.mesh.pricing import Pricing
from services.mesh.settings import CostSettings, SloClass, SloSettings, load_settings
from services.meter.core.presence import MS_PER_HOUR
from services.meter.rates import rate_card
from services.meter.rebuild import rebuild
from services.meter.store.compare import differences
from services.meter.store.database import Database
from tests.mesh.local_mesh import eventually
from tests.mesh.running_meter import DEADLINE_S, Meter, running_meter
from tests.unit.meter.facts import START_MS, admitted, entry, finished, tokens
from tokenworks.v1 import metering_pb2 as metering
from tokenworks.v1 import pricing_pb2 as pricing

pytestmark = pytest.mark.mesh

FIRST = Pricing(PriceBook()).rates("llama-3.1-8b", "acme", "standard")
SLO = SloSettings(
    classes={
        "standard": SloClass(ttft_s=2.0, tpot_s=0.1, credit_percent=Decimal(50), credit_usd=Decimal("0.000000001"))
    }
)


def _book(version: int, output_usd: str) -> PriceBook:
    rate = Decimal(output_usd)
    return PriceBook(
        version=version,
        prices=(Price(input_usd_per_mtok=rate, cached_input_usd_per_mtok=rate, output_usd_per_mtok=rate),),
    )


def _beat(at_unix_ms: int, *, worker: str = "h100-0", energy_uj: int = 0) -> WorkerHeartbeat:
    numbers: dict[str, Any] = dict.fromkeys(
        (
            "sequence",
            "running",
            "waiting",
            "waiting_prefill_tokens",
            "kv_capacity_tokens",
            "context_tokens",
            "max_batch",
            "max_waiting",
            "busy_ns",
            "generated_tokens",
            "rate_nusd_per_hour",
            "steps",
            "prefill_chunk_tokens",
        ),
        0,
    )
    return WorkerHeartbeat(
        worker=worker,
        pool="nvidia-h100-sxm",
        accelerator="nvidia-h100-sxm",
        engine="simulated",
        models=(),
        address="",
        epoch="e",
        state=WorkerState.READY,
        kv_cache_usage=0.0,
        slowdown=1.0,
        power_w=0.0,
        energy_uj=energy_uj,
        simulated=True,
        failed_because="",
        at_unix_ms=at_unix_ms,
        **numbers,
    )


@pytest.fixture
async def meter(tmp_path: Path) -> AsyncIterator[Meter]:
    cost = CostSettings(settle_after_s=0)
    async with running_meter(tmp_path, audit_every_s=0.05, cost=cost, slo=SLO) as running:
        yield running


async def _open(meter: Meter, book: PriceBook, effective_unix_ms: int) -> pricing.OpenedPrices:
    request = pricing.OpenPricesRequest(body_json=book.model_dump_json(), effective_unix_ms=effective_unix_ms)
    return await meter.pricing.OpenPrices(request, timeout=DEADLINE_S)


async def _rerate(meter: Meter, *, dry_run: bool = False) -> pricing.Rerated:
    request = pricing.RerateRequest(from_unix_ms=START_MS - 1000, dry_run=dry_run)
    return await meter.pricing.Rerate(request, timeout=DEADLINE_S)


async def test_a_correction_reprices_by_new_entries_and_back_again(meter: Meter, tmp_path: Path) -> None:
    meter.publish(admitted("r"), tokens(entry("r", 0, 30, last=True)), finished("r", 30))
    before_nusd = FIRST.price_nusd(100, 0, 30)
    await meter.total(lambda row: row.price_nusd == before_nusd)
    opened = await _open(meter, _book(2, "1"), START_MS - 5000)
    assert not (await _rerate(meter, dry_run=True)).rerating
    assert (await meter.total(lambda row: True)).price_nusd == before_nusd, "a dry run changes nothing"
    done = await _rerate(meter)
    assert (done.looked_at, done.entries, done.tenants[0].after_nusd) == (1, 1, 130_000)
    await meter.total(lambda row: row.price_nusd == 130_000)
    bill = await meter.stub.GetRequest(metering.GetRequestRequest(request_id="r"), timeout=DEADLINE_S)
    assert (bill.price_book, bill.admitted_price_book) == (opened.label, "list@1")
    again = await _open(meter, PriceBook(version=3), START_MS - 5000)
    await _rerate(meter)
    total = await meter.total(lambda row: row.price_nusd == before_nusd)
    assert total.requests == 1
    audit = await meter.audit(lambda found: found.rounds > 1)
    assert not [*audit.standing, *audit.repaired], "the audit knows what prices a request"
    with Database(f"sqlite:///{tmp_path / 'meter.db'}").reader.connect() as connection:
        lines = connection.exec_driver_sql("SELECT price_nusd FROM entries WHERE price_nusd != 0").fetchall()
    assert len(lines) >= 3, "the old lines stay"
    assert sum(nusd for (nusd,) in lines) == before_nusd
    assert again.effective_unix_ms < again.recorded_unix_ms


async def test_a_late_event_is_priced_by_its_own_time(meter: Meter) -> None:
    await _open(meter, _book(2, "1"), START_MS + 3_600_000)
    meter.publish(tokens(entry("unnamed", 0, 30)))
    await meter.total(lambda row: row.price_nusd == FIRST.price_nusd(100, 0, 30))


async def test_a_label_keeps_its_prices_for_ever(meter: Meter) -> None:
    await _open(meter, _book(2, "1"), START_MS)
    await _open(meter, _book(2, "1"), START_MS)
    with pytest.raises(grpc.aio.AioRpcError, match="higher version"):
        await _open(meter, _book(2, "2"), START_MS)
    with pytest.raises(grpc.aio.AioRpcError, match="no price book"):
        await meter.pricing.OpenPrices(pricing.OpenPricesRequest(body_json="{"), timeout=DEADLINE_S)


async def test_books_made_again_from_the_streams_have_the_same_prices(meter: Meter, tmp_path: Path) -> None:
    meter.publish(admitted("r"), tokens(entry("r", 0, 30, last=True)), finished("r", 30))
    await meter.total(lambda row: row.finished_requests == 1)
    await _open(meter, _book(2, "1"), START_MS - 5000)
    await _rerate(meter)
    meter.publish(admitted("late"), tokens(entry("late", 0, 7, last=True)), finished("late", 7))
    await meter.total(lambda row: row.price_nusd == 130_000 + 107_000)
    bus = meter.broker.bus("meter", "rebuild")
    await bus.connect()
    made = Database(f"sqlite:///{tmp_path / 'again.db'}")
    live = Database(f"sqlite:///{tmp_path / 'meter.db'}")
    await rebuild(bus, made, PriceBook(), rate_card(load_settings()), SystemClock())
    assert differences(live, made, since_unix_ms=0) == []
    for database in (made, live):
        database.close()
    await bus.close()


async def test_a_miss_books_its_credit_by_itself(meter: Meter) -> None:
    meter.publish(
        admitted("missed"),
        tokens(entry("missed", 0, 30, last=True)),
        finished("missed", 30, slo_met=False),
        admitted("met"),
        tokens(entry("met", 0, 30, last=True)),
        finished("met", 30),
    )
    credit_nusd = FIRST.price_nusd(100, 0, 30) // 2 + 1
    total = await meter.total(lambda row: row.credit_nusd == credit_nusd)
    assert total.finished_requests == 2
    bill = await meter.stub.GetRequest(metering.GetRequestRequest(request_id="missed"), timeout=DEADLINE_S)
    assert bill.credit_nusd == credit_nusd
    assert {each.account for each in bill.postings} >= {"slo_credit", "receivable"}


async def test_the_fleets_bill_is_booked_and_comes_to_all_costs(meter: Meter) -> None:
    """An hour of a worker that worked a second of it, and one that was never used."""
    hour_ms = START_MS - START_MS % MS_PER_HOUR
    meter.publish(
        admitted("r"), tokens(entry("r", 0, 30, device_ns=10**9, energy_uj=10**8, last=True)), finished("r", 30)
    )
    bill = pricing.FleetBill()

    async def booked() -> bool:
        nonlocal bill
        for at_ms in (hour_ms, hour_ms + MS_PER_HOUR - 1):  # again, should nobody have listened yet
            meter.workers.publish(_beat(at_ms, energy_uj=10**9 * (at_ms - hour_ms) // MS_PER_HOUR))
            meter.workers.publish(_beat(at_ms, worker="h100-1"))
        bill = await meter.pricing.GetFleetBill(pricing.GetFleetBillRequest(), timeout=DEADLINE_S)
        return len(bill.workers) == 2 and all(each.settled for each in bill.workers) and bill.total.use_nusd > 0

    await eventually(booked, "the hour's bill is booked", DEADLINE_S)
    total = bill.total
    assert total.paid_ns == 2 * (MS_PER_HOUR - 1) * 1_000_000
    assert total.bill_nusd == total.use_nusd + total.energy_nusd + total.idle_nusd + sum(total.house_nusd.values())
    usage = (await meter.usage("tenant")).total
    assert usage.use_cost_nusd + usage.energy_cost_nusd + usage.idle_cost_nusd == total.bill_nusd
    assert usage.carbon_ug > 0
    request = await meter.stub.GetRequest(metering.GetRequestRequest(request_id="r"), timeout=DEADLINE_S)
    assert request.settled
    assert request.idle_cost_nusd == usage.idle_cost_nusd, "the only request bears all idle time of its pool"
    assert request.margin_nusd == usage.margin_nusd == usage.price_nusd - total.bill_nusd
    audit = await meter.audit(lambda found: found.rounds > 1)
    assert not audit.standing


async def test_tiers_are_taken_off_beside_the_price(meter: Meter) -> None:
    now_ms = SystemClock().unix_ms()
    meter.publish(
        admitted("r", at_unix_ms=now_ms),
        tokens(entry("r", 0, 3000, last=True), at_unix_ms=now_ms),
        finished("r", 3000, at_unix_ms=now_ms),
    )
    price_nusd = FIRST.price_nusd(100, 0, 3000)
    await meter.total(lambda row: row.finished_requests == 1)
    rate = Decimal(1)
    price = Price(
        input_usd_per_mtok=rate,
        cached_input_usd_per_mtok=rate,
        output_usd_per_mtok=rate,
        tiers=(Tier(from_mtok=Decimal("0.001"), output_usd_per_mtok=Decimal("0.4")),),
    )
    await _open(meter, PriceBook(version=2, prices=(price,)), now_ms - 3_600_000)
    total = await meter.total(lambda row: row.adjustment_nusd != 0)
    assert (total.price_nusd, total.adjustment_nusd) == (price_nusd, -2000 * 600)


async def test_an_hours_bill_that_somebody_changed_is_found_and_left_as_it_is(meter: Meter, tmp_path: Path) -> None:
    meter.publish(admitted("r"), tokens(entry("r", 0, 30, device_ns=10**9, last=True)), finished("r", 30))

    async def cost() -> pricing.FleetBill:
        return await meter.pricing.GetFleetBill(pricing.GetFleetBillRequest(), timeout=DEADLINE_S)

    async def booked() -> bool:
        bill = await cost()
        return bool(bill.workers) and all(each.settled for each in bill.workers)

    await eventually(booked, "the hour's bill is booked", DEADLINE_S)
    database = Database(f"sqlite:///{tmp_path / 'meter.db'}")
    with database.writer.begin() as connection:
        connection.exec_driver_sql("UPDATE postings SET amount_nusd = amount_nusd + 7 WHERE account = 'accrued'")
    database.close()
    await meter.audit(lambda found: any("comes to 7 nano-dollars" in each.what for each in found.standing))
    meter.publish(tokens(entry("other", 0, 30, device_ns=10**9), at_unix_ms=START_MS + 2 * MS_PER_HOUR))

    async def other_hours_go_on() -> bool:
        return len((await cost()).workers) == 2 and (await cost()).workers[1].settled

    await eventually(other_hours_go_on, "another hour is booked", DEADLINE_S)


async def test_re_ratings_asked_for_at_once_take_turns_under_names_of_their_own(meter: Meter) -> None:
    outcomes = await asyncio.gather(*[_rerate(meter) for _ in range(40)], return_exceptions=True)
    named = [each.rerating for each in outcomes if isinstance(each, pricing.Rerated)]
    refused = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert len(named) + len(refused) == 40
    assert len(set(named)) == len(named) >= 16
    assert {each.code() for each in refused} <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all("re-ratings run or wait" in (each.details() or "") for each in refused)
    assert (await _rerate(meter)).rerating not in named
