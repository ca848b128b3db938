"""The booking protocol as a machine that anything may happen to: duplicates, other orders, losses that are asked for
again, and crashes at every step between a batch's arrival and its ack. Whatever happens, once everything has come the
books are those of each event booked once, in order.
"""

import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.mesh.bus import Delivered, EventId
from services.mesh.events import Event
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import PriceCalendar
from services.mesh.subjects import channel_of, subject_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.conservation import AT_ONCE, check, check_sums
from services.meter.core.costs import RateCard
from services.meter.core.ledger import Ledger, keys_of
from services.meter.core.requests import Key
from services.meter.store.audit import Audits, Summing
from services.meter.store.database import Database
from tests.unit.meter.facts import START_MS, lives

CARD = RateCard({"nvidia-h100-sxm": 2_690_000_000, "nvidia-l4": 800_000_000}, 80_000_000)
BOOKS = PriceCalendar(PriceBook())


class _Crash(Exception):
    pass


class _Failing:
    """A statement that fails."""

    def write(self, *_: object) -> None:
        raise _Crash


class Booking(RuleBasedStateMachine):
    """One stream, its durable reader, and a meter.

    The stream holds what was published and not lost. The reader delivers what is not acked, in any order, some of it
    again after it was acked. A crash makes a new meter on the same database.
    """

    @initialize(events=lives())
    def begin(self, events: list[Event]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.events = []
        published: Counter[str] = Counter()
        for number, event in enumerate(events, start=1):
            publisher = f"all.{channel_of(event).name}"
            published[publisher] += 1
            event_id = EventId(publisher, "e", published[publisher])
            self.events.append(Delivered(event_id, event, subject_of(event), stream_sequence=number))
        self.unpublished = list(self.events)
        self.stream: dict[int, Delivered] = {}
        self.lost: dict[int, Delivered] = {}
        self.unacked: set[int] = set()
        self.starts = 0
        self.database: Database | None = None
        self._start()

    def _start(self) -> None:
        self._stop()
        self.starts += 1
        self.database = Database(f"sqlite:///{Path(self.folder.name) / 'meter.db'}")
        self.keeper = Bookkeeper(self.database, f"meter-0:{self.starts}", PriceBook(), CARD, START_MS)

    def _stop(self) -> None:
        if self.database is not None:
            self.database.close()
            self.database = None

    def _publish(self, message: Delivered) -> None:
        self.stream[message.stream_sequence] = message
        self.unacked.add(message.stream_sequence)

    @precondition(lambda self: self.unpublished)
    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        for _ in range(min(count, len(self.unpublished))):
            self._publish(self.unpublished.pop(0))

    @precondition(lambda self: self.unpublished)
    @rule()
    def lose(self) -> None:
        """The stream acknowledges an event, and has it no more."""
        message = self.unpublished.pop(0)
        self.lost[message.stream_sequence] = message

    @precondition(lambda self: self.lost)
    @rule()
    def ask_again(self) -> None:
        """What the marks miss is asked for, and its publisher sends it again."""
        wanted = {
            (publisher, number)
            for (publisher, _), ranges in self.keeper.noted().gaps.items()
            for each in ranges
            for number in range(each.first, each.last + 1)
        }
        for number, message in list(self.lost.items()):
            if (message.id.publisher, message.id.sequence) in wanted:
                self._publish(self.lost.pop(number))

    @precondition(lambda self: self.unacked)
    @rule(data=st.data(), crash=st.sampled_from(["", "before the commit", "before the ack"]))
    def deliver(self, data: st.DataObject, crash: str) -> None:
        """A batch in any order, maybe with what was acked before and the same message twice."""
        some = data.draw(st.lists(st.sampled_from(sorted(self.unacked)), min_size=1, max_size=5))
        again = data.draw(st.lists(st.sampled_from(sorted(self.stream)), max_size=2))
        batch = [self.stream[number] for number in data.draw(st.permutations([*some, *again]))]
        if crash == "before the commit":
            with suppress(_Crash):
                self._book_and_crash(batch)
        else:
            self.keeper.book(batch, START_MS, durable="meter-tokens")
        if crash:
            self._start()
        else:
            self.unacked.difference_update(some)

    def _book_and_crash(self, batch: list[Delivered]) -> None:
        # The last but one of the writes; the statement itself is shared by all books.
        self.keeper._books.add_usage = _Failing()  # type: ignore[assignment]
        self.keeper.book(batch, START_MS)

    @rule()
    def restart(self) -> None:
        self._start()

    @invariant()
    def what_is_booked_agrees_in_itself(self) -> None:
        """In every snapshot: lines = booked = what follows from the facts, and usage and spending are the lines'."""
        if self.database is None:
            return
        audits = Audits(self.database)
        for key, audited in audits.after(("", ""), 100).items():
            assert audited.request is not None
            label = audited.request.price_book
            rates = None
            if label:
                request = audited.request
                rates = BOOKS.at(0).rates(request.model, key[1], request.slo_class)
            assert [each for each in check(key, audited, rates) if each.kind in AT_ONCE] == []
        for tenant, sums in (audits.add_up(Summing(), 10_000) or {}).items():
            assert check_sums(tenant, sums.lines, sums.usage, sums.spent_nusd) == []

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            self._come_to_rest()
        finally:
            self._stop()
            self.folder.cleanup()

    def _come_to_rest(self) -> None:
        """Everything comes in the end; then the books are those of each event once, in order."""
        for message in [*self.unpublished, *self.lost.values()]:
            self._publish(message)
        if self.unacked:
            self.keeper.book([self.stream[number] for number in sorted(self.unacked)], START_MS)
        ledger = Ledger(BOOKS, CARD)
        for message in self.events:
            ledger.note(message.event)
        ledger.settle()
        keys: set[Key] = keys_of(message.event for message in self.events)
        assert self.database is not None
        booked = Audits(self.database).of(keys)
        for key in keys:
            expected, found = ledger._requests[key], booked[key].request
            assert found is not None
            assert {place: each.booked for place, each in found.segments.items()} == {
                place: each.booked for place, each in expected.segments.items()
            }
            assert (found.finish, found.delivered) == (expected.finish, expected.delivered)


TestBooking = Booking.TestCase
TestBooking.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
