"""The router's budgets: those of words that it does not know bind nobody, and break nothing."""

from dataclasses import replace

from services.mesh.events import BudgetsSet, BudgetTerms
from services.router.core.credit import Budgets

KNOWN = BudgetTerms(
    budget=1,
    scope="tenant",
    subject="",
    unit="nusd",
    period="once",
    limit=9,
    hard=True,
    notify_percents=(),
    set_unix_ms=1,
)


def test_the_budgets_that_come_last_hold_whatever_their_meters_clock_says() -> None:
    budgets, less = Budgets(), replace(KNOWN, limit=KNOWN.limit // 2)
    assert budgets.set(BudgetsSet(tenant="acme", budgets=(KNOWN,), at_unix_ms=600_000))
    assert budgets.set(BudgetsSet(tenant="acme", budgets=(less,), at_unix_ms=1))
    assert budgets.terms("acme") == [less]
    assert not budgets.set(BudgetsSet(tenant="acme", budgets=(less,), at_unix_ms=2))


def test_budgets_of_a_newer_meters_words_are_passed_over_and_the_others_hold() -> None:
    budgets = Budgets()
    others = replace(KNOWN, budget=2, scope="galaxy"), replace(KNOWN, budget=3, period="fortnight")
    assert budgets.set(BudgetsSet(tenant="acme", budgets=(*others, KNOWN), at_unix_ms=1))
    assert budgets.terms("acme") == [KNOWN]
    assert budgets.set(BudgetsSet(tenant="acme", budgets=others, at_unix_ms=2))
    assert not budgets
