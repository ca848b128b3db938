"""Tells routers what tenants have left: publishes `CreditChanged` as `core/budgets.py` says that it is due.

A crash between booking and publishing loses nothing: at its start the meter restores every budget from the database,
and all of them are due.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import OutboxFull
from services.mesh.events import CreditChanged
from services.meter.core.budgets import Accounts, Credit

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.1


class Announcer:
    """The accounts of tenants with budgets, and their voice on the bus. Lives in the event loop."""

    def __init__(self, accounts: Accounts, bus: Bus, clock: Clock) -> None:
        self._accounts = accounts
        self._bus = bus
        self._clock = clock
        self._woken = asyncio.Event()

    def of(self, tenant: str) -> Credit | None:
        """See `Accounts.of`."""
        return self._accounts.of(tenant)

    def spend(self, spent: Mapping[str, int]) -> None:
        """Takes in what was booked, nano-dollars by tenant."""
        for tenant, amount_nusd in spent.items():
            self._accounts.spend(tenant, amount_nusd)
        self._woken.set()

    def correct(self, tenant: str, spent_nusd: int) -> None:
        """Takes in what a tenant has spent in all, where the books were corrected."""
        if (credit := self._accounts.of(tenant)) is not None:
            self.spend({tenant: spent_nusd - credit.spent_nusd})

    def set_limit(self, tenant: str, limit_nusd: int | None, spent_nusd: int) -> Credit:
        """Takes in a budget that was just stored; None lifts it. `spent_nusd`: see `Accounts.set_limit`."""
        credit = self._accounts.set_limit(tenant, limit_nusd, spent_nusd)
        self._woken.set()
        return credit

    async def run(self) -> None:
        """Publishes what is due, until cancelled."""
        while True:
            self._woken.clear()
            ready, wait_s = self._accounts.due(self._clock.monotonic_s())
            for credit in ready:
                if not self._announce(credit):
                    wait_s = _RETRY_S
                    break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), wait_s)

    def _announce(self, credit: Credit) -> bool:
        event = CreditChanged(
            tenant=credit.tenant,
            limit_nusd=credit.limit_nusd or 0,
            spent_nusd=credit.spent_nusd,
            remaining_nusd=credit.remaining_nusd,
            unlimited=credit.unlimited,
            exhausted=credit.exhausted,
            suspended=False,
            at_unix_ms=self._clock.unix_ms(),
        )
        try:
            self._bus.publish(event)
        except OutboxFull:
            log.warning("the outbox of credit changes is full; %s and later ones are announced when it drains", credit)
            return False
        self._accounts.announced(credit, self._clock.monotonic_s())
        return True
