import itertools
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from functools import partialmethod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from services.mesh.bus import Delivered, EventId
from services.mesh.errors import InvariantBroken, SettingInvalid
from services.mesh.events import Event
from services.mesh.price_book import Price, PriceBook
from services.mesh.pricing import Pricing
from services.mesh.subjects import channel_of, subject_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.amounts import NOTHING, Amounts
from services.meter.core.costs import RateCard
from services.meter.core.marks import Marks
from services.meter.core.usage import DIMENSIONS, Grouping, grouping
from services.meter.store.database import Database
from services.meter.store.questions import Questions
from services.meter.store.tables import metadata
from tests.unit.meter.facts import MINUTE_MS, START_MS, admitted, entry, finished, lives, tokens

BOOK = PriceBook()
CARD = RateCard({"nvidia-h100-sxm": 2_690_000_000, "nvidia-l4": 800_000_000}, 80_000_000)
RATES = Pricing(BOOK).rates("llama-3.1-8b", "acme", "standard")


@contextmanager
def _opened(path: Path, *, book: PriceBook = BOOK, writer: str = "meter-0:1") -> Iterator[tuple[Bookkeeper, Questions]]:
    database = Database(f"sqlite:///{path}")
    try:
        yield Bookkeeper(database, writer, book, CARD, START_MS), Questions(database)
    finally:
        database.close()


def _delivered(*events: Event, first: int = 1) -> list[Delivered]:
    """The events as one publisher's, numbered from `first`."""
    return [
        Delivered(EventId(f"all.{channel_of(event).stream}", "e1", number), event, subject_of(event))
        for number, event in enumerate(events, start=first)
    ]


def _total(questions: Questions) -> Amounts:
    found = questions.usage(Grouping(), None, None, 10)
    return found[0][1] if found else NOTHING


def test_a_redelivered_batch_is_billed_once(tmp_path: Path) -> None:
    batch = _delivered(tokens(entry("r", 0, 5)), tokens(entry("r", 5, 5)))
    with _opened(tmp_path / "meter.db") as (keeper, questions):
        assert keeper.book(batch, START_MS).fresh == 2
        again = keeper.book(batch, START_MS)
        assert (again.fresh, again.duplicates, again.entries) == (0, 2, [])
        assert _total(questions).price_nusd == RATES.price_nusd(100, 0, 10)
        assert _total(questions).device_ns == 2_000_000


def test_a_batch_that_comes_again_after_a_restart_is_billed_once(tmp_path: Path) -> None:
    batch = _delivered(admitted("r"), tokens(entry("r", 0, 5)))
    with _opened(tmp_path / "meter.db") as (keeper, _):
        keeper.book(batch, START_MS)
    with _opened(tmp_path / "meter.db", writer="meter-0:2") as (keeper, questions):
        assert keeper.book(batch, START_MS).duplicates == 2
        assert _total(questions).delivered_tokens == 5


def test_a_request_goes_on_where_the_books_stood_before_a_restart(tmp_path: Path) -> None:
    with _opened(tmp_path / "meter.db") as (keeper, _):
        keeper.book(_delivered(admitted("r"), tokens(entry("r", 0, 60))), START_MS)
    later = tokens(entry("r", 60, 30, last=True), at_unix_ms=START_MS + MINUTE_MS)
    with _opened(tmp_path / "meter.db", writer="meter-0:2") as (keeper, _):
        keeper.book(_delivered(later, finished("r", 50), first=3), START_MS)
    with _opened(tmp_path / "meter.db", writer="meter-0:3") as (_, questions):
        assert _total(questions).delivered_tokens == 50
        assert _total(questions).price_nusd == RATES.price_nusd(100, 0, 50)
        stored = questions.request("r")
        assert stored is not None
        assert stored.closed is False, "whether a worker reported its last entry is not stored"
        assert stored.booked == _total(questions)
        minutes = questions.usage(grouping(["minute"], []), None, None, 10)
        assert [each.delivered_tokens for _, each in minutes] == [50, 0]


def test_a_transaction_that_fails_leaves_no_trace_and_its_batch_is_booked_when_it_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "meter.db"
    with _opened(path) as (keeper, questions):
        keeper.book(_delivered(tokens(entry("r", 0, 5))), START_MS)
        with sqlite3.connect(path) as other:
            other.execute("ALTER TABLE usage RENAME TO elsewhere")
        batch = _delivered(tokens(entry("r", 5, 5)), tokens(entry("s", 0, 7)), first=2)
        with pytest.raises(OperationalError):
            keeper.book(batch, START_MS)
        with sqlite3.connect(path) as other:
            other.execute("ALTER TABLE elsewhere RENAME TO usage")
        other.close()
        assert _total(questions).delivered_tokens == 5
        assert keeper.book(batch, START_MS).fresh == 2
        assert _total(questions).delivered_tokens == 17
        assert _total(questions).requests == 2


def test_a_meter_whose_books_were_taken_over_books_no_more(tmp_path: Path) -> None:
    with _opened(tmp_path / "meter.db") as (old, _), _opened(tmp_path / "meter.db", writer="meter-0:2") as (new, _):
        with pytest.raises(InvariantBroken, match="taken over by meter-0:2"):
            old.book(_delivered(tokens(entry("r", 0, 5))), START_MS)
        assert new.book(_delivered(tokens(entry("r", 0, 5))), START_MS).fresh == 1


def test_budgets_and_what_was_spent_survive_a_restart(tmp_path: Path) -> None:
    with _opened(tmp_path / "meter.db") as (keeper, _):
        keeper.set_limit("acme", 5_000, START_MS)
        booked = keeper.book(_delivered(tokens(entry("r", 0, 5), entry("s", 0, 5, tenant="rival"))), START_MS)
        assert set(booked.spent) == {"acme", "rival"}
        keeper.set_limit("lifted", 1, START_MS)
        keeper.set_limit("lifted", None, START_MS)
    with _opened(tmp_path / "meter.db", writer="meter-0:2") as (keeper, _):
        stored = {credit.tenant: (credit.limit_nusd, credit.spent_nusd, set_) for credit, set_ in keeper.credits()}
    assert stored == {
        "acme": (5_000, booked.spent["acme"], True),
        "rival": (None, booked.spent["rival"], False),
        "lifted": (None, 0, True),
    }


def test_a_request_keeps_the_prices_of_its_admission_when_the_book_changes(tmp_path: Path) -> None:
    dear = PriceBook(
        version=2,
        prices=(
            Price(input_usd_per_mtok=Decimal(9), cached_input_usd_per_mtok=Decimal(9), output_usd_per_mtok=Decimal(9)),
        ),
    )
    with _opened(tmp_path / "meter.db") as (keeper, _):
        keeper.book(_delivered(admitted("r"), tokens(entry("r", 0, 5))), START_MS)
    with _opened(tmp_path / "meter.db", book=dear, writer="meter-0:2") as (keeper, questions):
        keeper.book(_delivered(finished("r", 5, price_book="list@1"), first=3), START_MS)
        assert _total(questions).price_nusd == RATES.price_nusd(100, 0, 5)
        keeper.book(_delivered(finished("s", 5, price_book="list@2"), first=4), START_MS)
        assert _total(questions).price_nusd == RATES.price_nusd(100, 0, 5) + 105 * 9_000


def test_other_prices_under_a_version_that_was_used_are_refused(tmp_path: Path) -> None:
    changed = PriceBook(prices=BOOK.prices[:1])
    with _opened(tmp_path / "meter.db"):
        pass
    with (
        pytest.raises(SettingInvalid, match=r"raise prices\.version"),
        _opened(tmp_path / "meter.db", book=changed),
    ):
        pass


def test_measured_energy_is_told_from_modelled_energy(tmp_path: Path) -> None:
    with _opened(tmp_path / "meter.db") as (keeper, questions):
        measured = tokens(entry("r", 0, 5, energy_uj=700), energy_source="nvml")
        modelled = (
            tokens(entry("r", 5, 5, energy_uj=50), energy_source="catalogue"),
            tokens(entry("r", 10, 5, energy_uj=4)),
        )
        keeper.book(_delivered(admitted("r"), measured, *modelled), START_MS)
        total = _total(questions)
        assert (total.energy_uj, total.measured_energy_uj) == (754, 700)
        request = questions.request("r")
        assert request is not None
        assert [each.measured_energy_uj for each in request.segments.values()] == [700]


def test_books_of_the_first_version_are_carried_over_with_their_energy_as_modelled(tmp_path: Path) -> None:
    path = tmp_path / "meter.db"
    with _opened(path) as (keeper, _):
        keeper.book(_delivered(admitted("r"), tokens(entry("r", 0, 5, energy_uj=700))), START_MS)
    with sqlite3.connect(path) as other:
        for table in ("segments", "entries", "usage"):
            other.execute(f"ALTER TABLE {table} DROP COLUMN measured_energy_uj")
        other.execute("ALTER TABLE publishers DROP COLUMN tokens")
        other.execute("ALTER TABLE price_books DROP COLUMN recorded_unix_ms")
        other.execute("DROP INDEX entries_by_request")
        first = {"publishers", "requests", "segments", "entries", "usage", "tenants", "price_books", "state"}
        for table in metadata.tables.keys() - first:
            other.execute(f"DROP TABLE {table}")
        for column in ("caller_key", "caller_team", "session_id"):
            other.execute(f"ALTER TABLE requests DROP COLUMN {column}")
        other.execute("DROP TABLE alembic_version")
        other.execute("UPDATE state SET schema_version = 1")
    other.close()
    with _opened(path, writer="meter-0:2") as (keeper, questions):
        assert (_total(questions).energy_uj, _total(questions).measured_energy_uj) == (700, 0)
        keeper.book(_delivered(tokens(entry("r", 5, 5, energy_uj=30), energy_source="nvml"), first=3), START_MS)
        assert (_total(questions).energy_uj, _total(questions).measured_energy_uj) == (730, 30)
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT tokens FROM publishers").fetchall() == [(-1,)] * 2
    other.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://", "forgets the books"),
        ("meter.db", "not a database URL"),
        ("mysql://localhost/meter", "use sqlite"),
        ("sqlite:////proc/nowhere/meter.db", "meter.database_url"),
    ],
)
def test_a_database_that_cannot_hold_the_books_is_refused_by_name(url: str, says: str) -> None:
    with pytest.raises(SettingInvalid, match=says):
        Database(url)


def test_a_password_in_the_url_is_not_told() -> None:
    with pytest.raises(SettingInvalid) as refused:
        Database("mysql://meter:secret@localhost/meter")
    assert "secret" not in str(refused.value)


def test_the_latest_admitted_of_two_tenants_requests_with_one_id_is_found(tmp_path: Path) -> None:
    with _opened(tmp_path / "meter.db") as (keeper, questions):
        keeper.book(
            _delivered(
                admitted("r", tenant="rival", at_unix_ms=START_MS + 1),
                admitted("r", tenant="acme"),
                tokens(entry("r", 0, 5, tenant="rival"), entry("r", 0, 9, tenant="acme")),
            ),
            START_MS,
        )
        stored = questions.request("r")
        assert stored is not None
        assert stored.key == ("r", "rival")
        assert stored.booked.delivered_tokens == 5
        assert questions.request("unknown") is None


@settings(max_examples=15, deadline=None)
@given(events=lives(), cut=st.integers(1, 6), names=st.permutations((*DIMENSIONS, "hour")), many=st.integers(0, 3))
def test_usage_adds_up_in_any_grouping_and_equals_the_ledger_and_the_requests(
    events: list[Event], cut: int, names: list[str], many: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, batch = Path(folder) / "meter.db", _delivered(*events)
        # A new process for every batch: nothing may rest on what is in memory.
        for start in range(0, len(batch), cut):
            with _opened(path, writer=f"meter-0:{start}") as (keeper, _):
                keeper.book(batch[start : start + cut], START_MS)
        with _opened(path, writer="meter-0:last") as (_, questions):
            total = _total(questions)
            for each in (names[:many], ["minute", *names[:many]], ["day"]):
                if sum(name in ("minute", "hour", "day") for name in each) > 1:
                    continue
                sums = NOTHING
                for _, amounts in questions.usage(grouping(each, []), None, None, 10_000):
                    assert min(amounts) >= 0
                    sums = sums.plus(amounts)
                assert sums == total
            requests = NOTHING
            for request_id in {f"r{number}" for number in range(3)}:
                if stored := questions.request(request_id):
                    requests = requests.plus(stored.booked)
            assert requests == total
        with sqlite3.connect(path) as other:
            columns = ", ".join(f"coalesce(sum({name}), 0)" for name in Amounts._fields)
            (ledger,) = other.execute(f"SELECT {columns} FROM entries").fetchall()
        other.close()
        assert Amounts(*ledger) == total


def test_usage_is_filtered_and_bounded_by_time_and_rows(tmp_path: Path) -> None:
    with _opened(tmp_path / "meter.db") as (keeper, questions):
        keeper.book(
            _delivered(
                *(
                    tokens(entry(f"{tenant}-{minute}", 0, 1, tenant=tenant), at_unix_ms=START_MS + minute * MINUTE_MS)
                    for tenant, minute in itertools.product(("a", "b", "c"), range(4))
                )
            ),
            START_MS,
        )
        first = START_MS // MINUTE_MS
        wanted = grouping(["tenant", "minute"], [("tenant", ("a", "c"))])
        found = questions.usage(wanted, first + 1, first + 3, 10)
        assert [group for group, _ in found] == [(t, first + m) for t, m in itertools.product("ac", (1, 2))]
        assert len(questions.usage(wanted, None, None, 3)) == 3


def test_what_comes_again_of_a_publisher_that_was_let_go_of_long_ago_is_billed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.meter.bookkeeper.MOST_AT_HAND", 4)
    monkeypatch.setattr(Marks, "release", partialmethod(Marks.release, 4))
    batches = [
        [
            replace(each, id=EventId(f"worker.w{number}.tokens", "e1", 1))
            for each in _delivered(tokens(entry("r", number, 1)))
        ]
        for number in range(12)
    ]
    with _opened(tmp_path / "meter.db") as (keeper, questions):
        for batch in batches:
            keeper.book(batch, START_MS)
        assert len(keeper.noted().tokens) == 4
        assert set(keeper.noted([("worker.w0.tokens", "e1")]).tokens) >= {("worker.w0.tokens", "e1")}
        assert [keeper.book(batch, START_MS).duplicates for batch in batches] == [1] * 12
        assert _total(questions).generated_tokens == 12
        keeper.forget_long_gone(START_MS)
        assert keeper.book(batches[0], START_MS).duplicates == 1
