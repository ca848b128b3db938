"""Budgets at the meter, case by case: what has gone wrong elsewhere, by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from services.mesh.bus import Delivered, EventId
from services.mesh.clock import FakeClock
from services.mesh.credit import Account, Period, Scope, Unit
from services.mesh.events import BudgetTerms, Event, Funding, Hold, Unused
from services.mesh.price_book import PriceBook
from services.mesh.purse import Purse
from services.mesh.subjects import channel_of, subject_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.costs import RateCard
from services.meter.store.database import Database
from tests.unit.meter.facts import START_MS, entry, finished, tokens

CARD = RateCard({"nvidia-h100-sxm": 2_690_000_000}, 80_000_000)
ACCOUNT = Account(1, "", 0)
TERMS = BudgetTerms(
    budget=0,
    scope=Scope.TENANT,
    subject="",
    unit=Unit.TOKENS,
    period=Period.ONCE,
    limit=1000,
    hard=True,
    notify_percents=(50, 80),
    set_unix_ms=0,
)


@contextmanager
def opened(path: Path, writer: str = "meter-0:1", clock: FakeClock | None = None) -> Iterator[Bookkeeper]:
    database = Database(f"sqlite:///{path}")
    yield Bookkeeper(database, writer, PriceBook(), CARD, START_MS, clock=clock or FakeClock(START_MS))
    database.close()


def delivered(*events: Event, first: int = 1) -> list[Delivered]:
    return [
        Delivered(EventId(f"all.{channel_of(each).name}", "e", number), each, subject_of(each), stream_sequence=number)
        for number, each in enumerate(events, start=first)
    ]


def obtained(keeper: Bookkeeper, purse: Purse, amount: int) -> int:
    """What the purse has idle after it has asked for so much."""
    purse.wait_for(ACCOUNT, amount, 0)
    word = purse.word()
    answer = keeper.with_vault(lambda vault, _: vault.answer(word))
    purse.answered(word, answer, 0.0, 0.0)
    purse.wait_for(ACCOUNT, -amount, 0)
    return purse.idle(ACCOUNT, 0.0)


def held(purse: Purse, amount: int) -> tuple[Funding, ...]:
    holds = (Hold(budget=1, subject="", window=0, amount=amount),)
    purse.hold(holds)
    return (Funding(funder=purse.funder, holds=holds),)


def standing(keeper: Bookkeeper) -> tuple[int, int]:
    """Spent, and out with holders."""
    ((_, state),) = keeper.with_vault(lambda vault, _: vault.accounts_of(1))
    return state.spent, state.out


def test_a_restarted_meter_knows_what_was_spent_and_what_is_out(tmp_path: Path) -> None:
    path, purse = tmp_path / "meter.db", Purse("router-0", "1")
    with opened(path) as keeper:
        keeper.with_vault(lambda vault, at: vault.set(at.credit, "acme", TERMS))
        assert obtained(keeper, purse, 600) == 600
        funding = held(purse, 250)
        told = replace(entry("r", 0, 50, last=True), funding=funding)
        keeper.book(delivered(tokens(told), replace(finished("r", 50), funding=funding)), START_MS)
        assert standing(keeper) == (150, 350)
    with opened(path, "meter-0:2") as keeper:
        assert standing(keeper) == (150, 350)
        # The events come again: their acks were lost.
        keeper.book(delivered(tokens(told), replace(finished("r", 50), funding=funding)), START_MS)
        assert standing(keeper) == (150, 350)
        assert obtained(keeper, Purse("router-1", "1"), 1000) == 500


def test_a_hold_is_closed_and_its_bill_counted_in_one_step_and_only_with_the_last_word(tmp_path: Path) -> None:
    with opened(tmp_path / "meter.db") as keeper:
        keeper.with_vault(lambda vault, at: vault.set(at.credit, "acme", TERMS))
        purse = Purse("router-0", "1")
        obtained(keeper, purse, 300)
        funding = held(purse, 300)
        keeper.book(delivered(tokens(replace(entry("r", 0, 20), funding=funding))), START_MS)
        assert standing(keeper) == (0, 300)
        # Its deliverer has reported, but a worker may still tell of its prompt.
        keeper.book(delivered(replace(finished("r", 30), funding=funding), first=2), START_MS)
        assert standing(keeper) == (0, 300)
        keeper.book(delivered(tokens(entry("r", 20, 12, last=True)), first=3), START_MS)
        assert standing(keeper) == (130, 0)


def test_a_hold_of_which_nothing_was_made_comes_back(tmp_path: Path) -> None:
    with opened(tmp_path / "meter.db") as keeper:
        keeper.with_vault(lambda vault, at: vault.set(at.credit, "acme", TERMS))
        purse = Purse("router-0", "1")
        obtained(keeper, purse, 1000)
        (funding,) = held(purse, 1000)
        assert obtained(keeper, Purse("router-1", "1"), 10) == 0
        purse.never_used(Unused(request_id="r", tenant="acme", holds=funding.holds))
        word = purse.word()
        keeper.with_vault(lambda vault, _: vault.answer(word))
        assert standing(keeper) == (0, 250)  # with the same word it asked for more in bulk
        assert obtained(keeper, Purse("router-2", "1"), 1000) == 750


def test_credit_of_a_router_that_started_anew_comes_back_but_for_what_its_requests_hold(tmp_path: Path) -> None:
    clock = FakeClock(START_MS)
    with opened(tmp_path / "meter.db", clock=clock) as keeper:
        keeper.with_vault(lambda vault, at: vault.set(at.credit, "acme", TERMS))
        first = Purse("router-0", "1", linger_ms=2000)
        obtained(keeper, first, 900)
        funding = held(first, 400)
        keeper.book(delivered(tokens(replace(entry("r", 0, 20), funding=funding))), START_MS)
        second = Purse("router-0", "2")
        assert obtained(keeper, second, 500) == 100
        keeper.close_overdue(keeper.overdue().dead)
        assert standing(keeper) == (0, 1000)  # what it funded may still come to light
        clock.advance(2.1)
        keeper.close_overdue(keeper.overdue().dead)
        assert standing(keeper) == (0, 500)  # its request still runs, for all that is known
        keeper.book(delivered(tokens(entry("r", 20, 5, last=True)), first=2), START_MS)
        keeper.close_overdue(keeper.overdue().dead)
        assert standing(keeper) == (125, 100)


def test_a_zombie_has_no_say(tmp_path: Path) -> None:
    clock = FakeClock(START_MS)
    with opened(tmp_path / "meter.db", clock=clock) as keeper:
        keeper.with_vault(lambda vault, at: vault.set(at.credit, "acme", TERMS))
        purse = Purse("router-0", "1")
        obtained(keeper, purse, 900)
        clock.advance(3600.0)
        keeper.close_overdue(keeper.overdue().dead)
        assert standing(keeper) == (0, 0)
        word = purse.word()
        assert "start anew" in keeper.with_vault(lambda vault, _: vault.answer(word)).refused
        assert not purse.valid(clock.monotonic_s())


def test_what_is_heard_of_only_after_its_funder_was_closed_out_is_not_billed(tmp_path: Path) -> None:
    clock = FakeClock(START_MS)
    with opened(tmp_path / "meter.db", clock=clock) as keeper:
        keeper.with_vault(lambda vault, at: vault.set(at.credit, "acme", TERMS))
        purse = Purse("router-0", "1")
        obtained(keeper, purse, 900)
        funding = held(purse, 500)
        clock.advance(3600.0)
        keeper.close_overdue(keeper.overdue().dead)
        booked = keeper.book(delivered(tokens(replace(entry("r", 0, 20), funding=funding))), START_MS)
        (written_off,) = booked.written_off
        assert (written_off.request_id, written_off.delivered_count) == ("r", 0)
        keeper.book(delivered(written_off, first=2), START_MS)
        ((credit, _),) = keeper.credits()
        assert credit.spent_nusd == 0
        # Its deliverer was as late, and says what the client has.
        keeper.book(delivered(replace(finished("r", 20), funding=funding), first=3), START_MS)
        ((credit, _),) = keeper.credits()
        assert (credit.spent_nusd, standing(keeper)) == (0, (0, 0))


def test_what_a_known_request_is_said_to_hold_more_after_its_funder_was_closed_out_is_not_billed(
    tmp_path: Path,
) -> None:
    clock = FakeClock(START_MS)
    with opened(tmp_path / "meter.db", clock=clock) as keeper:
        keeper.with_vault(lambda vault, at: vault.set(at.credit, "acme", TERMS))
        cut_off = Purse("router-0", "1")
        obtained(keeper, cut_off, 900)
        told = held(cut_off, 150)
        keeper.book(delivered(tokens(replace(entry("r", 0, 20), funding=told))), START_MS)
        # What it holds from here on is heard of by nobody: it is cut off from the bus for longer than it lingers.
        more = (Hold(budget=1, subject="", window=0, amount=400),)
        late = (Funding(funder=cut_off.funder, holds=more),)
        clock.advance(3600.0)
        keeper.close_overdue(keeper.overdue().dead)
        other = Purse("router-1", "1")
        free = 1000 - sum(standing(keeper))
        assert obtained(keeper, other, free) == free  # all of it, and it may all be spent

        made = tokens(replace(entry("r", 20, 270, last=True), funding=late))
        booked = keeper.book(delivered(made, replace(finished("r", 290), funding=late), first=2), START_MS)
        (written_off,) = booked.written_off
        assert (written_off.request_id, written_off.outcome) == ("r", "written_off")
        keeper.book(delivered(written_off, first=4), START_MS)
        keeper.close_overdue(keeper.overdue().dead)
        assert standing(keeper) == (0, free)  # never beyond the limit
        again = keeper.book(delivered(replace(finished("r", 290), funding=late), first=5), START_MS)
        assert again.entries == []
        assert standing(keeper) == (0, free)


def test_what_is_said_again_of_a_hold_that_was_known_is_billed(tmp_path: Path) -> None:
    clock = FakeClock(START_MS)
    with opened(tmp_path / "meter.db", clock=clock) as keeper:
        keeper.with_vault(lambda vault, at: vault.set(at.credit, "acme", TERMS))
        cut_off = Purse("router-0", "1")
        obtained(keeper, cut_off, 900)
        told = held(cut_off, 150)
        keeper.book(delivered(tokens(replace(entry("r", 0, 20), funding=told))), START_MS)
        clock.advance(1800.0)
        keeper.close_overdue(keeper.overdue().dead)
        made = tokens(replace(entry("r", 20, 10, last=True), funding=told))
        booked = keeper.book(delivered(made, replace(finished("r", 30), funding=told), first=2), START_MS)
        assert booked.written_off == []
        ((credit, _),) = keeper.credits()
        assert credit.spent_nusd > 0


def test_reached_percentages_are_told_once_each(tmp_path: Path) -> None:
    with opened(tmp_path / "meter.db") as keeper:
        keeper.with_vault(lambda vault, at: vault.set(at.credit, "acme", TERMS))
        first = keeper.book(delivered(tokens(entry("r", 0, 450))), START_MS)
        again = keeper.book(delivered(tokens(entry("r", 450, 10)), first=2), START_MS)
        more = keeper.book(delivered(tokens(entry("r", 460, 300)), first=3), START_MS)
        assert [[each.percent for each in booked.reached] for booked in (first, again, more)] == [[50], [], [80]]
