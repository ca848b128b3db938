"""PostgreSQL keeps detail apart by month: a month goes at once, exactly, or not at all."""

import secrets
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, Table, create_engine, func, insert, select, text

from services.mesh.price_book import PriceBook
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.presence import MS_PER_HOUR
from services.meter.core.requests import Key
from services.meter.store import schema
from services.meter.store.bill import BillReader, BillWriter
from services.meter.store.books import Transaction
from services.meter.store.callers import CallerReader
from services.meter.store.database import Database
from services.meter.store.dropping import DetailDropper
from services.meter.store.migrations import __file__ as folder
from services.meter.store.months import (
    AHEAD,
    PARTED,
    add_months,
    begin_of,
    bound_of,
    create_tables,
    month_of,
    months_there,
    suffix_of,
)
from services.meter.store.questions import Questions
from services.meter.store.rolling import HourRoller
from services.router.core.ids import uuid7
from tests.contract.test_retention import DAY_MS, _answers, _audited, _let_go, _live, _rows
from tests.postgres import new_database
from tests.unit.meter.facts import admitted, entry, tokens
from tests.unit.meter.test_callers import CARD, FIRST, HOUR_MS, Books


@pytest.fixture
def url(postgres: str) -> str:
    return new_database(postgres, f"months_{secrets.token_hex(6)}")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
def books(database: Database) -> Books:
    return Books(
        Bookkeeper(database, "meter-0:1", PriceBook(), CARD, FIRST * HOUR_MS),
        CallerReader(database),
        Questions(database),
        BillReader(database),
        BillWriter(database),
        HourRoller(database),
    )


def _there(database: Database) -> list[int]:
    with database.reader.connect() as connection:
        return months_there(connection)


def _id(month: int, hour: float, number: int = 0) -> str:
    """That a router gave in some hour of a month."""
    return uuid7(begin_of(month) + int(hour * MS_PER_HOUR), number)


def _hour(month: int, hour: int) -> int:
    """As tests of hours count, from their first."""
    return begin_of(month) // HOUR_MS - FIRST + hour


def _close(books: Books) -> None:
    books.settle()
    books.roll()
    while books.keeper.roll_up(begin_of(month_of(FIRST * HOUR_MS) + 12 * 200) // HOUR_MS):
        pass


def _some_months(books: Books, first: int) -> None:
    """Five requests of the first month, one of the next, one whose id a client chose; all billed."""
    for hour in (1, 1, 20, 300, 600):
        _live(books, _id(first, hour, books.events), _hour(first, hour))
    _live(books, "a client's own", _hour(first, 30))
    _live(books, _id(first + 1, 30), _hour(first + 1, 30))
    _close(books)


def test_a_month_that_is_over_goes_at_once_and_every_sum_stays(books: Books, database: Database) -> None:
    first, *_ = there = _there(database)
    _some_months(books, first)
    before, sums = _answers(books), _audited(database)
    now_ms = begin_of(first + 1) + 16 * DAY_MS + HOUR_MS
    assert _let_go(books, database, now_ms=now_ms) == 6
    assert _there(database) == there[1:]
    assert _rows(database, schema.requests) == _rows(database, schema.segments) == 1
    assert _answers(books) == before
    assert _audited(database) == sums == _audited(database, lines_a_pass=1)
    spent = books.questions.spent_nusd("acme")
    assert books.keeper.add_up_again("acme") == spent
    assert _answers(books) == before
    gone = books.keeper.dropped()
    assert (gone.amounts.requests, gone.amounts.delivered_tokens) == (6, 60)


def test_requests_of_a_month_that_goes_on_wait_for_its_end(books: Books, database: Database) -> None:
    first, *_ = there = _there(database)
    _some_months(books, first)
    assert _let_go(books, database, now_ms=begin_of(first) + (28 + 15) * DAY_MS) == 1  # whose id a client chose
    assert _there(database) == there


def test_of_a_month_with_a_request_that_went_on_the_others_go_by_request(books: Books, database: Database) -> None:
    first, *_ = there = _there(database)
    _live(books, _id(first, 700), _hour(first, 700), last_hour=_hour(first + 1, 30))
    _some_months(books, first)
    before, sums = _answers(books), _audited(database)
    now_ms = begin_of(first + 1) + 16 * DAY_MS
    assert _let_go(books, database, now_ms=now_ms) == 6
    assert _there(database) == there
    assert (_answers(books), _audited(database)) == (before, sums)
    _live(books, _id(first + 2, 3), _hour(first + 2, 3))
    _close(books)
    before, sums = _answers(books), _audited(database)
    assert _let_go(books, database, now_ms=now_ms + 2 * DAY_MS) == 1
    assert _there(database) == there[1:]
    assert (_answers(books), _audited(database)) == (before, sums)


def test_a_month_in_which_something_was_booked_since_it_was_added_up_stays(books: Books, database: Database) -> None:
    first, *_ = there = _there(database)
    _some_months(books, first)
    dropper, before = DetailDropper(database, ""), begin_of(first + 1) // HOUR_MS + 24
    summed = dropper.month(first, before)
    assert summed.open == ""
    late = begin_of(first) + 40 * HOUR_MS
    books.book(admitted(_id(first, 40), at_unix_ms=late), tokens(entry(_id(first, 40), 0, 5), at_unix_ms=late))
    gone: list[int | None] = []

    def drop(transaction: Transaction) -> tuple[Key, ...]:
        gone.append(dropper.drop_month(transaction, summed, before))
        return ()

    books.keeper.drop_detail(drop)
    assert gone == [None]
    assert _there(database) == there
    assert books.keeper.dropped().lines == 0


def test_months_are_made_ahead_with_what_came_before_them(books: Books, database: Database) -> None:
    *_, last = there = _there(database)
    _live(books, _id(last + 1, 30), _hour(last + 1, 30))
    _close(books)
    before, sums = _answers(books), _audited(database)
    made: list[int] = []
    add = partial(add_months, now_unix_ms=begin_of(last))
    books.keeper.within(lambda transaction: made.extend(add(transaction.connection)), alone=True)
    assert made == list(range(last + 1, last + AHEAD + 1))
    assert _there(database) == [*there, *made]
    with database.reader.connect() as connection:
        for table in PARTED:
            moved = connection.execute(text(f"SELECT count(*) FROM {table.name}{suffix_of(last + 1)}")).scalar_one()
            assert moved == _rows(database, table), table.name
    assert (_answers(books), _audited(database)) == (before, sums)
    assert books.questions.months()[-1] == f"{made[-1] // 12:04}-{made[-1] % 12 + 1:02}"


def test_an_id_is_in_its_month_by_its_text() -> None:
    month = month_of(1_780_000_000_000)
    assert bound_of(month) <= uuid7(begin_of(month), 0) < uuid7(begin_of(month + 1) - 1, (1 << 74) - 1)
    assert uuid7(begin_of(month + 1) - 1, (1 << 74) - 1) < bound_of(month + 1) <= uuid7(begin_of(month + 1), 0)


def _row(table: Table, **given: object) -> dict[str, Any]:
    """A row of nothing but what is given."""
    empty = {"VARCHAR": "", "TEXT": "", "BOOLEAN": False}
    return {
        column.name: given.get(column.name, empty.get(str(column.type), 0))
        for column in table.columns
        if column.autoincrement is not True or column.name in given
    }


def _all(engine: Engine) -> list[list[tuple[Any, ...]]]:
    with engine.connect() as connection:
        return [sorted(map(tuple, connection.execute(select(table)))) for table in PARTED]


def test_books_from_before_months_are_carried_over_row_by_row(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", folder.rpartition("/")[0])
        command.upgrade(config, "0012")
        now = month_of(connection.execute(text("SELECT CAST(extract(epoch FROM now()) * 1000 AS BIGINT)")).scalar_one())
        ids = [_id(now - 14, 5), _id(now - 2, 5), _id(now, 0), _id(now + 40, 1), "a client's own", "", "~"]
        for number, each in enumerate(ids):
            key = {"request_id": each, "tenant": "acme", "worker": "w"}
            for table in PARTED:
                connection.execute(insert(table), [_row(table, **key, minute=number)])
    before = _all(engine)
    for _ in range(2):
        Database(url).close()
    assert _all(engine) == before
    with engine.begin() as connection:
        assert months_there(connection) == list(range(now - 14, now + AHEAD + 1))
        newest = connection.execute(select(func.max(schema.entries.c.id))).scalar_one()
        connection.execute(insert(schema.entries), [_row(schema.entries, request_id="next")])
        assert connection.execute(select(func.max(schema.entries.c.id))).scalar_one() == newest + 1
        for month, count in ((now - 14, 1), (now, 1), (now + 1, 0)):
            part = text(f"SELECT count(*) FROM entries{suffix_of(month)}")
            assert connection.execute(part).scalar_one() == count
    engine.dispose()


@pytest.mark.parametrize("table", [each.name for each in PARTED])
def test_an_upgrade_makes_the_keys_that_new_books_get(postgres: str, table: str) -> None:
    keys = []
    for upgraded in (False, True):
        engine = create_engine(new_database(postgres, f"months_{secrets.token_hex(6)}"))
        with engine.begin() as connection:
            if upgraded:
                config = Config(attributes={"connection": connection})
                config.set_main_option("script_location", folder.rpartition("/")[0])
                command.upgrade(config, "head")
            else:
                create_tables(connection, schema.metadata)
            indexed = text("SELECT indexdef FROM pg_indexes WHERE tablename = :table ORDER BY 1").bindparams(
                table=table
            )
            parts = text(
                "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits JOIN pg_class c ON c.oid ="
                " inhrelid WHERE inhparent = to_regclass(:table) ORDER BY 1"
            ).bindparams(table=table)
            columns = text(
                "SELECT column_name, data_type, is_nullable, collation_name FROM"
                " information_schema.columns WHERE table_name = :table ORDER BY 1"
            ).bindparams(table=table)
            keys.append([connection.execute(each).all() for each in (indexed, parts, columns)])
        engine.dispose()
    assert keys[0] == keys[1]
