"""Whom the meter grants credit."""

from dataclasses import replace

import pytest

from services.mesh.credit import Account
from services.mesh.events import BudgetTerms, LeaseAsked, LeaseLine
from services.meter.core import leases as core
from services.meter.core.leases import Leases

TERMS = BudgetTerms(
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


def asked(holder: str) -> LeaseAsked:
    return LeaseAsked(holder=holder, epoch="0000000000001-aa", ended=False, lines=(), unused=(), linger_ms=0)


def test_a_holder_whose_name_is_longer_than_any_is_refused_and_not_remembered() -> None:
    leases = Leases(30.0)
    assert not leases.answer(asked("router-0"), 0.0, 0).refused
    assert "70017 characters is too long" in leases.answer(asked("r" * 70_000), 0.0, 0).refused
    assert leases.dead(1e6) == ["router-0/0000000000001-aa"]


def test_more_holders_than_there_may_be_are_refused_and_known_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_MOST_HOLDERS", 3)
    leases = Leases(30.0)
    for name in ("a", "b", "c"):
        assert not leases.answer(asked(name), 0.0, 0).refused
    assert "3 holders of credit are known" in leases.answer(asked("d"), 0.0, 0).refused
    assert not leases.answer(asked("a"), 1.0, 0).refused


def test_accounts_that_were_only_asked_about_are_forgotten_and_those_with_credit_are_not() -> None:
    leases = Leases(30.0)
    leases.budgets[1] = "acme", replace(TERMS, scope="session", subject="*", limit=100)
    for number in range(50):
        line = LeaseLine(budget=1, subject=f"s{number}", window=0, granted=0, returned=0, least=0, want=0, idle=0)
        leases.answer(replace(asked("router-0"), lines=(line,)), 0.0, 0)
    wanted = LeaseLine(budget=1, subject="real", window=0, granted=0, returned=0, least=10, want=10, idle=0)
    leases.answer(replace(asked("router-0"), lines=(wanted,)), 0.0, 0)
    leases.spend(Account(1, "spent", 0), 5)
    assert len(leases.accounts_of(1)) == 52
    leases.forget(0)
    assert [account.subject for account, _ in leases.accounts_of(1)] == ["real", "spent"]
    assert leases.free(Account(1, "real", 0)) == 90
