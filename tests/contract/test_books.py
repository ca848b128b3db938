"""The books are the same whatever database keeps them: SQLite, or a PostgreSQL server of the test's own."""

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from services.mesh.errors import InvariantBroken
from services.mesh.events import Event
from services.mesh.price_book import PriceBook
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.charges import Bounds
from services.meter.core.invoices import invoice_of
from services.meter.core.usage import DIMENSIONS, grouping
from services.meter.store import schema
from services.meter.store.audit import Audits
from services.meter.store.bulk import upsert
from services.meter.store.charges import ChargeReader
from services.meter.store.compare import differences
from services.meter.store.database import Database
from services.meter.store.exports import ExportReader, put_told
from services.meter.store.invoices import InvoiceReader, issue
from services.meter.store.questions import Questions
from tests.contract.conftest import NewUrl
from tests.mesh.running_meter import running_meter
from tests.postgres import new_database, restart
from tests.unit.meter.facts import START_MS, admitted, entry, finished, lives, tokens
from tests.unit.meter.test_bookkeeper import CARD, RATES, _delivered, _total

BOOK = PriceBook()


@pytest.fixture
def database(new_url: NewUrl) -> Iterator[Database]:
    opened = Database(new_url())
    yield opened
    opened.close()


def _keeper(database: Database, writer: str = "meter-0:1") -> Bookkeeper:
    return Bookkeeper(database, writer, BOOK, CARD, START_MS)


def test_a_batch_is_billed_once_whatever_comes_again(database: Database) -> None:
    batch = _delivered(admitted("r"), tokens(entry("r", 0, 10, last=True)), finished("r", 8))
    assert _keeper(database).book(batch, START_MS).fresh == 3
    for writer in ("meter-0:2", "meter-0:3"):
        assert _keeper(database, writer).book(batch, START_MS).duplicates == 3
    total = _total(Questions(database))
    assert (total.generated_tokens, total.delivered_tokens) == (10, 8)
    assert total.price_nusd == RATES.price_nusd(100, 0, 8)


def test_a_meter_whose_books_were_taken_over_books_no_more(database: Database) -> None:
    old, new = _keeper(database), _keeper(database, "meter-0:2")
    batch = _delivered(tokens(entry("r", 0, 5)))
    with pytest.raises(InvariantBroken, match="taken over by meter-0:2"):
        old.book(batch, START_MS)
    assert new.book(batch, START_MS).fresh == 1


def test_a_transaction_that_fails_leaves_no_trace(database: Database) -> None:
    keeper = _keeper(database)
    keeper.book(_delivered(tokens(entry("r", 0, 5))), START_MS)
    batch = _delivered(tokens(entry("r", 5, 5)), tokens(entry("s", 0, 7)), first=2)
    with database.writer.begin() as connection:
        connection.execute(text("ALTER TABLE usage RENAME TO elsewhere"))
    with pytest.raises(DBAPIError):
        keeper.book(batch, START_MS)
    with database.writer.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO usage"))
    assert _total(Questions(database)).delivered_tokens == 5
    assert keeper.book(batch, START_MS).fresh == 2
    assert _total(Questions(database)).delivered_tokens == 17


def test_who_reads_cannot_write(database: Database) -> None:
    with pytest.raises(DBAPIError), database.reader.begin() as connection:
        connection.execute(schema.state.update().values(writer="nobody"))


def test_sums_are_whole_numbers(database: Database) -> None:
    _keeper(database).book(_delivered(tokens(entry("r", 0, 5)), tokens(entry("s", 0, 5))), START_MS)
    ((_, total),) = Questions(database).usage(grouping([], []), None, None, 10)
    assert {type(each) for each in total} == {int}
    assert Audits(database) is not None


def test_rows_come_back_as_they_were_written(database: Database) -> None:
    texts = ['"', "\\", "a,b", "{}", "NULL", "", "é\n\t", "','", "%s"]
    write = upsert(database.writer.dialect, schema.tenants)
    rows = [(each, number, None if number % 2 else 2**62, -number) for number, each in enumerate(texts)]
    with database.writer.begin() as connection:
        write.write(connection, rows)
        assert {tuple(row) for row in connection.execute(select(schema.tenants))} == set(rows)


def test_rows_of_one_key_in_one_write_add_up(database: Database) -> None:
    write = upsert(database.writer.dialect, schema.tenants, added=("spent_nusd",))
    with database.writer.begin() as connection:
        write.write(connection, [("a", 1, None, 1), ("b", 10, None, 1), ("a", 2, None, 2), ("a", 3, 7, 3)])
        found = {tuple(row) for row in connection.execute(select(schema.tenants))}
    assert found == {("a", 6, 7, 3), ("b", 10, None, 1)}


def test_any_events_make_the_same_books_in_both(postgres: str, tmp_path: Path) -> None:
    numbers = count(1)

    @given(events=lives(), batch=st.integers(1, 9))
    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def same(events: list[Event], batch: int) -> None:
        number = next(numbers)
        opened = [
            Database(f"sqlite:///{tmp_path}/{number}.db"),
            Database(new_database(postgres, f"same{number}")),
        ]
        try:
            messages = _delivered(*events)
            for each in opened:
                keeper = _keeper(each)
                for at in range(0, len(messages), batch):
                    keeper.book(messages[at : at + batch], START_MS)
                    keeper.book(messages[at : at + 2], START_MS)
            assert differences(*opened, since_unix_ms=0) == []
            assert differences(*reversed(opened), since_unix_ms=0) == []
            for names in ([], ["tenant"], list(DIMENSIONS), ["hour", "worker"]):
                asked = grouping(names, [])
                ours, theirs = (Questions(each).usage(asked, None, None, 1000) for each in opened)
                assert sorted(ours) == sorted(theirs)
        finally:
            for each in opened:
                each.close()

    same()


async def test_a_meter_goes_on_when_its_server_was_away(postgres: str, tmp_path: Path) -> None:
    url = await asyncio.to_thread(new_database, postgres, "live")
    async with running_meter(tmp_path, database_url=url) as meter:
        meter.publish(admitted("r-1"), tokens(entry("r-1", 0, 10)))
        await meter.total(lambda row: row.delivered_tokens == 10)
        await asyncio.to_thread(restart, postgres)
        meter.publish(tokens(entry("r-1", 10, 5, last=True)), finished("r-1", 15))
        total = await meter.total(lambda row: row.finished_requests == 1 and row.generated_tokens == 15)
        assert total.delivered_tokens == 15
        assert (await meter.audit(lambda answer: answer.rounds > 0)).standing == []
    opened = Database(url)
    with opened.reader.begin() as connection:
        assert connection.execute(select(schema.requests.c.outcome)).scalar_one() == "length"
    opened.close()


def test_charges_and_lines_are_read_alike(database: Database) -> None:
    keeper = _keeper(database)
    batch: list[Event] = []
    for request_id in ("r0", "r1", "r2", "r3"):
        batch += [admitted(request_id), tokens(entry(request_id, 0, 9, last=True)), finished(request_id, 9)]
    keeper.book(_delivered(*batch), START_MS)
    reader, minute = ChargeReader(database), START_MS // 60_000
    bounds = reader.bounds()
    (after, through), *_ = reader.line_ranges(minute, minute + 1, bounds.line)
    found = reader.lines((after, through), minute, minute + 1, ("acme",), [1, START_MS, START_MS + 1])
    assert [(each.tenant, each.era, each.requests, each.tokens) for each in found] == [("acme", 2, 4, (400, 0, 36))]
    assert sum(each.price_nusd for each in found) == _total(Questions(database)).price_nusd
    assert reader.posted(0, bounds.posting + 1, 0, minute + 1, ("acme",)) == []
    assert reader.next_day(0) == minute // 1440 * 1440
    assert reader.next_day(minute + 1) is None
    exports = ExportReader(database)
    lines = exports.lines(0, bounds.line, limit=100, tenants=("acme",))
    assert [each.line for each in lines] == sorted(each.line for each in lines)
    assert sum(each.amounts.delivered_tokens for each in lines) == 36
    ((key, amounts),) = exports.usage(None, minute, minute + 1, (), limit=1)
    assert amounts.delivered_tokens == 36
    assert exports.usage(key, minute, minute + 1, (), limit=1) == []
    for line in (1, 2):
        keeper.within(lambda transaction, line=line: put_told(transaction, "there", "books", line))
        assert exports.told("there") == ("books", line)


def test_invoices_are_numbered_without_gaps_and_kept(database: Database) -> None:
    keeper, reader = _keeper(database), InvoiceReader(database)
    for number, tenant in enumerate(("acme", "globex"), 1):
        draft = invoice_of([], tenant=tenant, from_minute=0, to_minute=44_640, issuer="us", issuer_address="")
        keeper.within(lambda transaction, draft=draft: issue(transaction, draft, Bounds(5, 6), "X-", START_MS))
        found = reader.find(tenant, 0)
        assert found == draft._replace(number=f"X-00000{number}", issued_unix_ms=START_MS)
    assert [each.number for each in reader.all("", 10)] == ["X-000002", "X-000001"]
    assert [each.cuts for each in reader.issued(("acme",))] == [Bounds(5, 6)]
    with pytest.raises(IntegrityError):
        keeper.within(lambda transaction: issue(transaction, draft, Bounds(5, 6), "X-", START_MS))
