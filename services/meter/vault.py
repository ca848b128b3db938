"""The credit of all tenants, as one meter keeps it: the cores of `core/leases.py` and `core/funded.py`, and their rows.

In: batches that are booked, holders' words, budgets set. Out: answers and events, once the transaction that they belong
to is committed. What is in memory is what the database has; when a transaction fails, it is dropped and read again. All
methods are called from the thread that writes.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

from services.mesh.clock import Clock
from services.mesh.credit import Account, Period, Scope, Unit
from services.mesh.ends import Named, undelivered_end
from services.mesh.events import (
    BudgetReached,
    BudgetTerms,
    LeaseAsked,
    LeaseGranted,
    Outcome,
    RequestAdmitted,
    RequestFinished,
)
from services.meter.core.amounts import Place
from services.meter.core.funded import FundedRequests
from services.meter.core.leases import AccountState, Leases
from services.meter.core.ledger import Entry
from services.meter.core.requests import Key, Request
from services.meter.core.runs import Run
from services.meter.store.credit import CreditStore

NOTIFY_PERCENTS: Final = (80, 100)
_WINDOWS_S: Final = 62 * 86_400  # longer than two of any budget's windows


class Vault:
    """All budgets, and what is out of them.

    Args:
        ttl_s: how long a holder may give out credit without an answer.
    """

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._leases = Leases(ttl_s)
        self._funded = FundedRequests(self._leases)
        self._loaded = False

    def forget(self) -> None:
        """What the store has is the truth after a transaction failed."""
        self._leases = Leases(self._ttl_s)
        self._funded = FundedRequests(self._leases)
        self._loaded = False

    def load(self, store: CreditStore) -> None:
        """Takes over what is stored, once."""
        if self._loaded:
            return
        now_s, unix_s = self._clock.monotonic_s(), self._clock.unix_ms() // 1000
        self._leases.adopt(
            store.budgets(),
            store.accounts(unix_s - _WINDOWS_S),
            store.leases(),
            over=store.closed_funders(),
            lingers_ms=store.lingers_ms(),
            now_s=now_s,
        )
        found = store.open_requests()
        self._funded.adopt(found, found, now_s)
        self._loaded = True

    def store(self, store: CreditStore) -> None:
        """Writes what changed since the last call."""
        now_unix_ms = self._clock.unix_ms()
        store.write(self._leases.take_changed(), now_unix_ms)
        store.write_requests(self._funded.take_changed(), now_unix_ms)

    # Booking

    def adopt(self, store: CreditStore, keys: Collection[Key]) -> None:
        """Loads what is held for these requests, where it is not at hand."""
        if self._leases.budgets and (absent := self._funded.absent(keys)):
            self._funded.adopt(absent, store.requests(absent), self._clock.monotonic_s())

    @property
    def keeps(self) -> bool:
        """Whether anybody has a budget, so that it matters what is held for requests."""
        return bool(self._leases.budgets)

    def note(
        self, admitted: Iterable[RequestAdmitted], runs: Iterable[Run], finished: Iterable[RequestFinished]
    ) -> list[RequestFinished]:
        """Takes in what a batch says of credit, in this order; the ends of requests that are not to be billed."""
        if not self.keeps:
            return []
        now_s, written_off = self._clock.monotonic_s(), dict[Key, RequestFinished]()
        for event in admitted:
            self._funded.note(event, now_s)
        for run in runs:
            if run.funding is not None and self._funded.unbacked(run.key, chain.from_iterable(run.funding)):
                written_off[run.key] = _written_off(run.entry, run.place, run.at_unix_ms)
            self._funded.note_run(run, now_s)
        for end in finished:
            key = (end.request_id, end.tenant)
            if end.funding and end.outcome != Outcome.WRITTEN_OFF and self._funded.unbacked(key, end.funding):
                place = Place(end.worker, end.pool, end.accelerator)
                written_off[key] = _written_off(end, place, end.at_unix_ms)
            self._funded.note(end, now_s)
        return list(written_off.values())

    def settle(self, requests: Sequence[Request], entries: Iterable[Entry]) -> None:
        """Takes in what the ledger has just booked."""
        if self._leases.budgets:
            self._funded.settle(requests)
            self._funded.count_unfunded(entries)

    def reached(self) -> list[BudgetReached]:
        """What is to be told of spending."""
        return self._leases.reached(self._clock.unix_ms())

    # Budgets

    def budgets(self, tenant: str = "") -> list[tuple[str, BudgetTerms]]:
        """Those that stand, of one tenant or of all."""
        return [each for _, each in sorted(self._leases.budgets.items()) if tenant in ("", each[0])]

    def accounts_of(self, budget: int) -> list[tuple[Account, AccountState]]:
        """What is known of a budget's open windows and of those just over."""
        return self._leases.accounts_of(budget)

    def set(self, store: CreditStore, tenant: str, terms: BudgetTerms, *, spent: int = 0) -> BudgetTerms:
        """Sets a budget; one of the same scope, subject, unit and period is changed. Its number is found here.

        Args:
            spent: what counts as spent of a new one that never refills.
        """
        known = self._like(tenant, terms)
        number = known.budget if known else store.last_budget() + 1
        terms = replace(terms, budget=number, set_unix_ms=self._clock.unix_ms())
        self._leases.put(tenant, terms, spent=spent)
        store.put_budget(tenant, terms)
        return terms

    def lift(self, store: CreditStore, tenant: str, terms: BudgetTerms) -> bool:
        """Lifts the budget of that scope, subject, unit and period; whether there was one."""
        known = self._like(tenant, terms)
        if known is None:
            return False
        self._leases.lift(known.budget)
        store.lift_budget(known.budget, self._clock.unix_ms())
        return True

    def set_limit(self, store: CreditStore, tenant: str, limit_nusd: int | None, spent_nusd: int) -> None:
        """Sets or lifts the budget of dollars, once, that a tenant has as a whole."""
        terms = tenant_budget(limit_nusd or 0)
        if limit_nusd is None:
            self.lift(store, tenant, terms)
        else:
            self.set(store, tenant, terms, spent=spent_nusd)

    def has_limit(self, tenant: str) -> bool:
        """Whether a budget of dollars, once, bounds the tenant as a whole."""
        return self._like(tenant, tenant_budget(0)) is not None

    def restore(self, store: CreditStore, tenant: str, budgets: Iterable[BudgetTerms]) -> int:
        """Takes over budgets with their numbers, where these are not known; how many were not."""
        lacking = [each for each in budgets if each.budget not in self._leases.budgets]
        for terms in lacking:
            self._leases.put(tenant, terms)
            store.put_budget(tenant, terms)
        return len(lacking)

    def _like(self, tenant: str, terms: BudgetTerms) -> BudgetTerms | None:
        what = (terms.scope, terms.subject, terms.unit, terms.period)
        for each in self._leases.of_tenant(tenant):
            if (each.scope, each.subject, each.unit, each.period) == what:
                return each
        return None

    # Leases

    def answer(self, asked: LeaseAsked) -> LeaseGranted:
        """What a holder gets; its unused holds are closed first."""
        now_s = self._clock.monotonic_s()
        for unused in asked.unused:
            self._funded.unused(f"{asked.holder}/{asked.epoch}", unused)
        now_unix_ms = self._clock.unix_ms()
        return replace(self._leases.answer(asked, now_s, now_unix_ms // 1000), at_unix_ms=now_unix_ms)

    def take_recalled(self) -> list[Account]:
        return self._leases.take_recalled()

    def dead(self) -> list[str]:
        """Funders of which nothing new can come to light, once all that is in the streams is booked."""
        return self._leases.dead(self._clock.monotonic_s())

    def overdue(self, dead: Collection[str]) -> list[Key]:
        """Open requests to look at, see `close_overdue`."""
        return self._funded.overdue(dead, self._clock.monotonic_s())

    def close_overdue(self, dead: Sequence[str], requests: Iterable[Request]) -> None:
        """Gives back what dead funders had, but for what their open requests hold."""
        self._funded.close_overdue(requests, dead, self._clock.monotonic_s())
        for funder in dead:
            self._leases.close_out(funder, self._funded.held_by(funder))

    def tidy(self) -> None:
        """Drops windows that are long over."""
        self._leases.forget(self._clock.unix_ms() // 1000)


def _written_off(request: Named, place: Place, at_unix_ms: int) -> RequestFinished:
    """The end of a request of which nothing is billed."""
    return replace(
        undelivered_end(request, at_unix_ms),
        outcome=Outcome.WRITTEN_OFF,
        worker=place.worker,
        pool=place.pool,
        accelerator=place.accelerator,
    )


def tenant_budget(limit_nusd: int) -> BudgetTerms:
    """The budget of dollars, once, of a tenant as a whole; its number is found when it is set."""
    return BudgetTerms(
        budget=0,
        scope=Scope.TENANT,
        subject="",
        unit=Unit.NUSD,
        period=Period.ONCE,
        limit=limit_nusd,
        hard=True,
        notify_percents=NOTIFY_PERCENTS,
        set_unix_ms=0,
    )
