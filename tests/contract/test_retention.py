"""Detail that is kept no longer is dropped, and every sum stays what it was, to the nano-dollar."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import Table, func, select, update

from services.mesh.bus import Delivered, EventId
from services.mesh.clock import FakeClock
from services.mesh.errors import InvalidRequest
from services.mesh.price_book import PriceBook
from services.mesh.settings import CloudEventsSettings, MeterSettings, Settings
from services.mesh.subjects import subject_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.charging import Charging
from services.meter.core.charges import Bounds
from services.meter.core.conservation import check_sums
from services.meter.core.invoices import Invoice
from services.meter.core.journal import Account, Posting, Subject, Value
from services.meter.core.usage import DIMENSIONS, Grouping, grouping
from services.meter.retainer import Retainer
from services.meter.store import schema
from services.meter.store.audit import Audits, Summing, Sums
from services.meter.store.bill import BillReader, BillWriter
from services.meter.store.bill_tables import postings
from services.meter.store.books import Transaction
from services.meter.store.callers import CallerReader
from services.meter.store.charges import ChargeReader
from services.meter.store.database import Database
from services.meter.store.dropping import DetailDropper
from services.meter.store.exports import put_told
from services.meter.store.invoices import InvoiceReader, issue
from services.meter.store.questions import Questions
from services.meter.store.rolling import HourRoller
from services.meter.store.shards import shards
from services.meter.thread import WorkThreads
from tests.contract.conftest import NewUrl
from tests.unit.meter.facts import MINUTE_MS, START_MS, admitted, entry, finished, tokens
from tests.unit.meter.test_callers import CARD, FIRST, HOUR_MS, Books

DAY_MS = 24 * HOUR_MS
MIDNIGHT = FIRST // 24 + 1  # the first midnight after the first hour, in days since 1970


@pytest.fixture
def database(new_url: NewUrl) -> Iterator[Database]:
    opened = Database(new_url())
    yield opened
    opened.close()


@pytest.fixture
def books(database: Database) -> Books:
    return Books(
        Bookkeeper(database, "meter-0:1", PriceBook(), CARD, START_MS),
        CallerReader(database),
        Questions(database),
        BillReader(database),
        BillWriter(database),
        HourRoller(database),
    )


def _live(books: Books, name: str, hour: int, last_hour: int | None = None) -> None:
    """A request from admission to its end; its ten tokens are made at its beginning and at its end."""
    start_ms = (FIRST + hour) * HOUR_MS + 30 * MINUTE_MS
    end_ms = start_ms if last_hour is None else (FIRST + last_hour) * HOUR_MS
    books.book(replace(admitted(name, at_unix_ms=start_ms), team="search", key="ci", session_id="s-1"))
    books.book(tokens(entry(name, 0, 5), at_unix_ms=start_ms))
    books.book(tokens(entry(name, 5, 5, last=True), at_unix_ms=end_ms), finished(name, 10, at_unix_ms=end_ms))


def _bill(books: Books, hour: int, *names: str) -> None:
    """One transaction in which the house owes for an idle part of each of some requests."""
    some = [
        Posting(Account.IDLE, Subject(request_id=name, tenant="acme", model="llama-3.1-8b"), Value(1000 + number, 5))
        for number, name in enumerate(names)
    ]
    some.append(Posting(Account.FLEET, Subject(), Value(-sum(each.value.amount_nusd for each in some))))
    post = partial(books.writer.post, kind="bill", hour=FIRST + hour, now_unix_ms=START_MS)
    books.keeper.within(lambda transaction: post(transaction, transactions={f"t{hour}": some}))


def _close(books: Books) -> None:
    books.settle()
    books.roll()
    while books.keeper.roll_up(FIRST + 24 * 365):
        pass


def _let_go(books: Books, database: Database, *, now_ms: int, told_url: str = "") -> int:
    """One pass of a meter that keeps 15 days."""
    settings = Settings(meter=MeterSettings(keep_detail_days=15), cloudevents=CloudEventsSettings(url=told_url))

    async def run() -> int:
        reading, writing = WorkThreads("r", threads=1, max_waiting=4), WorkThreads("w", threads=1, max_waiting=4)
        clock = FakeClock(unix_ms=now_ms)
        try:
            return await Retainer(
                settings, database, books.keeper, reading=reading, writing=writing, clock=clock
            ).let_go()
        finally:
            await reading.stop()
            await writing.stop()

    return asyncio.run(run())


def _authors(database: Database) -> list[str]:
    with database.reader.connect() as connection:
        return list(connection.execute(select(shards.c.author)).scalars())


def _rows(database: Database, table: Table) -> int:
    with database.reader.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _audited(database: Database, lines_a_pass: int = 10_000) -> dict[str, Sums]:
    summing = Summing()
    while (found := Audits(database).add_up(summing, lines_a_pass)) is None:
        pass
    return found


def _answers(books: Books) -> list[object]:
    asked = [Grouping(), Grouping(("minute", *DIMENSIONS)), Grouping(("hour", "tenant"))]
    by_caller = [grouping(names, []) for names in (("team",), ("key", "hour"), ("session", "day"), ())]
    return [
        *(books.questions.usage(each, None, None, 10_000) for each in asked),
        *(books.callers.usage(each, None, None, 10_000) for each in by_caller),
        *(sorted(books.callers.postings(each, None, None)) for each in by_caller),
        books.questions.spent_nusd("acme"),
        books.bills.unbalanced(0, FIRST * 2),
        [books.bills.accrued(FIRST + hour) for hour in range(48)],
    ]


def test_what_is_dropped_stays_in_every_sum(books: Books, database: Database) -> None:
    for hour in (0, 1, 3, 26, 27):
        _live(books, f"r-{hour}", hour)
        _live(books, f"again-{hour}", hour)
        _bill(books, hour, f"r-{hour}", f"again-{hour}")
    _close(books)
    before, sums = _answers(books), _audited(database)
    lines = _rows(database, schema.entries)
    now_ms = (MIDNIGHT + 15) * DAY_MS + HOUR_MS  # hours 0 and 1 are older than 15 days
    assert _let_go(books, database, now_ms=now_ms) == 4
    assert _rows(database, schema.requests) == 6
    assert _rows(database, schema.segments) == 6
    assert _rows(database, schema.entries) < lines
    assert _rows(database, postings) == 5 * 3 - 2
    assert _answers(books) == before
    assert _audited(database) == sums
    assert _let_go(books, database, now_ms=now_ms) == 0
    assert _let_go(books, database, now_ms=now_ms + DAY_MS) == 2
    assert _answers(books) == before
    assert _audited(database, lines_a_pass=1) == sums
    gone = books.keeper.dropped()
    assert (gone.amounts.requests, gone.amounts.delivered_tokens) == (6, 60)


def test_adding_up_again_goes_by_what_is_left(books: Books, database: Database) -> None:
    for hour in (0, 3):
        _live(books, f"r-{hour}", hour)
    _close(books)
    _let_go(books, database, now_ms=(MIDNIGHT + 15) * DAY_MS)
    before, spent = _answers(books), books.questions.spent_nusd("acme")
    assert books.keeper.add_up_again("acme") == spent
    assert _answers(books) == before
    for tenant, sums in _audited(database).items():
        assert check_sums(tenant, sums.lines, sums.usage, sums.spent_nusd) == []


def test_usage_of_dropped_time_that_somebody_changed_is_set_right_by_the_sum_that_is_left(
    books: Books, database: Database
) -> None:
    for hour in (0, 3):
        _live(books, f"r-{hour}", hour)
    _close(books)
    _let_go(books, database, now_ms=(MIDNIGHT + 15) * DAY_MS)
    before, sums, spent = _answers(books), _audited(database), books.questions.spent_nusd("acme")
    with database.writer.begin() as connection:
        connection.execute(update(schema.usage).values(price_nusd=schema.usage.c.price_nusd + 7))
    assert books.keeper.add_up_again("acme") == spent
    assert _audited(database) == sums
    assert books.keeper.add_up_again("acme") == spent
    assert _audited(database) == sums
    assert _answers(books) != before  # the row that sets it right names nothing but the tenant


def test_whoever_books_keeps_its_memory_while_detail_is_dropped_and_nothing_old_in_it(
    books: Books, database: Database
) -> None:
    _live(books, "r-0", 0)
    start_ms = FIRST * HOUR_MS + 40 * MINUTE_MS
    other = Bookkeeper(database, "meter-0:1", PriceBook(), CARD, START_MS)

    def report(number: int, name: str, first: int) -> None:
        event = tokens(entry(name, first, 5), at_unix_ms=start_ms)
        other.book([Delivered(EventId("worker.w.tokens", "e2", number), event, subject_of(event))], START_MS)

    before = FIRST // 24 * 24 + 24
    books.keeper.keep_detail_from(before)
    report(1, "r-late", 0)  # unfinished: it would stay in memory, were it not so old
    report(2, "r-late", 5)
    _live(books, "r-30", 30)
    _close(books)
    sums, authors = _audited(database), _authors(database)
    dropper = DetailDropper(database, "")
    keys = [("r-0", "acme"), ("r-late", "acme")]
    assert books.keeper.drop_detail(partial(dropper.drop, keys=keys, before_hour=before)) == 2
    assert _audited(database) == sums
    assert _authors(database) == authors
    report(3, "r-late", 10)
    for tenant, each in _audited(database).items():
        assert each.lines != sums[tenant].lines
        assert check_sums(tenant, each.lines, each.usage, each.spent_nusd) == []


def test_an_audit_under_way_begins_anew_when_lines_are_dropped(books: Books, database: Database) -> None:
    for hour in (0, 1, 3):
        _live(books, f"r-{hour}", hour)
    _close(books)
    sums, summing, audits = _audited(database), Summing(), Audits(database)
    assert audits.add_up(summing, 2) is None
    _let_go(books, database, now_ms=(MIDNIGHT + 15) * DAY_MS)
    found = None
    while found is None:
        found = audits.add_up(summing, 2)
    assert found == sums


def test_a_request_that_goes_on_into_what_is_kept_is_kept(books: Books, database: Database) -> None:
    _live(books, "r-over", 1, last_hour=3)
    _live(books, "r-3", 3)
    _close(books)
    before = _answers(books)
    assert _let_go(books, database, now_ms=(MIDNIGHT + 15) * DAY_MS) == 0
    assert books.keeper.add_up_again("acme") == books.questions.spent_nusd("acme")
    assert _answers(books) == before


def test_the_newest_line_stays_so_that_no_number_comes_twice(books: Books, database: Database) -> None:
    _live(books, "r-0", 0)
    _live(books, "r-1", 1)
    _close(books)
    newest = Audits(database).last_line()
    assert _let_go(books, database, now_ms=(MIDNIGHT + 15) * DAY_MS) == 1
    assert Audits(database).last_line() == newest


def test_an_hour_that_is_not_settled_holds_all_behind_it(books: Books, database: Database) -> None:
    _live(books, "r-0", 0)
    _live(books, "r-3", 3)
    assert _let_go(books, database, now_ms=(MIDNIGHT + 15) * DAY_MS) == 0
    _close(books)
    assert _let_go(books, database, now_ms=(MIDNIGHT + 15) * DAY_MS) == 1


def test_lines_that_a_receiver_was_not_told_of_are_kept(books: Books, database: Database) -> None:
    _live(books, "r-0", 0)
    _live(books, "r-27", 27)
    _close(books)
    now_ms, url = (MIDNIGHT + 15) * DAY_MS, "http://127.0.0.1:9/events"
    assert _let_go(books, database, now_ms=now_ms, told_url=url) == 0
    books.keeper.within(lambda transaction: put_told(transaction, url, "books", Audits(database).last_line()))
    assert _let_go(books, database, now_ms=now_ms + DAY_MS, told_url=url) == 1


def test_where_invoices_are_issued_lines_are_kept_until_one_has_them(books: Books, database: Database) -> None:
    _live(books, "r-0", 0)
    _live(books, "r-27", 27)
    _close(books)
    empty = Invoice("", "else", 0, 60, 0, "", "", (), 0, 0, 0)
    now_ms, cuts = (MIDNIGHT + 15) * DAY_MS, Bounds(Audits(database).last_line(), 10)

    def invoice(transaction: Transaction) -> None:
        issue(transaction, empty, cuts, "N-", 1)

    books.keeper.within(invoice)
    assert _let_go(books, database, now_ms=now_ms) == 0

    def invoice_acme(transaction: Transaction) -> None:
        issue(transaction, empty._replace(tenant="acme"), cuts, "N-", 1)

    books.keeper.within(invoice_acme)
    assert _let_go(books, database, now_ms=now_ms + DAY_MS) == 1


def test_what_needs_lines_that_are_gone_is_refused_by_name(books: Books, database: Database) -> None:
    _live(books, "r-0", 0)
    _live(books, "r-3", 3)
    _close(books)
    settings = Settings()
    charging = Charging(
        reader=ChargeReader(database),
        invoices=InvoiceReader(database),
        prices=books.keeper.prices,
        terms=settings.invoice,
        settle_after_s=60,
        clock=FakeClock(),
    )
    charging.require_detail(0)
    _let_go(books, database, now_ms=(MIDNIGHT + 15) * DAY_MS)
    charging.require_detail(MIDNIGHT * 1440)
    with pytest.raises(InvalidRequest, match="keep_detail_days"):
        charging.require_detail(MIDNIGHT * 1440 - 1)


def test_fewer_days_than_events_may_be_late_are_refused() -> None:
    with pytest.raises(ValueError, match="less than 15"):
        MeterSettings(keep_detail_days=14)
