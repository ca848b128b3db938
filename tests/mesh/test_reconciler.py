"""The audit of a running meter: what is tampered with, lost, or put back from a backup is found and repaired."""

import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from services.cli.books_checks import checks_of
from services.cli.checks import Severity
from services.mesh.bus import BatchHandler, Bus
from services.mesh.clock import SystemClock
from services.mesh.errors import BusUnavailable
from services.mesh.events import DriftFound, WorkerHeartbeat
from services.mesh.memory_bus import MemoryBroker
from services.mesh.price_book import PriceBook
from services.mesh.settings import load_settings
from services.mesh.subjects import AUDIT, TOKENS, Channel
from services.meter.core.amounts import Amounts
from services.meter.rates import rate_card
from services.meter.rebuild import rebuild
from services.meter.store.compare import differences
from services.meter.store.database import Database
from tests.contract.bus_worlds import heartbeat
from tests.mesh.running_meter import Meter, running_meter
from tests.unit.meter.facts import admitted, entry, finished, tokens
from tokenworks.v1 import metering_pb2 as metering

SOON = {"audit_every_s": 0.02, "audit_patience_s": 0.2}


def _change(folder: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(folder / "meter.db", timeout=5.0)) as other, other:
        assert other.execute(statement, values).rowcount > 0


def _repaired(kind: str) -> Callable[[metering.AuditResponse], bool]:
    return lambda answer: any(each.kind == kind for each in answer.repaired)


def _same(row: metering.UsageRow, before: metering.UsageRow) -> bool:
    """Equal, whether or not the fleet's bill was made meanwhile: it moves costs of waste from requests to the house."""

    def told(of: metering.UsageRow) -> list[int]:
        costs_nusd = of.use_cost_nusd + of.energy_cost_nusd + of.idle_cost_nusd + of.house_cost_nusd
        return [costs_nusd, *(getattr(of, name) for name in Amounts._fields if "cost" not in name)]

    return told(row) == told(before)


async def _booked(meter: Meter) -> metering.UsageRow:
    """Two requests that ended, of 40 and of 25 delivered tokens, 10 wasted."""
    meter.publish(
        admitted("r"), tokens(entry("r", 0, 50, last=True)), finished("r", 40),
        admitted("s"), tokens(entry("s", 0, 25, last=True)), finished("s", 25),
    )  # fmt: skip
    return await meter.total(lambda row: row.finished_requests == 2 and row.generated_tokens == 75)


async def _equal_to_the_streams(meter: Meter, folder: Path) -> None:
    """The books are those that the streams alone make."""
    bus = meter.broker.bus("meter", "rebuild")
    await bus.connect()
    live, rebuilt = Database(f"sqlite:///{folder / 'meter.db'}"), Database(f"sqlite:///{folder / 'rebuilt.db'}")
    try:
        await rebuild(bus, rebuilt, PriceBook(), rate_card(load_settings()), SystemClock())
        assert differences(live, rebuilt, since_unix_ms=0) == []
    finally:
        live.close()
        rebuilt.close()
        await bus.close()


async def test_books_that_agree_are_looked_through_again_and_again(tmp_path: Path) -> None:
    async with running_meter(tmp_path, **SOON) as meter:
        await _booked(meter)
        answer = await meter.audit(lambda answer: answer.rounds >= 3 and answer.delivered_tokens == 65)
        assert answer.generated_tokens == 75
        assert (list(answer.standing), list(answer.repaired), answer.missing_events) == ([], [], 0)


async def test_a_row_of_what_is_booked_that_somebody_changed_is_made_again_from_the_streams(tmp_path: Path) -> None:
    async with running_meter(tmp_path, **SOON) as meter:
        before = await _booked(meter)
        _change(tmp_path, "UPDATE segments SET delivered_tokens = 4, price_nusd = 1 WHERE request_id = 'r'")
        answer = await meter.audit(_repaired("lines"))
        assert {each.subject for each in answer.repaired} == {"r"}
        assert await meter.total(lambda row: _same(row, before))
        await _equal_to_the_streams(meter, tmp_path)


async def test_a_line_of_the_ledger_that_somebody_changed_is_put_right_by_another_line(tmp_path: Path) -> None:
    async with running_meter(tmp_path, **SOON) as meter:
        before = await _booked(meter)
        with closing(sqlite3.connect(tmp_path / "meter.db")) as other:
            lines = other.execute("SELECT id FROM entries").fetchall()
        _change(
            tmp_path, "UPDATE entries SET price_nusd = price_nusd - 1000 WHERE request_id = 's' AND price_nusd > 1000"
        )
        await meter.audit(_repaired("lines"))
        assert await meter.total(lambda row: _same(row, before))
        with closing(sqlite3.connect(tmp_path / "meter.db")) as other:
            assert len(other.execute("SELECT id FROM entries").fetchall()) == len(lines) + 1
        await _equal_to_the_streams(meter, tmp_path)


async def test_what_a_deliverer_said_that_somebody_changed_is_read_again(tmp_path: Path) -> None:
    async with running_meter(tmp_path, **SOON) as meter:
        before = await _booked(meter)
        _change(tmp_path, "UPDATE requests SET delivered = '0-3' WHERE request_id = 'r'")
        await meter.audit(_repaired("billed"))
        assert await meter.total(lambda row: _same(row, before))
        await _equal_to_the_streams(meter, tmp_path)


async def test_usage_and_spending_that_somebody_changed_are_added_up_again(tmp_path: Path) -> None:
    async with running_meter(tmp_path, **SOON) as meter:
        before = await _booked(meter)
        _change(tmp_path, "UPDATE usage SET delivered_tokens = delivered_tokens + 7")
        _change(tmp_path, "UPDATE tenants SET spent_nusd = 1")
        answer = await meter.audit(lambda answer: {"usage", "spent"} <= {each.kind for each in answer.repaired})
        assert {each.tenant for each in answer.repaired} == {"acme"}
        assert await meter.total(lambda row: _same(row, before))
        budget = await meter.stub.GetBudget(metering.GetBudgetRequest(tenant="acme"))
        assert budget.spent_nusd == before.price_nusd


async def test_an_event_that_its_stream_lost_is_had_again_from_its_publisher(tmp_path: Path) -> None:
    broker = MemoryBroker()
    worker = broker.bus("worker", "h100-1")
    lost = [worker.publish(tokens(entry("r", start, 10, last=start == 40))) for start in range(0, 50, 10)][2]
    broker.lose("TW_TOKENS", str(lost))
    async with running_meter(tmp_path, broker=broker, **SOON) as meter:
        meter.publish(admitted("r"), finished("r", 50))
        total = await meter.total(lambda row: row.generated_tokens == 50)
        assert total.delivered_tokens == 50
        answer = await meter.audit(lambda answer: answer.missing_events == 0 and answer.rounds >= 2)
        assert (list(answer.standing), answer.lost_events) == ([], 0)
    await worker.close()


async def test_what_cannot_be_had_again_is_reported_and_its_tokens_are_booked_on_the_deliverers_word(
    tmp_path: Path,
) -> None:
    broker = MemoryBroker()
    worker = broker.bus("worker", "gone-0")
    lost = [worker.publish(tokens(entry("r", start, 10, last=start == 40))) for start in range(0, 50, 10)][2]
    broker.lose("TW_TOKENS", str(lost))
    await worker.close()
    told: list[DriftFound] = []
    async with running_meter(tmp_path, broker=broker, **SOON) as meter:
        meter.publish(admitted("r"), finished("r", 50))
        total = await meter.total(lambda row: row.finished_requests == 1)
        assert (total.delivered_tokens, total.generated_tokens) == (50, 40)
        answer = await meter.audit(lambda answer: any(each.kind == "lost" for each in answer.standing))
        [drift] = answer.standing
        assert (drift.subject, drift.expected) == ("worker.gone-0.tokens", 1)
        assert "does not answer" in drift.what

        async def hear(messages: Any) -> None:
            told.extend(message.event for message in messages)

        await meter.audit(_repaired("unreported"))
        total = await meter.total(lambda row: row.generated_tokens == 50)
        assert total.delivered_tokens == 50
        await meter.routers.replay([AUDIT], hear)
        assert [(each.kind, each.repaired) for each in told] == [("lost", False), ("unreported", True)]
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{meter.http_port}/metrics") as page,
        ):
            metrics = await page.text()
        drift_of = dict(re.findall(r'tokenworks_meter_drift\{[^}]*kind="(\w+)"[^}]*\} (\S+)', metrics))
        assert (float(drift_of["lost"]), float(drift_of["unreported"])) == (1, 0), "what stands, and what was repaired"
        shown = [each for each in checks_of(answer) if each.severity is Severity.WRONG]
        assert ["worker.gone-0.tokens" in each.found for each in shown] == [True], "the doctor names it"
        await _equal_to_the_streams(meter, tmp_path)


class _LongStreams:
    """A bus whose streams of tokens nobody reads to their end."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def replay(self, channels: Sequence[Channel], handler: BatchHandler, **rest: Any) -> int:
        if TOKENS in channels:
            raise BusUnavailable("it takes too long")
        return await self._bus.replay(channels, handler, **rest)


async def test_what_a_worker_died_too_early_to_report_is_booked_however_long_the_streams_are(tmp_path: Path) -> None:
    async with running_meter(tmp_path, through=_LongStreams, **SOON) as meter:
        meter.publish(admitted("r"), tokens(entry("r", 0, 40)), finished("r", 50))
        await meter.audit(_repaired("unreported"))
        total = await meter.total(lambda row: row.generated_tokens == 50)
        assert total.delivered_tokens == 50
        await _equal_to_the_streams(meter, tmp_path)


async def test_a_database_put_back_from_a_backup_reads_what_it_lacks_from_the_streams(tmp_path: Path) -> None:
    broker = MemoryBroker()
    path = tmp_path / "meter.db"
    async with running_meter(tmp_path, broker=broker) as meter:
        meter.publish(admitted("r"), tokens(entry("r", 0, 20)))
        await meter.total(lambda row: row.generated_tokens == 20)
        await meter.stub.SetBudget(metering.SetBudgetRequest(tenant="acme", limit_nusd=10**9))
    backup = path.read_bytes()
    async with running_meter(tmp_path, broker=broker) as meter:
        meter.publish(tokens(entry("r", 20, 30, last=True)), finished("r", 45))
        meter.publish(admitted("s"), tokens(entry("s", 0, 5, last=True)), finished("s", 5))
        before = await meter.total(lambda row: row.finished_requests == 2 and row.generated_tokens == 55)
        await meter.stub.SetBudget(metering.SetBudgetRequest(tenant="acme", limit_nusd=2 * 10**9))
        await meter.credit_is(lambda credit: credit.limit_nusd == 2 * 10**9)
    path.write_bytes(backup)
    for side in ("meter.db-wal", "meter.db-shm"):
        (tmp_path / side).unlink(missing_ok=True)
    async with running_meter(tmp_path, broker=broker, **SOON) as meter:
        assert await meter.total(lambda row: _same(row, before))
        answer = await meter.audit(_repaired("behind"))
        assert {each.subject for each in answer.repaired} == {"meter-tokens", "meter-requests"}
        budget = await meter.stub.GetBudget(metering.GetBudgetRequest(tenant="acme"))
        assert (budget.limit_nusd, budget.spent_nusd) == (2 * 10**9, before.price_nusd)
        await _equal_to_the_streams(meter, tmp_path)


async def test_a_lost_database_is_made_again_with_its_budgets(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running_meter(tmp_path / "first", broker=broker) as meter:
        before = await _booked(meter)
        await meter.stub.SetBudget(metering.SetBudgetRequest(tenant="acme", limit_nusd=5))
        await meter.credit_is(lambda credit: credit.limit_nusd == 5)
    async with running_meter(tmp_path / "second", broker=broker) as meter:
        assert await meter.total(lambda row: _same(row, before))
        budget = await meter.stub.GetBudget(metering.GetBudgetRequest(tenant="acme"))
        assert (budget.limit_nusd, budget.exhausted) == (5, True)


async def test_a_request_whose_router_died_stays_billed_by_its_workers_word_until_somebody_goes_on_with_it(
    tmp_path: Path,
) -> None:
    async with running_meter(tmp_path, **SOON) as meter:
        meter.publish(admitted("r"), tokens(entry("r", 0, 30, last=True)))
        answer = await meter.audit(lambda answer: [each.kind for each in answer.standing] == ["unfinished"])
        assert answer.standing[0].subject == "r"
        total = await meter.total(lambda row: row.generated_tokens == 30)
        assert (total.delivered_tokens, total.finished_requests) == (30, 0)
        meter.publish(tokens(entry("r", 20, 20, last=True), worker="h100-1"), finished("r", 40, worker="h100-1"))
        total = await meter.total(lambda row: row.finished_requests == 1)
        assert total.delivered_tokens == 40
        await meter.audit(lambda answer: not answer.standing)


async def test_a_request_whose_end_all_that_knew_it_died_with_is_ended_with_what_is_known_of_it(tmp_path: Path) -> None:
    async with running_meter(tmp_path, **SOON, end_after_s=0.2) as meter:
        meter.publish(
            admitted("r"), tokens(entry("r", 0, 30, last=True)),
            admitted("s"), tokens(entry("s", 0, 30)), tokens(entry("s", 20, 15), worker="h100-1"),
            admitted("u"), tokens(entry("u", 0, 25, last=True)), finished("u", 25),
        )  # fmt: skip
        answer = await meter.audit(lambda answer: {"r", "s"} <= {each.subject for each in answer.repaired})
        assert {each.kind for each in answer.repaired} == {"unfinished"}
        # Nobody says what of "r" arrived; somebody went on with "s" from its 20th token.
        total = await meter.total(lambda row: row.finished_requests == 3)
        assert (total.generated_tokens, total.delivered_tokens) == (30 + 45 + 25, 0 + 20 + 25)
        await meter.audit(lambda answer: not answer.standing)
        await _equal_to_the_streams(meter, tmp_path)

        meter.publish(finished("r", 30), finished("s", 35))  # from an outbox that nobody hoped for any more
        total = await meter.total(lambda row: row.delivered_tokens == 30 + 35 + 25)
        assert (total.generated_tokens, total.finished_requests) == (100, 3)


async def test_a_request_that_is_heard_of_is_not_ended(tmp_path: Path) -> None:
    async with running_meter(tmp_path, **SOON, end_after_s=3600.0) as meter:
        meter.publish(admitted("r"), tokens(entry("r", 0, 30)))
        await meter.audit(lambda answer: [each.kind for each in answer.standing] == ["unfinished"])
        rounds = (await meter.audit(lambda _: True)).rounds
        answer = await meter.audit(lambda answer: answer.rounds >= rounds + 3)
        assert [each.kind for each in answer.standing] == ["unfinished"]
        assert (await meter.total(lambda row: row.generated_tokens == 30)).delivered_tokens == 30


async def test_what_a_worker_counted_and_reported_in_no_event_is_found(tmp_path: Path) -> None:
    async with running_meter(tmp_path, **SOON) as meter:
        meter.publish(admitted("r"), tokens(entry("r", 0, 30, last=True)), finished("r", 30))

        def found(answer: metering.AuditResponse) -> bool:
            meter.workers.publish(_counting(34))  # heartbeats may be lost
            return bool(answer.standing)

        answer = await meter.audit(found)
        [drift] = answer.standing
        assert (drift.kind, drift.expected, drift.found) == ("worker", 34, 30)
        meter.publish(tokens(entry("r", 30, 4, last=True)))
        await meter.audit(lambda answer: not answer.standing)


def _counting(generated_tokens: int) -> WorkerHeartbeat:
    return replace(heartbeat("worker-0", 1), generated_tokens=generated_tokens)
