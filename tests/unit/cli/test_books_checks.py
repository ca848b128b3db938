from services.cli.books_checks import checks_of
from services.cli.checks import Severity
from tokenworks.v1 import metering_pb2 as metering


def _answer(*standing: metering.Drift) -> metering.AuditResponse:
    return metering.AuditResponse(rounds=3, generated_tokens=120, delivered_tokens=100, standing=standing)


def test_books_that_agree_are_shown_as_the_equation_they_satisfy():
    [check] = checks_of(_answer())
    assert check.severity is Severity.OK
    assert "120 tokens generated = 100 delivered and billed + 20 waste" in check.found


def test_what_does_not_agree_is_wrong_and_says_what_would_do():
    drift = metering.Drift(kind="lines", subject="r", what="they differ", done="a backup tells")
    _, check = checks_of(_answer(drift))
    assert (check.severity, check.would_do) == (Severity.WRONG, "a backup tells")
    assert check.found == "r: they differ"


def test_what_a_dead_process_left_behind_is_a_note():
    _, check = checks_of(_answer(metering.Drift(kind="unfinished", subject="r", what="no end", done="nothing")))
    assert check.severity is Severity.NOTE


def test_books_not_looked_through_yet_are_not_called_sound():
    [check] = checks_of(metering.AuditResponse())
    assert check.severity is Severity.NOTE


def test_of_very_many_findings_the_first_are_shown():
    checks = checks_of(_answer(*[metering.Drift(kind="lost", subject=str(each)) for each in range(50)]))
    assert (len(checks), checks[-1].found) == (22, "30 more like these")


def test_what_was_dropped_is_said_with_what_it_was_billed():
    audit = metering.AuditResponse(
        rounds=1,
        detail_from_unix_ms=1_793_577_600_000,
        dropped_lines=1200,
        dropped_requests=1000,
        dropped_price_nusd=2_500_000_000,
    )
    said = next(each for each in checks_of(audit) if each.name == "books: detail").found
    assert "before 2026-11-02: 1,000 requests, 1,200 lines of the ledger, billed $2.50" in said


def test_months_that_detail_is_kept_apart_by_are_said():
    _, check = checks_of(metering.AuditResponse(rounds=1, months=["2026-11", "2026-12", "2027-01"]))
    assert "3 months, 2026-11 to 2027-01" in check.found
