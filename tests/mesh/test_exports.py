"""Exports and invoices through a running meter: a bus in memory, a real SQLite file, a real gRPC server, real files."""

import asyncio
import csv
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import grpc
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from services.cli.access import Access
from services.cli.export import _write_focus
from services.cli.focus_rules import broken_rules
from services.cli.invoice import write_csv
from services.cli.invoice_pdf import write_pdf
from services.cli.main import app
from services.cli.peers import Peers
from services.cli.table_files import read_texts
from services.mesh.price_book import Price, PriceBook
from services.mesh.settings import CostSettings, SloClass, SloSettings
from tests.mesh.running_meter import DEADLINE_S, Meter, running_meter
from tests.unit.meter.facts import START_MS, admitted, entry, finished, tokens
from tokenworks.errors import CallError
from tokenworks.v1 import exports_pb2 as exports
from tokenworks.v1 import metering_pb2 as metering
from tokenworks.v1 import pricing_pb2 as pricing

pytestmark = pytest.mark.mesh

MONTH, NEXT = "2023-11", "2023-12"
NEXT_MS = START_MS + 30 * 86_400_000
SLO = SloSettings(classes={"standard": SloClass(ttft_s=2.0, tpot_s=0.1, credit_percent=Decimal(50))})


@pytest.fixture
async def meter(tmp_path: Path) -> AsyncIterator[Meter]:
    cost = CostSettings(settle_after_s=0)
    async with running_meter(tmp_path, audit_every_s=0.05, cost=cost, slo=SLO) as running:
        yield running


@pytest.fixture
async def peers(meter: Meter) -> AsyncIterator[Peers]:
    async with Peers(Access(router="", meter=meter.address, optimizer="127.0.0.1:1", nats="")) as opened:
        yield opened


async def _serve(meter: Meter, request_id: str, count: int, *, at_ms: int = START_MS, **said: str) -> None:
    meter.publish(
        admitted(request_id, at_unix_ms=at_ms, **said),
        tokens(entry(request_id, 0, count, cached_prompt_tokens=33, last=True, **said), at_unix_ms=at_ms),
        finished(request_id, count, cached_prompt_tokens=33, slo_met=count % 2 == 0, at_unix_ms=at_ms, **said),
    )


async def _traffic(meter: Meter) -> metering.UsageRow:
    """Some requests of two tenants, two workloads, a miss among them; the total as it is booked."""
    for number, (tenant, workload) in enumerate([("acme", "chat"), ("acme", ""), ("globex", "chat"), ("acme", "chat")]):
        await _serve(meter, f"r{number}", 7 + number, tenant=tenant, workload=workload)
    return await meter.total(lambda row: row.finished_requests == 4 and row.credit_nusd > 0)


async def test_a_focus_file_keeps_the_rules_and_sums_to_the_ledger(meter: Meter, peers: Peers, tmp_path: Path) -> None:
    total = await _traffic(meter)
    paths = tmp_path / "focus.csv", tmp_path / "focus.parquet"
    for path in paths:
        assert await _write_focus(peers, exports.StreamChargesRequest(), path) > 8
        assert list(broken_rules(read_texts(path))) == []
    rows, same = (list(read_texts(path)) for path in paths)
    assert rows == same
    billed = sum(Decimal(row["BilledCost"] or "") for row in rows)
    assert billed.scaleb(9) == total.price_nusd + total.adjustment_nusd - total.credit_nusd
    usage = [row for row in rows if row["ChargeCategory"] == "Usage"]
    assert {row["PricingUnit"] for row in usage} == {"Tokens"} == {row["ConsumedUnit"] for row in usage}
    by_meter = {
        name: sum(Decimal(row["ConsumedQuantity"] or 0) for row in usage if row["SkuMeter"] == name)
        for name in ("Input Tokens", "Cached Input Tokens", "Output Tokens")
    }
    cached = total.cached_prompt_tokens
    assert list(by_meter.values()) == [total.prompt_tokens - cached, cached, total.delivered_tokens]
    alone = tmp_path / "globex.csv"
    await _write_focus(peers, exports.StreamChargesRequest(tenants=["globex"]), alone)
    assert {row["BillingAccountId"] for row in read_texts(alone)} == {"globex"}


async def test_an_issued_invoice_never_changes_and_what_is_late_is_on_the_next(
    meter: Meter, peers: Peers, tmp_path: Path
) -> None:
    await _traffic(meter)
    draft = await peers.invoice("acme", MONTH)
    row = (await meter.usage(filters=[metering.UsageFilter(field="tenant", values=["acme"])])).total
    assert draft.total_nusd == row.price_nusd - row.credit_nusd == sum(each.amount_nusd for each in draft.lines)
    issued = await peers.invoice("acme", MONTH, issue=True)
    assert (issued.number, issued.lines, issued.requests) == ("TW-000001", draft.lines, 3)
    await _serve(meter, "late", 10)
    before = await meter.total(lambda row: row.finished_requests == 5)
    assert await peers.invoice("acme", MONTH) == issued == await peers.invoice("acme", MONTH, issue=True)
    book = PriceBook(
        version=2,
        prices=(
            Price(input_usd_per_mtok=Decimal(1), cached_input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(1)),
        ),
    )
    opening = pricing.OpenPricesRequest(body_json=book.model_dump_json(), effective_unix_ms=START_MS - 5000)
    await meter.pricing.OpenPrices(opening, timeout=DEADLINE_S)
    await meter.pricing.Rerate(pricing.RerateRequest(from_unix_ms=START_MS - 5000), timeout=DEADLINE_S)
    await meter.total(lambda row: row.price_nusd > before.price_nusd)
    await _serve(meter, "next", 10, at_ms=NEXT_MS)
    await meter.total(lambda row: row.finished_requests == 6 and row.credit_nusd > before.credit_nusd)
    assert await peers.invoice("acme", MONTH) == issued
    following = await peers.invoice("acme", NEXT, issue=True)
    assert following.number == "TW-000002"
    corrected = [each for each in following.lines if each.what == "correction"]
    assert [each.month for each in corrected] == [MONTH]
    assert any(each.what == "tokens" and each.tokens == 10 for each in following.lines)
    row = (await meter.usage(filters=[metering.UsageFilter(field="tenant", values=["acme"])])).total
    assert issued.total_nusd + following.total_nusd == row.price_nusd - row.credit_nusd
    assert [each.number for each in (await peers.invoices("acme")).invoices] == ["TW-000002", "TW-000001"]

    path = tmp_path / "focus.csv"
    await _write_focus(peers, exports.StreamChargesRequest(tenants=["acme"]), path)
    rows = list(read_texts(path))
    assert list(broken_rules(rows)) == []
    for invoice in (issued, following):
        billed = sum(Decimal(row["BilledCost"] or "") for row in rows if row["InvoiceId"] == invoice.number)
        assert billed * 100 == invoice.payable_cents, "an invoice's rows come to what it asks for"
    assert {row["ChargeClass"] for row in rows if row["InvoiceId"] == "TW-000002"} == {"Correction", None}


async def test_invoices_are_issued_in_order_once_their_month_is_over(meter: Meter, peers: Peers) -> None:
    await _serve(meter, "r", 10)
    await _serve(meter, "s", 10, at_ms=NEXT_MS)
    await meter.total(lambda row: row.finished_requests == 2)
    for tenant, month, why in (
        ("acme", NEXT, "comes first"),
        ("acme", "2999-01", "not over"),
        ("acme", "2023-13", "write it like"),
        ("acme", "23-1", "write it like"),
        ("nobody", MONTH, "charged with nothing"),
        ("", MONTH, "characters"),
    ):
        with pytest.raises(CallError, match=why):
            await peers.invoice(tenant, month, issue=True)
    assert not (await peers.invoices("")).invoices
    await peers.invoice("acme", NEXT)
    await peers.invoice("acme", MONTH, issue=True)
    assert (await peers.invoice("acme", NEXT, issue=True)).number == "TW-000002"
    with pytest.raises(CallError, match="already"):
        await peers.invoice("acme", "2023-10", issue=True)


async def test_an_invoice_as_pdf_is_the_same_bytes_each_time(meter: Meter, peers: Peers, tmp_path: Path) -> None:
    await _traffic(meter)
    issued = await peers.invoice("acme", MONTH, issue=True)
    for name in ("a.pdf", "b.pdf"):
        write_pdf(issued, tmp_path / name)
    made = (tmp_path / "a.pdf").read_bytes()
    assert made.startswith(b"%PDF-")
    assert made == (tmp_path / "b.pdf").read_bytes()
    write_csv(issued, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    amounts = [Decimal(row["amount_usd"]).scaleb(9) for row in rows]
    assert sum(amounts[:-2]) == amounts[-2] == issued.total_nusd
    assert rows[-1]["line"] == "payable"


async def test_usage_and_bookings_sum_to_the_ledger_in_any_time(meter: Meter, peers: Peers, tmp_path: Path) -> None:
    await _serve(meter, "r", 10)
    await _serve(meter, "s", 20, at_ms=START_MS + 3_600_000, tenant="globex")
    total = await meter.total(lambda row: row.finished_requests == 2)
    batches = [batch async for batch in peers.usage_records(exports.StreamRequest())]
    records = [record for batch in batches for record in batch.records]
    assert sum(each.amounts.price_nusd for each in records) == total.price_nusd
    lines = [each async for batch in peers.bookings(exports.StreamRequest()) for each in batch.bookings]
    assert sum(each.record.amounts.delivered_tokens for each in lines) == total.delivered_tokens
    assert [each.line for each in lines] == sorted({each.line for each in lines})
    assert {each.request_id for each in lines} == {"r", "s"}
    hour = exports.StreamRequest(from_unix_ms=START_MS + 3_600_000, tenants=["globex"])
    for stream in (peers.bookings(hour), peers.usage_records(hour)):
        tenants = {
            (each.record if isinstance(each, exports.Booking) else each).tenant
            async for batch in stream
            for each in (batch.bookings if isinstance(batch, exports.BookingBatch) else batch.records)
        }
        assert tenants == {"globex"}
    none = exports.StreamRequest(from_unix_ms=START_MS + 86_400_000)
    assert [batch async for batch in peers.usage_records(none)] == []


async def test_the_commands_write_what_they_say(meter: Meter, tmp_path: Path) -> None:
    await _traffic(meter)

    async def run(*arguments: str | Path, fails: bool = False) -> str:
        words = [*map(str, arguments), *([] if "check" in arguments else ["--meter", meter.address])]
        done = await asyncio.to_thread(CliRunner().invoke, app, words)
        assert done.exit_code == int(fails), done.output
        return done.output

    focus, usage, bookings = tmp_path / "focus.csv", tmp_path / "usage.parquet", tmp_path / "lines.csv"
    assert json.loads(await run("export", "focus", "--out", focus, "--json"))["broken"] == 0
    assert "keeps the" in await run("export", "check", focus)
    assert "rows are in" in await run("export", "usage", "--from", "2023-11-01", "--out", usage)
    assert "rows are in" in await run("export", "bookings", "--tenant", "acme", "--out", bookings)
    assert {row["tenant"] for row in read_texts(usage)} == {"acme", "globex"}
    assert {row["tenant"] for row in read_texts(bookings)} == {"acme"}
    files = tmp_path / "i.pdf", tmp_path / "i.csv"
    shown = await run("invoice", "acme", "--month", MONTH, "--issue", "--pdf", files[0], "--csv", files[1])
    assert "TW-000001" in shown
    assert all(each.exists() for each in files)
    assert "TW-000001" in await run("invoice")
    assert "not a month" in await run("invoice", "acme", "--month", "November", fails=True)
    broken = tmp_path / "broken.csv"
    broken.write_text(focus.read_text(encoding="utf-8").replace("Usage-Based", "Daily"), encoding="utf-8")
    assert "ChargeFrequency MUST" in (await run("export", "check", broken, fails=True)).replace("\n", " ")


async def test_an_export_that_cannot_be_is_refused_in_words(meter: Meter, peers: Peers) -> None:
    for request, why in (
        (exports.StreamRequest(from_unix_ms=-1), "negative"),
        (exports.StreamRequest(from_unix_ms=2, to_unix_ms=1), "exchange"),
        (exports.StreamRequest(tenants=["t"] * 1001), "at most"),
    ):
        with pytest.raises(CallError, match=why):
            [batch async for batch in peers.usage_records(request)]


async def test_exports_are_for_who_knows_the_secret(tmp_path: Path) -> None:
    async with (
        running_meter(tmp_path, secret="s" * 16) as meter,
        Peers(Access(router="", meter=meter.address, optimizer="127.0.0.1:1", nats="")) as strangers,
    ):
        with pytest.raises(CallError) as refused:
            await strangers.invoices("")
        assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(CallError):
            [batch async for batch in strangers.charges(exports.StreamChargesRequest())]


async def test_a_parquet_file_says_what_it_is(meter: Meter, peers: Peers, tmp_path: Path) -> None:
    await _traffic(meter)
    path = tmp_path / "focus.parquet"
    await _write_focus(peers, exports.StreamChargesRequest(), path)
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
    assert schema.metadata[b"FocusVersion"] == b"1.3"
    assert str(schema.field("BilledCost").type) == "decimal128(38, 15)"
    assert str(schema.field("ChargePeriodStart").type) == "timestamp[ms, tz=UTC]"
