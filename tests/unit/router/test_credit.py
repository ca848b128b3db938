"""The router's budgets: those of words that it does not know bind nobody, and break nothing."""

from dataclasses import replace

import pytest

from services.mesh.events import BudgetsSet, BudgetTerms
from services.router.core import credit as core
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


def test_more_tenants_than_there_may_be_are_left_out_and_the_known_ones_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MOST_TENANTS", 2)
    budgets = Budgets()
    for tenant in ("a", "b", "c"):
        budgets.set(BudgetsSet(tenant=tenant, budgets=(KNOWN,), at_unix_ms=1))
    assert [bool(budgets.terms(each)) for each in ("a", "b", "c")] == [True, True, False]
    assert budgets.set(BudgetsSet(tenant="a", budgets=(), at_unix_ms=2))
    assert budgets.set(BudgetsSet(tenant="c", budgets=(KNOWN,), at_unix_ms=3))
