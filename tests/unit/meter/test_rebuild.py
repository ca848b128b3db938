"""The books made again from the streams are the live ones, whatever the meter went through meanwhile."""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from services.mesh.bus import Delivered, EventId
from services.mesh.clock import SystemClock
from services.mesh.errors import SettingInvalid
from services.mesh.events import CreditChanged, Event, PriceBookOpened, TokensGenerated
from services.mesh.memory_bus import MemoryBroker
from services.mesh.price_book import Price, PriceBook
from services.mesh.subjects import ADMITTED, FINISHED, TOKENS, subject_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.costs import RateCard
from services.meter.rebuild import Rebuilt, rebuild
from services.meter.store import schema
from services.meter.store.compare import differences
from services.meter.store.database import Database
from services.meter.store.questions import Questions
from tests.unit.meter.facts import START_MS, admitted, entry, finished, lives, tokens

BOOK = PriceBook()
CARD = RateCard({"nvidia-h100-sxm": 2_690_000_000, "nvidia-l4": 800_000_000}, 80_000_000)


async def _publish(broker: MemoryBroker, *events: Event) -> None:
    """Each event on the bus of who publishes such events."""
    buses = {name: broker.bus(name, f"{name}-0") for name in ("worker", "router", "meter")}
    for event in events:
        kept_by_meter = isinstance(event, CreditChanged | PriceBookOpened)
        service = "meter" if kept_by_meter else "worker" if isinstance(event, TokensGenerated) else "router"
        buses[service].publish(event)


def _opened(book: PriceBook, first_unix_ms: int = START_MS) -> PriceBookOpened:
    return PriceBookOpened(label=book.label, body_json=book.model_dump_json(), first_unix_ms=first_unix_ms)


async def _live(broker: MemoryBroker, database: Database, batch: int) -> None:
    """Books all that is in the streams as a meter does, which may get any of it twice."""
    keeper = Bookkeeper(database, "meter-0:1", BOOK, CARD, START_MS)
    meter = broker.bus("meter", "meter-0")

    async def book(messages: Sequence[Delivered]) -> None:
        keeper.book(messages, START_MS)
        keeper.book(messages[:2], START_MS)

    for channels in ([TOKENS], [ADMITTED, FINISHED]):
        await meter.replay(channels, book, batch=batch)


async def _rebuilt(broker: MemoryBroker, database: Database) -> Rebuilt:
    return await rebuild(broker.bus("meter", "rebuild"), database, BOOK, CARD, SystemClock())


@given(events=lives(), batch=st.integers(1, 9), twice=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_rebuilt_books_equal_the_live_ones(events: list[Event], batch: int, twice: int) -> None:
    async def run(folder: Path) -> None:
        broker = MemoryBroker()
        broker.store_twice = twice
        await _publish(broker, _opened(BOOK), *events)
        live, again = Database(f"sqlite:///{folder}/live.db"), Database(f"sqlite:///{folder}/again.db")
        await _live(broker, live, batch)
        done = await _rebuilt(broker, again)
        assert done.booked == len(events)
        assert differences(live, again, since_unix_ms=0) == []
        live.close()
        again.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


async def test_budgets_and_earlier_price_books_come_back_from_the_streams(tmp_path: Path) -> None:
    dear = BOOK.model_copy(
        update={
            "version": BOOK.version + 1,
            "prices": (
                Price(
                    input_usd_per_mtok=Decimal(9), cached_input_usd_per_mtok=Decimal(9), output_usd_per_mtok=Decimal(9)
                ),
            ),
        }
    )
    broker = MemoryBroker()
    budget = CreditChanged(
        tenant="acme", limit_nusd=500, spent_nusd=0, remaining_nusd=500, unlimited=False, exhausted=False,
        suspended=False, at_unix_ms=START_MS,
    )  # fmt: skip
    request = (admitted("r", price_book=dear.label), finished("r", 10, price_book=dear.label))
    await _publish(broker, _opened(BOOK), _opened(dear), budget, *request, tokens(entry("r", 0, 10, last=True)))
    database = Database(f"sqlite:///{tmp_path}/again.db")
    done = await _rebuilt(broker, database)
    assert (done.budgets, done.price_books, done.refused, done.lost) == (1, 2, 0, 0)
    booked = Questions(database).request("r")
    assert booked is not None
    assert booked.booked.price_nusd == 9_000 * (100 + 10)
    keeper = Bookkeeper(database, "meter-0:2", BOOK, CARD, START_MS)
    (((credit, budgeted),)) = keeper.credits()
    assert (credit.limit_nusd, credit.spent_nusd, budgeted) == (500, 990_000, True)
    database.close()


async def test_what_somebody_changed_in_the_live_books_is_found(tmp_path: Path) -> None:
    broker = MemoryBroker()
    await _publish(broker, _opened(BOOK), admitted("r"), tokens(entry("r", 0, 10, last=True)), finished("r", 10))
    live, again = Database(f"sqlite:///{tmp_path}/live.db"), Database(f"sqlite:///{tmp_path}/again.db")
    await _live(broker, live, 9)
    with live.writer.begin() as connection:
        connection.execute(update(schema.segments).values(price_nusd=schema.segments.c.price_nusd - 1))
        connection.execute(update(schema.tenants).values(spent_nusd=1))
    await _rebuilt(broker, again)
    found = differences(live, again, since_unix_ms=0)
    assert [each.split()[0] for each in found] == ["segments", "tenants"]
    assert "r/acme/h100-0" in found[0]
    assert "price_nusd" in found[0]
    assert "acme: spent_nusd 1, rebuilt" in found[1]
    live.close()
    again.close()


async def test_live_books_are_compared_while_their_meter_writes(tmp_path: Path) -> None:
    broker = MemoryBroker()
    await _publish(broker, _opened(BOOK), admitted("r"), tokens(entry("r", 0, 10, last=True)), finished("r", 10))
    live, again = Database(f"sqlite:///{tmp_path}/live.db"), Database(f"sqlite:///{tmp_path}/again.db")
    await _live(broker, live, 9)
    await _rebuilt(broker, again)
    with live.writer.begin() as connection:
        connection.execute(update(schema.tenants).values(spent_nusd=1))
        seen = Database(f"sqlite:///{tmp_path}/live.db", read_only=True)
        assert differences(seen, again, since_unix_ms=0) == [], "what is not committed is not there"
    seen.close()
    live.close()
    again.close()


def test_books_that_are_only_read_are_not_made_and_not_changed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/none.db"
    with pytest.raises(SettingInvalid, match="no such file"):
        Database(url, read_only=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "none.db").touch()
    with pytest.raises(SettingInvalid, match="holds no books"):
        Database(url, read_only=True)
    older = Database(url)
    with older.writer.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0009'")
    older.close()
    with pytest.raises(SettingInvalid, match="version 0009, and this program reads"):
        Database(url, read_only=True)


async def test_requests_older_than_the_streams_are_looked_over(tmp_path: Path) -> None:
    live, again = Database(f"sqlite:///{tmp_path}/live.db"), Database(f"sqlite:///{tmp_path}/again.db")
    broker = MemoryBroker()
    await _publish(broker, _opened(BOOK), admitted("r"), tokens(entry("r", 0, 10, last=True)), finished("r", 10))
    await _live(broker, live, 9)
    Bookkeeper(again, "rebuild", BOOK, CARD, START_MS)
    assert len(differences(live, again, since_unix_ms=START_MS)) > 0
    assert differences(live, again, since_unix_ms=START_MS + 1) == []
    live.close()
    again.close()


async def test_a_price_book_in_the_stream_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broker = MemoryBroker()
    await _publish(broker, PriceBookOpened(label="list@7", body_json=json.dumps({"name": 5}), first_unix_ms=1))
    database = Database(f"sqlite:///{tmp_path}/again.db")
    with pytest.raises(SettingInvalid, match="list@7"):
        await _rebuilt(broker, database)
    database.close()


def test_a_place_that_all_has_moved_on_from_is_no_difference(tmp_path: Path) -> None:
    nowhere, somewhere = finished("r", 0, worker="", accelerator="", outcome="cancelled"), finished("r", 5)
    told = [
        Delivered(EventId("router-0.requests", "e", number), event, subject_of(event), stream_sequence=number)
        for number, event in enumerate((nowhere, somewhere), start=1)
    ]
    one_by_one, at_once = Database(f"sqlite:///{tmp_path}/1.db"), Database(f"sqlite:///{tmp_path}/2.db")
    keeper = Bookkeeper(one_by_one, "meter-0:1", BOOK, CARD, START_MS)
    for each in told:
        keeper.book([each], START_MS)
    Bookkeeper(at_once, "meter-0:1", BOOK, CARD, START_MS).book(told, START_MS)
    with one_by_one.reader.connect() as here, at_once.reader.connect() as there:
        assert [len(each.execute(select(schema.segments)).all()) for each in (here, there)] == [2, 1]
    assert differences(one_by_one, at_once, since_unix_ms=0) == []
    for database in (one_by_one, at_once):
        database.close()
