"""Usage by who called: from the ledger and from hours that are added up, the same to the nano-dollar."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from services.mesh.bus import Delivered, EventId
from services.mesh.events import Event
from services.mesh.price_book import PriceBook
from services.mesh.subjects import channel_of, subject_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.amounts import Amounts
from services.meter.core.beside import Caller
from services.meter.core.costs import RateCard
from services.meter.core.journal import Account, Posting, Subject, Value
from services.meter.core.paid import PaidHour, paid_by_group
from services.meter.core.usage import DIMENSIONS, Group, Grouping, grouping
from services.meter.store.bill import BillHour, BillReader, BillWriter
from services.meter.store.callers import CallerReader
from services.meter.store.database import Database
from services.meter.store.questions import Questions
from services.meter.store.rolling import HourRoller
from tests.unit.meter.facts import MINUTE_MS, START_MS, admitted, entry, tokens

HOUR_MS = 60 * MINUTE_MS
FIRST = START_MS // HOUR_MS
CARD = RateCard({"nvidia-h100-sxm": 2_690_000_000}, 80_000_000)
CALLERS = (Caller("search", "ci", "s-1"), Caller("search", "dev", ""), Caller("", "admin", "s-2"))
GROUPINGS = (
    ("team",),
    ("team", "key", "hour"),
    ("session", "accelerator"),
    ("key", "day"),
    (),
)


@dataclass
class Books:
    """Books that requests are booked in, and hours added up."""

    keeper: Bookkeeper
    callers: CallerReader
    questions: Questions
    bills: BillReader
    writer: BillWriter
    roller: HourRoller
    events: int = 0
    postings: int = 0

    def book(self, *events: Event) -> None:
        messages = []
        for event in events:
            self.events += 1
            id_ = EventId(f"all.{channel_of(event).stream}", "e1", self.events)
            messages.append(Delivered(id_, event, subject_of(event)))
        self.keeper.book(messages, START_MS)

    def request(self, name: str, hour: int, caller: Caller | None, count: int = 10) -> None:
        at_unix_ms = (FIRST + hour) * HOUR_MS + 30 * MINUTE_MS
        made = tokens(entry(name, 0, count, last=True), at_unix_ms=at_unix_ms)
        self.book(made)
        if caller is not None:
            self.told(name, hour, caller)

    def told(self, name: str, hour: int, caller: Caller) -> None:
        team, key, session = caller
        event = admitted(name, at_unix_ms=(FIRST + hour) * HOUR_MS + 30 * MINUTE_MS)
        self.book(replace(event, team=team, key=key, session_id=session))

    def post(self, name: str, hour: int, amount_nusd: int) -> None:
        """The house owes for a request's idle part."""
        self.postings += 1
        subject = Subject(request_id=name, tenant="acme", workload="chat", model="llama-3.1-8b")
        some = [
            Posting(Account.IDLE, subject, Value(amount_nusd, 5)),
            Posting(Account.FLEET, Subject(), Value(-amount_nusd)),
        ]
        post = partial(self.writer.post, kind="bill", hour=FIRST + hour, now_unix_ms=START_MS)
        self.keeper.within(lambda transaction: post(transaction, transactions={f"t{self.postings}": some}))

    def settle(self) -> None:
        """Lines are sorted into hours, whose bills count as booked."""
        _, found = self.bills.lines(0, 10**6)
        hours = [BillHour(hour, first, last, last, START_MS) for hour, (first, last) in found.items()]
        self.keeper.within(lambda transaction: self.writer.put_hours(transaction, hours))

    def roll(self, now_unix_ms: int = START_MS) -> list[int]:
        """Adds up what is due; which hours these were, from the first."""
        self.keeper.within(self.roller.look)
        due = self.roller.due(now_unix_ms, ask_again_ms=HOUR_MS, most=100)
        for each in due:
            rolled = self.roller.add_up(each)
            self.keeper.within(partial(self.roller.begin, due=each, now_unix_ms=now_unix_ms))
            for table, rows in self.roller.parts(rolled):
                self.keeper.within(partial(self.roller.add, table=table, rows=rows))
            self.keeper.within(partial(self.roller.end, rolled=rolled, now_unix_ms=now_unix_ms))
        return sorted(each.hour - FIRST for each in due)

    def answers(self) -> list[object]:
        """Everything that is asked, over all times and over some that cut hours in two."""
        first, end = FIRST * 60, (FIRST + 4) * 60
        times = [(None, None), (first, end), (first + 45, end - 15), (first + 60, first + 120), (None, first + 70)]
        found: list[object] = []
        for names in GROUPINGS:
            wanted = grouping(names, [("tenant", ["acme"])])
            found += [self.callers.usage(wanted, *within, max_rows=1000) for within in times]
            hours = [(None, None), (FIRST, FIRST + 4), (FIRST + 1, FIRST + 2), (None, FIRST + 1)]
            found += [sorted(self.callers.postings(wanted, *within)) for within in hours]
        return found


@contextmanager
def _books(path: Path) -> Iterator[Books]:
    database = Database(f"sqlite:///{path / 'meter.db'}")
    try:
        keeper = Bookkeeper(database, "meter-0:1", PriceBook(), CARD, START_MS)
        yield Books(
            keeper,
            CallerReader(database),
            Questions(database),
            BillReader(database),
            BillWriter(database),
            HourRoller(database),
        )
    finally:
        database.close()


def _filled(books: Books) -> None:
    for hour in range(4):
        for number, caller in enumerate(CALLERS):
            books.request(f"r{hour}-{number}", hour, caller, count=10 + number)
            books.post(f"r{hour}-{number}", hour, 100 + number)


def _by(books: Books, *names: str) -> dict[Group, Amounts]:
    return dict(books.callers.usage(grouping(names, []), None, None, max_rows=100))


def test_usage_is_told_by_team_key_and_session(tmp_path: Path) -> None:
    with _books(tmp_path) as books:
        _filled(books)
        assert {group: each.delivered_tokens for group, each in _by(books, "team").items()} == {
            ("",): 48,
            ("search",): 84,
        }
        assert _by(books, "key")[("dev",)].requests == 4
        assert set(_by(books, "session")) == {("",), ("s-1",), ("s-2",)}
        only = grouping(["key"], [("team", ["search"]), ("session", ["s-1"])])
        assert [group for group, _ in books.callers.usage(only, None, None, max_rows=10)] == [("ci",)]


def test_hours_that_are_added_up_answer_as_the_ledger_does(tmp_path: Path) -> None:
    with _books(tmp_path) as books:
        _filled(books)
        before = books.answers()
        books.settle()
        assert books.answers() == before
        assert books.roll() == [0, 1, 2, 3]
        assert books.answers() == before
        assert books.roll() == []


def test_what_comes_late_counts_at_once_and_its_hour_is_added_up_again(tmp_path: Path) -> None:
    with _books(tmp_path) as books:
        _filled(books)
        books.settle()
        books.roll()
        books.request("late", 1, CALLERS[0], count=7)
        books.post("late", 2, 50)
        late = books.answers()
        assert _by(books, "team")[("search",)].delivered_tokens == 91
        books.settle()
        assert books.answers() == late
        assert books.roll() == [1, 2]
        assert books.answers() == late


def test_a_crash_while_an_hour_is_written_costs_nothing(tmp_path: Path) -> None:
    with _books(tmp_path) as books:
        _filled(books)
        books.settle()
        before = books.answers()
        due = books.roller.due(START_MS, ask_again_ms=HOUR_MS, most=100)
        rolled = books.roller.add_up(due[0])
        books.keeper.within(partial(books.roller.begin, due=due[0], now_unix_ms=START_MS))
        table, rows = next(books.roller.parts(rolled))
        books.keeper.within(partial(books.roller.add, table=table, rows=rows))
        assert books.answers() == before
        assert books.roll() == [0, 1, 2, 3]
        assert books.answers() == before


def test_who_called_may_be_told_after_its_hour_was_added_up(tmp_path: Path) -> None:
    with _books(tmp_path) as books:
        books.request("r", 0, None)
        books.settle()
        books.roll()
        assert set(_by(books, "key")) == {("",)}
        books.told("r", 0, CALLERS[0])
        assert books.roll() == []
        assert books.roll(START_MS + HOUR_MS + 1) == [0]
        assert set(_by(books, "key")) == {("ci",)}


def test_without_callers_it_is_the_usage_that_is_kept_by_the_minute(tmp_path: Path) -> None:
    with _books(tmp_path) as books:
        _filled(books)
        books.settle()
        books.roll()
        wanted = Grouping((*DIMENSIONS, "hour"))
        assert books.callers.usage(wanted, None, None, max_rows=1000) == books.questions.usage(wanted, None, None, 1000)


def test_paid_time_counts_as_far_as_the_times_reach_into_an_hour_and_it_has_passed() -> None:
    hours = [PaidHour(FIRST, "h100", "a", "p", 3600), PaidHour(FIRST + 1, "h100", "a", "p", 1800)]
    now_unix_ms = (FIRST + 1) * HOUR_MS + 30 * MINUTE_MS  # half of the second hour has passed, paid for wholly
    start = FIRST * 60
    by = Grouping(("tenant", "accelerator"))
    assert paid_by_group(by, hours, (None, None), now_unix_ms) == {("h100",): 5400}
    assert paid_by_group(by, hours, (start + 30, start + 75), now_unix_ms) == {("h100",): 1800 + 900}
    assert paid_by_group(Grouping(("hour",)), hours, (start, None), now_unix_ms) == {
        (start,): 3600,
        (start + 60,): 1800,
    }
    assert paid_by_group(Grouping(("minute",)), hours, (None, None), now_unix_ms) == {}
    assert paid_by_group(by.only(worker="b"), hours, (None, None), now_unix_ms) == {}
