"""Usage by the hour is what its minutes come to, whatever is booked late, corrected, or added up again."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select

from services.mesh.price_book import PriceBook
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.usage import DIMENSIONS, Grouping
from services.meter.store import schema
from services.meter.store.database import Database
from services.meter.store.hours import rolled, rolled_before, usage_hours
from services.meter.store.questions import Questions
from tests.contract.conftest import NewUrl
from tests.unit.meter.facts import START_MS, entry, tokens
from tests.unit.meter.test_bookkeeper import CARD, _delivered

HOUR = START_MS // 3_600_000
MINUTES = 60


@pytest.fixture
def database(new_url: NewUrl) -> Iterator[Database]:
    opened = Database(new_url())
    yield opened
    opened.close()


def _keeper(database: Database, writer: str = "meter-0:1") -> Bookkeeper:
    return Bookkeeper(database, writer, PriceBook(), CARD, START_MS)


def _book(keeper: Bookkeeper, number: int, minute: int) -> None:
    """Ten tokens of a request of its own, dated so many minutes after the hour."""
    event = tokens(entry(f"r-{number}", 0, 10), at_unix_ms=HOUR * 3_600_000 + minute * 60_000)
    assert keeper.book(_delivered(event, first=number + 1), START_MS).fresh == 1


def _roll(keeper: Bookkeeper, before_hour: int) -> int:
    count = 0
    while keeper.roll_up(before_hour):
        count += 1
    return count


def _generated(database: Database, *span: int | None) -> int:
    found = Questions(database).usage(Grouping(), *span, max_rows=10)
    return found[0][1].generated_tokens if found else 0


def _same_by_hours_and_minutes(database: Database) -> None:
    """Every grouping over any span is the same with the hours as without them."""
    spans = [(None, None), (HOUR * 60 + 30, None), (None, HOUR * 60 + 150), (HOUR * 60 + 30, HOUR * 60 + 40)]
    spans += [(HOUR * 60 + 59, HOUR * 60 + 121), (HOUR * 60, HOUR * 60 + 60)]
    questions = Questions(database)
    groupings = [Grouping(), Grouping(("hour", "tenant")), Grouping(("day", *DIMENSIONS))]
    with_hours = [questions.usage(each, *span, max_rows=1000) for each in groupings for span in spans]
    with database.writer.begin() as connection:
        before = rolled_before(connection)
        connection.execute(rolled.update().values(before_hour=0))
    assert with_hours == [questions.usage(each, *span, max_rows=1000) for each in groupings for span in spans]
    with database.writer.begin() as connection:
        connection.execute(rolled.update().values(before_hour=before))


def test_hours_are_read_instead_of_their_minutes(database: Database) -> None:
    keeper = _keeper(database)
    for number, minute in enumerate((0, 59, 60, 125)):
        _book(keeper, number, minute)
    assert _roll(keeper, HOUR + 2) == 2
    _same_by_hours_and_minutes(database)
    with database.writer.begin() as connection:
        connection.execute(delete(schema.usage).where(schema.usage.c.minute < (HOUR + 2) * MINUTES))
    assert _generated(database, None, None) == 40
    assert _generated(database, HOUR * 60, HOUR * 60 + 60) == 20
    assert _generated(database, HOUR * 60 + 30, HOUR * 60 + 60) == 0  # a part of an hour is its minutes


def test_what_is_late_is_added_to_its_hour_as_well(database: Database) -> None:
    keeper = _keeper(database)
    _book(keeper, 0, 5)
    assert _roll(keeper, HOUR + 1) == 1
    _book(keeper, 1, 6)
    _book(keeper, 2, -120)  # in an hour that nothing was in
    keeper = _keeper(database, "meter-0:2")  # what starts anew knows which hours are added up
    _book(keeper, 3, 7)
    with database.reader.begin() as connection:
        assert connection.execute(select(func.sum(usage_hours.c.generated_tokens))).scalar_one() == 40
    _same_by_hours_and_minutes(database)


def test_a_tenant_that_is_added_up_again_has_its_hours_anew(database: Database) -> None:
    keeper = _keeper(database)
    for number, minute in enumerate((5, 6, 70)):
        _book(keeper, number, minute)
    assert _roll(keeper, HOUR + 1) == 1
    with database.writer.begin() as connection:
        connection.execute(usage_hours.update().values(generated_tokens=7))
    keeper.add_up_again("acme")
    _same_by_hours_and_minutes(database)
    assert _generated(database, None, None) == 30


def test_an_hour_that_has_not_ended_is_left(database: Database) -> None:
    keeper = _keeper(database)
    _book(keeper, 0, 5)
    assert _roll(keeper, HOUR) == 0
    with database.reader.begin() as connection:
        assert rolled_before(connection) == 0


def test_whenever_hours_are_added_up_they_are_their_minutes(new_url: NewUrl) -> None:
    @given(steps=st.lists(st.one_of(st.integers(-200, 400), st.just("roll"), st.just("start")), max_size=12))
    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def same(steps: list[int | str]) -> None:
        database = Database(new_url())
        try:
            keeper = _keeper(database)
            for number, step in enumerate(steps):
                if step == "roll":
                    keeper.roll_up(HOUR + 7)
                elif step == "start":
                    keeper = _keeper(database, f"meter-0:{number}")
                else:
                    assert isinstance(step, int)
                    _book(keeper, number, step)
            _same_by_hours_and_minutes(database)
        finally:
            database.close()

    same()
