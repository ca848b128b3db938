"""Credit of each tenant, and which changes of it are due to be announced. Pure.

In: budgets set, and nano-dollars booked. Out: `Credit` states to publish: at once when a tenant becomes exhausted, gets
credit again, or its budget was set; else at most every `ANNOUNCE_EVERY_S` per tenant. A state stays due until
`announced` says that it went out, so a full outbox loses nothing. Tenants that never had a budget are not known here:
what they have spent is in the books, and nobody announces it.
"""

from dataclasses import dataclass
from typing import Final

ANNOUNCE_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Credit:
    """What a tenant may spend and has spent; `limit_nusd` is None where nothing limits it."""

    tenant: str
    limit_nusd: int | None
    spent_nusd: int

    @property
    def unlimited(self) -> bool:
        return self.limit_nusd is None

    @property
    def remaining_nusd(self) -> int:
        """What is left, >= 0; 0 for an unlimited tenant, where it means nothing."""
        return 0 if self.limit_nusd is None else max(0, self.limit_nusd - self.spent_nusd)

    @property
    def exhausted(self) -> bool:
        return self.limit_nusd is not None and self.spent_nusd >= self.limit_nusd


@dataclass(slots=True)
class _Account:
    credit: Credit
    announced: Credit | None = None
    announced_s: float = float("-inf")


class Accounts:
    """The credit of every tenant that has, or had, a budget."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._due: set[str] = set()

    def restore(self, credit: Credit) -> None:
        """Takes over the stored state of a tenant that ever had a budget; due at once: what readers know may be old."""
        self._accounts[credit.tenant] = _Account(credit)
        self._due.add(credit.tenant)

    def set_limit(self, tenant: str, limit_nusd: int | None, spent_nusd: int) -> Credit:
        """Sets a tenant's budget; None lifts it. `spent_nusd`: by the books, where it is its first."""
        account = self._accounts.setdefault(tenant, _Account(Credit(tenant, None, spent_nusd)))
        account.credit = Credit(tenant, limit_nusd, account.credit.spent_nusd)
        account.announced = None
        self._due.add(tenant)
        return account.credit

    def spend(self, tenant: str, amount_nusd: int) -> None:
        """Books an amount, negative when a correction gives some back."""
        account = self._accounts.get(tenant)
        if account is None:
            return
        before = account.credit
        account.credit = Credit(tenant, before.limit_nusd, before.spent_nusd + amount_nusd)
        if amount_nusd and not before.unlimited:
            self._due.add(tenant)

    def of(self, tenant: str) -> Credit | None:
        """A tenant's credit; None for one that never had a budget."""
        account = self._accounts.get(tenant)
        return account.credit if account else None

    def due(self, now_s: float) -> tuple[list[Credit], float | None]:
        """What to announce now, and the seconds until the next may be due (None when nothing waits)."""
        ready: list[Credit] = []
        wait_s: float | None = None
        for tenant in self._due:
            account = self._accounts[tenant]
            left_s = account.announced_s + ANNOUNCE_EVERY_S - now_s
            urgent = account.announced is None or account.announced.exhausted != account.credit.exhausted
            if urgent or left_s <= 0:
                ready.append(account.credit)
            else:
                wait_s = left_s if wait_s is None else min(wait_s, left_s)
        return ready, wait_s

    def announced(self, credit: Credit, now_s: float) -> None:
        """Notes that this state went out."""
        account = self._accounts[credit.tenant]
        account.announced, account.announced_s = credit, now_s
        if account.credit == credit:
            self._due.discard(credit.tenant)
