"""Meters on one PostgreSQL see each other, and take only what is free."""

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import update

from services.mesh.errors import SettingInvalid
from services.mesh.partitions import ALL, PARTITIONS
from services.mesh.price_book import PriceBook
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.costs import RateCard
from services.meter.store.books import Role
from services.meter.store.database import Database
from services.meter.store.holding import Holding
from services.meter.store.shards import FIRST, shards
from services.meter.store.sharing import Membership
from tests.postgres import new_database
from tests.unit.meter.facts import START_MS, admitted, entry, finished, tokens
from tests.unit.meter.test_shards import delivered

CARD = RateCard({}, 0)
ONE, OTHER = "meter-0:a", "meter-1:b"


@pytest.fixture
async def url(postgres: str, request: pytest.FixtureRequest) -> str:
    name = request.node.name.removeprefix("test_")[:50]
    return await asyncio.to_thread(new_database, postgres, name)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with closing(Database(url)) as made:
        yield made


def member(url: str, writer: str, ttl_s: float = 60.0) -> Membership:
    made = Membership(url, writer, ttl_s)
    made.renew()
    return made


def leads(url: str, writer: str) -> None:
    with closing(Holding(url, writer, 60.0)) as holding:
        assert not holding.take()


def test_a_shard_is_taken_when_its_meter_is_gone_and_not_before(url: str, database: Database) -> None:
    with closing(member(url, ONE)) as one, closing(member(url, OTHER)) as other:
        leads(url, ONE)
        (first,) = one.look().free()
        assert one.take(first)
        (shard,) = other.look().shards
        assert (shard.writer, other.look().free()) == (ONE, [])
        assert not other.take(shard)
        one.leave()
        assert other.look().held == {OTHER: 0}
        assert other.take(shard)
        assert not other.take(first)  # as it was before
        assert other.look().held == {OTHER: PARTITIONS}


def test_the_next_start_of_a_meter_finds_free_what_its_last_one_had(url: str, database: Database) -> None:
    with closing(member(url, ONE)) as one:
        assert one.take(one.look().shards[0])
        with closing(member(url, "meter-0:again")) as again:
            (shard,) = again.look().free()
            assert again.take(shard)


def test_shards_may_be_taken_when_who_leads_has_seen_to_what_is_nobodys_partition(url: str, database: Database) -> None:
    with closing(member(url, ONE)) as one, closing(member(url, OTHER)) as other:
        leads(url, ONE)
        assert not other.look().open
        one.open()
        assert other.look().open
        with database.writer.begin() as connection:
            connection.exec_driver_sql("UPDATE holdings SET until_unix_ms = 0 WHERE what = 'books'")
        leads(url, OTHER)
        assert not one.look().open


def test_two_meters_book_at_the_same_time_and_one_that_was_replaced_does_not(url: str, database: Database) -> None:
    Bookkeeper(database, ONE, PriceBook(), CARD, START_MS)
    messages = delivered(
        *(admitted(name, tenant=name) for name in ("acme", "initech")),
        tokens(*(entry(name, 0, 5, tenant=name, last=True) for name in ("acme", "initech"))),
        *(finished(name, 5, tenant=name) for name in ("acme", "initech")),
    )
    with closing(Database(url)) as second:
        one = Bookkeeper(database, ONE, PriceBook(), CARD, START_MS, role=Role.HOLDER)
        number = one.give(frozenset(range(8, 16)), OTHER, {"meter-tokens": 0})
        other = Bookkeeper(second, OTHER, PriceBook(), CARD, START_MS, shard=number, role=Role.HOLDER)
        assert {each.tenant for each in one.book(messages, START_MS).entries} == {"initech"}
        assert {each.tenant for each in other.book(messages, START_MS).entries} == {"acme"}
        with second.writer.begin() as connection:
            connection.execute(update(shards).where(shards.c.shard == FIRST).values(writer=OTHER))
        with pytest.raises(Exception, match="taken over by meter-1:b"):
            one.book(messages, START_MS)


def test_books_that_are_shared_out_in_other_partitions_are_refused(url: str, database: Database) -> None:
    with database.writer.begin() as connection:
        connection.execute(update(shards).values(partitions="0-31"))
    with pytest.raises(SettingInvalid, match="shared out in other partitions"):
        Bookkeeper(database, ONE, PriceBook(), CARD, START_MS)
    assert len(ALL) == PARTITIONS
