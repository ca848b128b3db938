"""What counts as a violation: streams, books, budgets, what is left behind; and the figures that are told beside."""

from dataclasses import replace

import pytest

from services.chaos.core.faults import Fault, FaultKind, Role
from services.chaos.core.figures import Done, pauses, slow_share
from services.chaos.core.streams import Heard, Outcome, wrong_with
from services.chaos.core.verdict import (
    Audited,
    Bill,
    Footprint,
    Left,
    check_books,
    check_budget,
    check_conservation,
    check_left,
    check_rebuild,
    check_streams,
)

WELL = Outcome(
    request_id="r1",
    tenant="chaos",
    question=0,
    direct=True,
    tokens=10,
    price_nusd=100,
    ttft_s=0.1,
    longest_pause_s=0.5,
    pause_began_s=1.0,
    calls=1,
    began_s=0.5,
    ended_s=3.0,
    worker="worker-0",
)
BILL = Bill(delivered_tokens=10, generated_tokens=12, price_nusd=100, outcome="length")
AUDITED = Audited(rounds=3, lag_events=0, missing_events=0, generated_tokens=12, delivered_tokens=10, repaired=0)


def heard(*pieces: tuple[int, int, str]) -> Heard:
    found = Heard(0.0)
    for number, (first, count, text) in enumerate(pieces):
        found.piece(first, count, text, 0.1 + number)
    return found


def test_a_whole_stream_is_well() -> None:
    found = heard((0, 2, "a b"), (2, 1, " c"))
    assert wrong_with(found, "a b c", 3) == ""
    assert (found.ttft_s, found.longest_pause_s, found.pause_began_s) == pytest.approx((0.1, 1.0, 0.1))


def test_a_stream_that_is_out_of_credit_may_end_early_and_may_not_say_anything_else() -> None:
    assert wrong_with(heard((0, 2, "a b")), "a b c", 2, cut_short=True) == ""
    assert "character 2" in wrong_with(heard((0, 2, "a x")), "a b c", 2, cut_short=True)


def test_what_was_sent_to_a_client_that_had_gone_on_and_ran_out_of_credit_there_may_be_more_than_it_has() -> None:
    sent = replace(BILL, delivered_tokens=12, price_nusd=120)
    left = replace(WELL, calls=2, unfunded=True)
    assert not check_conservation([left], {"r1": sent}).violations
    assert check_conservation([replace(left, calls=1)], {"r1": sent}).violations
    assert check_conservation([replace(left, unfunded=False)], {"r1": sent}).violations
    assert check_conservation([left], {"r1": replace(BILL, delivered_tokens=9)}).violations
    assert "by nobody" in str(check_conservation([left], {"r1": replace(sent, generated_tokens=11)}).violations)


@pytest.mark.parametrize(
    ("pieces", "expected", "told", "says"),
    [
        (((0, 1, "a"), (2, 1, "c")), "ac", 2, "token 1 was due and token 2 came"),
        (((0, 2, "a b"), (1, 1, "b")), "a bb", 3, "token 2 was due and token 1 came"),
        (((0, 2, "a b"),), "a b", 3, "its end tells of 3 tokens, and 2 came"),
        (((0, 2, "a x"),), "a b", 2, "differs from the undisturbed one at character 2"),
        (((0, 2, "a b"),), "a b c", 2, "differs from the undisturbed one at character 3"),
    ],
)
def test_a_gap_a_repeat_a_lost_end_and_a_changed_text_are_named(
    pieces: tuple[tuple[int, int, str], ...], expected: str, told: int, says: str
) -> None:
    assert says in wrong_with(heard(*pieces), expected, told)


def test_streams_that_failed_are_violations_and_refusals_only_where_nobody_should_be_refused() -> None:
    failed = replace(WELL, request_id="r2", wrong="failed after 3 tokens")
    refused = replace(WELL, request_id="r3", tokens=0, refused_because="CreditExhausted")
    check = check_streams([WELL, failed, refused], tolerated=("chaos",))
    assert [each.split(" (")[0] for each in check.violations] == ["stream r2"]
    assert len(check_streams([WELL, refused]).violations) == 1


@pytest.mark.parametrize(
    ("bill", "says"),
    [
        (None, "nothing is booked"),
        (replace(BILL, delivered_tokens=9), "the client has 10 tokens, 9 are booked"),
        (replace(BILL, generated_tokens=8), "2 are booked as made by nobody"),
        (replace(BILL, price_nusd=99), "billed 99 nUSD, the client was told 100"),
        (replace(BILL, outcome="running"), "never reported its end"),
    ],
)
def test_what_is_booked_has_to_be_what_was_delivered_at_the_price_that_was_told(bill: Bill | None, says: str) -> None:
    assert check_conservation([WELL], {"r1": BILL}).violations == ()
    check = check_conservation([WELL], {} if bill is None else {"r1": bill})
    assert any(says in each for each in check.violations)


def test_books_that_disagree_with_themselves_or_lack_events_are_violations() -> None:
    assert check_books(AUDITED).violations == ()
    assert AUDITED.level
    for wrong in (
        replace(AUDITED, standing=("billed r1: 3 tokens more",)),
        replace(AUDITED, lag_events=2),
        replace(AUDITED, missing_events=1),
        replace(AUDITED, generated_tokens=9),
    ):
        assert check_books(wrong).violations
        assert not wrong.level
    assert not replace(AUDITED, rounds=0).level


def test_a_budget_is_counted_exactly_never_overspent_and_holds_once_spent() -> None:
    assert check_budget("t", 100, 100, 100, refused=True).violations == ()
    assert check_budget("t", 100, 40, 40, refused=None).violations == ()
    assert "of a budget of 100" in check_budget("t", 100, 101, 101, refused=True).violations[0]
    assert "by its bills" in check_budget("t", 100, 90, 80, refused=None).violations[0]
    assert "still served" in check_budget("t", 100, 100, 100, refused=False).violations[0]


def test_rebuilt_books_that_differ_are_violations_and_none_to_compare_is_said() -> None:
    assert check_rebuild([], 10).violations == ()
    assert check_rebuild(["bill r1"], 10).violations == ("bill r1",)
    assert "not compared" in check_rebuild(None, 0).compared


def test_what_runs_on_or_piles_up_is_a_violation() -> None:
    few, many = Footprint(20, 5, 1 << 20), Footprint(200, 60, 1 << 20)
    same = Left(before={"router-0": few}, after={"router-0": few}, consumers_before=3, consumers=3)
    assert check_left(same).violations == ()
    assert check_left(Left(running={("router-0", "in_flight"): 0.0})).violations == ()
    assert "in_flight is 1" in check_left(Left(running={("router-0", "in_flight"): 1.0})).violations[0]
    piled = check_left(Left(before={"router-0": few}, after={"router-0": many}, consumers_before=3, consumers=4))
    assert [each.split(" has ")[1].split(";")[0] for each in piled.violations] == [
        "200 open files",
        "60 threads",
        "4 readers of its streams",
    ]


def test_many_violations_of_one_promise_are_told_in_part_and_counted() -> None:
    outcomes = [replace(WELL, request_id=f"r{number}", wrong="broken") for number in range(30)]
    violations = check_streams(outcomes).violations
    assert len(violations) == 21
    assert violations[-1] == "and 10 more"


def done(kind: FaultKind, at_s: float, back_after_s: float, **fault: float) -> Done:
    return Done(Fault(1, at_s, kind, Role.WORKER, "worker-0", **fault), at_s, back_after_s)


def test_pauses_are_told_by_the_kind_of_fault_that_they_fell_into() -> None:
    killed, slowed = done(FaultKind.KILL, 10.0, 3.0), done(FaultKind.SLOW, 50.0, 2.0)
    outcomes = [
        replace(WELL, pause_began_s=111.0, longest_pause_s=0.9),
        replace(WELL, pause_began_s=140.0, longest_pause_s=9.0),  # in no fault
        replace(WELL, pause_began_s=149.5, longest_pause_s=1.0),  # reaches into the second
    ]
    told = {each.kind: each.longest_s for each in pauses([killed, slowed], outcomes, load_began_s=100.0)}
    assert told == {FaultKind.KILL: 0.9, FaultKind.SLOW: 1.0}


def test_the_share_of_a_slow_worker_counts_what_began_once_it_could_be_known() -> None:
    slowed = done(FaultKind.SLOW, 10.0, 4.0, lasts_s=4.0, factor=10.0)
    began = [(110.2, "worker-0"), (110.6, "worker-0"), (111.0, "worker-1"), (113.0, "worker-2"), (114.5, "worker-0")]
    outcomes = [replace(WELL, began_s=at_s, worker=worker) for at_s, worker in began]
    share = slow_share([slowed], outcomes, load_began_s=100.0, workers=3)
    assert (share.began, share.at_slow, share.fair) == (3, 1, pytest.approx(1 / 3))
