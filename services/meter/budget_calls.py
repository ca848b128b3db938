"""Budgets as operators set and see them: from the wire to terms, checked value by value, and back with what is left.

In: SetBudgetRequest, ListBudgetsRequest. Out: BudgetTerms for the lessor; BudgetState from the vault.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, TypeVar

from services.mesh.conventions import LONGEST_NAME
from services.mesh.credit import Account, Period, Scope, Unit, window_at, window_end
from services.mesh.errors import InvalidRequest
from services.mesh.events import BudgetTerms
from services.meter.core.leases import AccountState
from services.meter.store.books import Transaction
from services.meter.vault import NOTIFY_PERCENTS, Vault
from tokenworks.v1 import metering_pb2 as wire

E = TypeVar("E", bound=StrEnum)
_MOST_PERCENT: Final = 1000
_MOST_BUDGETS: Final = 1000  # of a tenant; a router knows them all


def terms_of(request: wire.SetBudgetRequest) -> BudgetTerms:
    """The budget that is to be set or lifted; its number is not known yet.

    Raises:
        InvalidRequest: names the field, its value, and what would do.
    """
    scope = _one_of(Scope, "scope", request.scope or Scope.TENANT)
    if scope is Scope.TENANT and request.subject:
        raise InvalidRequest(f"subject = {request.subject!r}, but the budget is the tenant's own; leave it empty")
    if scope is not Scope.TENANT and not 1 <= len(request.subject) <= LONGEST_NAME:
        raise InvalidRequest(
            f"subject = {request.subject!r} must name the {scope}, in 1 to {LONGEST_NAME} characters, or be *"
        )
    if request.limit < 0:
        raise InvalidRequest(f"limit = {request.limit} is negative; give 0 or more, or lift the budget")
    if wrong := [each for each in request.notify_percents if not 1 <= each <= _MOST_PERCENT]:
        raise InvalidRequest(f"notify_percents has {wrong[0]}; each must be 1 to {_MOST_PERCENT}")
    return BudgetTerms(
        budget=0,
        scope=scope,
        subject=request.subject,
        unit=_one_of(Unit, "unit", request.unit),
        period=_one_of(Period, "period", request.period or Period.ONCE),
        limit=request.limit,
        hard=not request.soft,
        notify_percents=tuple(sorted(set(request.notify_percents))) or NOTIFY_PERCENTS,
        set_unix_ms=0,
    )


def is_tenants_own(terms: BudgetTerms) -> bool:
    """Whether it is the budget of dollars that `limit_nusd` sets, too."""
    return (terms.scope, terms.unit, terms.period) == (Scope.TENANT, Unit.NUSD, Period.ONCE)


def check_room(vault: Vault, tenant: str) -> None:
    """Raises InvalidRequest: the tenant has as many budgets as it may."""
    if len(vault.budgets(tenant)) >= _MOST_BUDGETS:
        raise InvalidRequest(f"tenant {tenant!r} has {_MOST_BUDGETS} budgets, the most there may be; lift some")


def states(tenant: str, unix_s: int, vault: Vault, _: Transaction) -> list[wire.BudgetState]:
    """Every budget of a tenant, or of all, with its open windows."""
    return [_state(owner, terms, vault.accounts_of(terms.budget), unix_s) for owner, terms in vault.budgets(tenant)]


def _state(
    tenant: str, terms: BudgetTerms, accounts: Sequence[tuple[Account, AccountState]], unix_s: int
) -> wire.BudgetState:
    present = window_at(terms.period, unix_s)
    shown = {account.subject: state for account, state in accounts if account.window == present}
    if terms.subject != "*":
        shown.setdefault(terms.subject, AccountState())
    end = window_end(terms.period, present)
    return wire.BudgetState(
        budget=terms.budget,
        tenant=tenant,
        scope=terms.scope,
        subject=terms.subject,
        unit=terms.unit,
        period=terms.period,
        limit=terms.limit,
        soft=not terms.hard,
        notify_percents=terms.notify_percents,
        accounts=[
            wire.BudgetAccount(
                subject=subject,
                from_unix_ms=present * 1000,
                to_unix_ms=(end or 0) * 1000,
                spent=state.spent,
                held=state.out,
                remaining=max(0, terms.limit - state.spent - state.out),
            )
            for subject, state in sorted(shown.items())
        ],
    )


def _one_of(kind: type[E], name: str, value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise InvalidRequest(f"{name} = {value!r}, must be one of: {', '.join(kind)}") from None
