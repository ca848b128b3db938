"""Shards of the books as a machine that anything may happen to: batches in any order and again, crashes, partitions
given away, split off and taken over, slow meters that wake, and guests who write in between. Whatever happens, each
fact is booked once, in the books of its tenant.
"""

import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sqlalchemy import update

from services.mesh.bus import Delivered, EventId
from services.mesh.clock import FakeClock
from services.mesh.errors import InvariantBroken
from services.mesh.events import Event
from services.mesh.partitions import ALL, partition_of
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import OpenedBook, PriceCalendar
from services.mesh.subjects import channel_of, subject_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.conservation import check_sums
from services.meter.core.costs import RateCard
from services.meter.core.ledger import Ledger, keys_of
from services.meter.desk import Desk
from services.meter.store.audit import Audits, Summing
from services.meter.store.books import Role
from services.meter.store.database import Database
from services.meter.store.shards import FIRST, parsed, shards, written
from tests.unit.meter.facts import START_MS, admitted, entry, finished, lives, tokens

CARD = RateCard({"nvidia-h100-sxm": 2_690_000_000, "nvidia-l4": 800_000_000}, 80_000_000)
BOOKS = PriceCalendar(PriceBook())
METERS = ("meter-0:1", "meter-1:1")


class Shares:
    """Two meters on one database; the first leads."""

    def __init__(self, folder: str) -> None:
        url = f"sqlite:///{Path(folder) / 'meter.db'}"
        self.databases = dict(zip(METERS, (Database(url), Database(url)), strict=True))
        self.own: dict[int, Bookkeeper] = {}  # of who leads
        self.desk = Desk(
            self.databases[METERS[0]],
            METERS[0],
            PriceBook(),
            CARD,
            START_MS,
            clock=FakeClock(START_MS),
            lease_ttl_s=30.0,
            role=Role.SOLE,
            own=self.own,
        )
        self.keepers: dict[int, tuple[str, Bookkeeper]] = {}
        self.open(FIRST, METERS[0])

    def open(self, shard: int, writer: str) -> None:
        """Has that meter begin to book a shard that is its own."""
        keeper = Bookkeeper(self.databases[writer], writer, PriceBook(), CARD, START_MS, shard=shard, role=Role.HOLDER)
        self.keepers[shard] = writer, keeper
        if writer == METERS[0]:
            self.own[shard] = keeper
        else:
            self.own.pop(shard, None)

    def other(self, shard: int) -> str:
        writer, _ = self.keepers[shard]
        return METERS[1 - METERS.index(writer)]

    def close(self) -> None:
        for each in self.databases.values():
            each.close()


class Sharing(RuleBasedStateMachine):
    """One stream, a durable reader for each shard, two meters."""

    @initialize(events=lives())
    def begin(self, events: list[Event]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.shares = Shares(self.folder.name)
        self.events: list[Delivered] = []
        published: Counter[str] = Counter()
        for number, event in enumerate(events, start=1):
            publisher = f"all.{channel_of(event).name}"
            published[publisher] += 1
            event_id = EventId(publisher, "e", published[publisher])
            self.events.append(Delivered(event_id, event, subject_of(event), stream_sequence=number))
        self.unpublished = list(self.events)
        self.stream: dict[int, Delivered] = {}
        self.unacked: dict[int, set[int]] = {FIRST: set()}

    @precondition(lambda self: self.unpublished)
    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        for message in self.unpublished[:count]:
            self.stream[message.stream_sequence] = message
            for waiting in self.unacked.values():
                waiting.add(message.stream_sequence)
        del self.unpublished[:count]

    @precondition(lambda self: any(self.unacked.values()))
    @rule(data=st.data(), acks=st.booleans())
    def deliver(self, data: st.DataObject, *, acks: bool) -> None:
        """A batch in any order, maybe with what was acked before; its ack may be lost with its meter."""
        shard = data.draw(st.sampled_from([shard for shard, waiting in self.unacked.items() if waiting]))
        some = data.draw(st.lists(st.sampled_from(sorted(self.unacked[shard])), min_size=1, max_size=5))
        again = data.draw(st.lists(st.sampled_from(sorted(self.stream)), max_size=2))
        batch = [self.stream[number] for number in data.draw(st.permutations([*some, *again]))]
        writer, keeper = self.shares.keepers[shard]
        keeper.book(batch, START_MS)
        if acks:
            self.unacked[shard].difference_update(some)
        else:
            self.shares.open(shard, writer)

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        """All of a shard, or what is split off, goes to the other meter."""
        shard = data.draw(st.sampled_from(sorted(self.unacked)))
        _, keeper = self.shares.keepers[shard]
        self.shares.desk.shards()
        keeper.book([], START_MS)  # it knows its partitions then
        given = frozenset(data.draw(st.sets(st.sampled_from(sorted(keeper.partitions)), min_size=1)))
        to = self.shares.other(shard)
        number = keeper.give(given, to, {})
        self.shares.open(number, to)
        if number != shard:
            floor = min(self.unacked[shard], default=len(self.stream) + 1)
            self.unacked[number] = {each for each in self.stream if each >= floor}

    @rule(data=st.data())
    def take_over(self, data: st.DataObject) -> None:
        """A meter is silent for too long; when it wakes it books nothing."""
        shard = data.draw(st.sampled_from(sorted(self.unacked)))
        _, before = self.shares.keepers[shard]
        to = self.shares.other(shard)
        with self.shares.databases[to].writer.begin() as connection:
            connection.execute(update(shards).where(shards.c.shard == shard).values(writer=to, author=""))
        self.shares.open(shard, to)
        with suppress(InvariantBroken):
            before.book(list(self.stream.values()), START_MS)
            raise AssertionError("a meter booked a shard that was taken over")

    @rule(tenant=st.sampled_from(["acme", "rival"]), limit=st.sampled_from([None, 10**12]))
    def set_a_limit(self, tenant: str, limit: int | None) -> None:
        """As who leads does, whoever books the tenant."""
        self.shares.desk.set_limit(tenant, limit, START_MS)

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            self._come_to_rest()
        finally:
            self.shares.close()
            self.folder.cleanup()

    def _come_to_rest(self) -> None:
        self.publish_all()
        for shard, waiting in self.unacked.items():
            _, keeper = self.shares.keepers[shard]
            keeper.book([self.stream[number] for number in sorted(waiting)], START_MS)
        ledger = Ledger(BOOKS, CARD)
        for message in self.events:
            ledger.note(message.event)
        ledger.settle()
        audits = Audits(self.shares.databases[METERS[0]])
        keys = keys_of(message.event for message in self.events)
        booked = audits.of(keys)
        for key in keys:
            expected, found = ledger._requests[key], booked[key].request
            assert found is not None
            assert {place: each.booked for place, each in found.segments.items()} == {
                place: each.booked for place, each in expected.segments.items()
            }
            assert (found.finish, found.delivered) == (expected.finish, expected.delivered)
        for tenant, sums in (audits.add_up(Summing(), 10_000) or {}).items():
            assert check_sums(tenant, sums.lines, sums.usage, sums.spent_nusd) == []
        assert sorted(each for one in self.shares.desk.shards() for each in one.partitions) == sorted(ALL)

    def publish_all(self) -> None:
        for message in self.unpublished:
            self.stream[message.stream_sequence] = message
            for waiting in self.unacked.values():
                waiting.add(message.stream_sequence)
        self.unpublished.clear()


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)


def delivered(*events: Event) -> list[Delivered]:
    counts: Counter[str] = Counter()
    found = []
    for number, event in enumerate(events, start=1):
        publisher = f"all.{channel_of(event).name}"
        counts[publisher] += 1
        found.append(
            Delivered(EventId(publisher, "e", counts[publisher]), event, subject_of(event), stream_sequence=number)
        )
    return found


def test_a_report_of_several_tenants_is_booked_by_the_meter_of_each() -> None:
    assert partition_of("acme") != partition_of("rival")
    report = tokens(entry("a", 0, 7, tenant="acme", last=True), entry("r", 0, 5, tenant="rival", last=True))
    messages = delivered(
        admitted("a", tenant="acme"),
        admitted("r", tenant="rival"),
        report,
        finished("a", 7, tenant="acme"),
        finished("r", 5, tenant="rival"),
    )
    with tempfile.TemporaryDirectory() as folder:
        shares = Shares(folder)
        try:
            _, first = shares.keepers[FIRST]
            first.book([], START_MS)
            number = first.give(frozenset({partition_of("rival")}), METERS[1], {})
            shares.open(number, METERS[1])
            for _, keeper in shares.keepers.values():
                done = keeper.book(messages, START_MS)
                assert {each.tenant for each in done.entries} == {"acme" if keeper is first else "rival"}
                assert keeper.book(messages, START_MS).fresh == 0
            requests = Audits(shares.databases[METERS[0]]).of([("a", "acme"), ("r", "rival")])
            assert {
                key[0]: each.request and each.request.booked.delivered_tokens for key, each in requests.items()
            } == {
                "a": 7,
                "r": 5,
            }
        finally:
            shares.close()


def test_a_price_book_opened_by_who_leads_prices_what_others_book_next() -> None:
    dearer = PriceBook.model_validate(PriceBook().model_dump() | {"version": 2})
    with tempfile.TemporaryDirectory() as folder:
        shares = Shares(folder)
        try:
            _, keeper = shares.keepers[FIRST]
            keeper.book(delivered(admitted("a")), START_MS)
            shares.desk.open_prices(OpenedBook(dearer, START_MS, START_MS))
            keeper.book([], START_MS)
            assert keeper.prices.pricing(dearer.label) is not None
        finally:
            shares.close()


@pytest.mark.parametrize("text", ["", "0", "0-15", "0-3,8,10-11"])
def test_partitions_are_read_as_they_were_written(text: str) -> None:
    assert written(parsed(text)) == text
