"""Which budgets a request falls under, and what a request gets that they do not pay for. Pure.

In: the tenants' budgets, a request in plain values. Out: its bounds, widest first; or the error that its caller gets:
`RateLimited` where the budget refills within the hour, `CreditExhausted` where it does not.
"""

from collections.abc import Sequence
from math import ceil
from typing import Final

from services.mesh.credit import EVERY, Period, Scope, window_at, window_end
from services.mesh.errors import CreditExhausted, RateLimited, TokenworksError
from services.mesh.events import BudgetsSet, BudgetTerms
from services.mesh.holds import Bound
from services.router.core.request import Asked, PromptKind

_SCOPES: Final[tuple[str, ...]] = tuple(Scope)
_PERIODS: Final[frozenset[str]] = frozenset(Period)
_SOON: Final = frozenset({Period.MINUTE, Period.HOUR})
MOST_TENANTS: Final = 262_144
_ESTIMATE_MARGIN: Final = 1.25  # a prompt may have more tokens than it seems to
_ESTIMATE_MORE: Final = 16


class Budgets:
    """All tenants' budgets, as the meter told last."""

    def __init__(self) -> None:
        self._of: dict[str, Sequence[BudgetTerms]] = {}

    def set(self, event: BudgetsSet) -> bool:
        """Takes in a tenant's budgets, those whose words this version knows; whether they are news. Of more tenants
        than `MOST_TENANTS` none are taken in: what is known holds.

        The word that comes last counts, in the order of the stream: clocks of two meters may differ.
        """
        before = self._of.get(event.tenant)
        known = [each for each in event.budgets if each.scope in _SCOPES and each.period in _PERIODS]
        if known and before is None and len(self._of) >= MOST_TENANTS:
            return False
        if known:
            self._of[event.tenant] = sorted(known, key=lambda each: _SCOPES.index(each.scope))
        else:
            self._of.pop(event.tenant, None)
        return self._of.get(event.tenant) != before

    def __bool__(self) -> bool:
        return bool(self._of)

    def terms(self, tenant: str) -> Sequence[BudgetTerms]:
        """A tenant's budgets, widest first."""
        return self._of.get(tenant, ())

    def bounds(self, asked: Asked) -> Sequence[Bound]:
        """The budgets that the request falls under, widest first; none for most."""
        budgets = self._of.get(asked.tenant)
        if not budgets:
            return ()
        names = {
            Scope.TENANT: "",
            Scope.TEAM: asked.team,
            Scope.KEY: asked.key,
            Scope.WORKLOAD: asked.workload,
            Scope.SESSION: asked.session_id,
        }
        bounds = []
        for each in budgets:
            name = names[Scope(each.scope)]
            # A request without a team, say, falls under no team's budget, also not under every team's.
            if each.scope == Scope.TENANT or (name and each.subject in (EVERY, name)):
                bounds.append(Bound(each.budget, name, each.unit, each.period, each.hard))
        return bounds

    def refusal(self, asked: Asked, bound: Bound, unix_ms: int) -> TokenworksError:
        """What the caller gets whose request that budget does not pay for."""
        terms = next((each for each in self.terms(asked.tenant) if each.budget == bound.budget), None)
        whose = f"{terms.scope if terms else 'budget'} {bound.subject or asked.tenant!r}".replace("''", "")
        limit = "" if terms is None else f" of {_amount(terms.limit, terms.unit)}"
        end = window_end(bound.period, window_at(bound.period, unix_ms // 1000))
        if end is None:
            return CreditExhausted(f"{whose} has spent its budget{limit}, or holds what is left of it; add credit")
        wait_s = max(0.001, end - unix_ms / 1000)
        message = f"{whose} has spent its budget{limit} per {bound.period}; it refills in {wait_s:.0f} s"
        kind = RateLimited if bound.period in _SOON else CreditExhausted
        return kind(message, retry_after_s=wait_s)


def prompt_bound(asked: Asked, estimated_tokens: int) -> int:
    """As many prompt tokens as a request is taken to have at most, until its worker has counted them."""
    if asked.prompt.kind is PromptKind.TOKEN_IDS:
        return asked.prompt.size
    return ceil(estimated_tokens * _ESTIMATE_MARGIN) + _ESTIMATE_MORE


def _amount(limit: int, unit: str) -> str:
    return f"{limit} tokens" if unit == "tokens" else f"{limit / 1e9:.6f} USD"
