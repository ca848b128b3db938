"""Gives out credit: answers routers and workers on `tw.leases`, and tells the mesh what budgets there are.

In: holders' words, as many at once as wait; budgets set. Out: answers, after the transaction that holds what they say;
`BudgetsSet`, `CreditRecalled`, `BudgetReached`. Credit of holders that have died comes back when all that was in the
streams by then is booked: no hold of theirs can come to light any more.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from services.mesh import conventions as names
from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.credit import Account
from services.mesh.errors import BusUnavailable, InvariantBroken, OutboxFull, QueueFull
from services.mesh.events import (
    BudgetReached,
    BudgetsSet,
    BudgetTerms,
    CreditRecalled,
    Event,
    LeaseAsked,
    LeaseGranted,
    RequestFinished,
)
from services.mesh.partitions import partition_of_funder
from services.mesh.telemetry import Telemetry
from services.meter.bookkeeper import Bookkeeper
from services.meter.catch_up import READS
from services.meter.kept_shard import ShardMoved
from services.meter.store.books import Transaction
from services.meter.store.shards import durable_of
from services.meter.thread import WorkThreads
from services.meter.vault import Vault

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 0.5
_RETRY_S: Final = 0.1


class Lessor:
    """The voice of the vault. Lives in the event loop.

    Args:
        missing: how many events have been missing for so short a time that they may still come.
    """

    def __init__(
        self,
        meter: str,
        *,
        bookkeeper: Bookkeeper,
        writing: WorkThreads,
        bus: Bus,
        clock: Clock,
        telemetry: Telemetry,
        missing: Callable[[], int],
    ) -> None:
        self._meter = meter
        self._bookkeeper = bookkeeper
        self._writing = writing
        self._bus = bus
        self._clock = clock
        self._missing = missing
        self._leaving: frozenset[int] = frozenset()
        self._narrowed = asyncio.Event()
        self._reached = telemetry.meter.create_counter(
            names.BUDGETS_REACHED, "{budget}", "Percentages of budgets that spending has come to"
        )

    async def serve(self) -> None:
        """Answers holders of the shard's partitions until cancelled."""
        while True:
            self._narrowed.clear()
            partitions = self._bookkeeper.partitions - self._leaving
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(self._bus.serve_leases(self._answer, partitions))
                await self._narrowed.wait()
                serving.cancel()

    def leave(self, partitions: frozenset[int]) -> None:
        """Answers nobody of these any more; they are given away, or with none they were not."""
        self._leaving = partitions
        self._narrowed.set()

    async def look_after(self) -> None:
        """Has the credit of dead holders come back, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                overdue = await self._writing.run(self._bookkeeper.overdue)
                if overdue.dead or overdue.requests:
                    await self._all_booked()
                    await self._writing.run(partial(self._bookkeeper.close_overdue, overdue.dead))
            except InvariantBroken:
                raise  # another meter has the books
            except (BusUnavailable, QueueFull) as error:
                log.debug("credit of dead holders stays where it is: %s", error)
            except Exception:
                log.exception("credit of dead holders could not be taken back; tried again in %g s", _LOOK_EVERY_S)

    async def _all_booked(self) -> None:
        """Waits until all that is in the streams now is booked, also what was given to a meter before this one: the
        server gives that out again only after a while, and says of none of it that it waits."""
        reads = [(durable_of(name, self._bookkeeper.shard), channels) for name, channels in READS]
        lines = [(await self._bus.progress(channels, durable)).last for durable, channels in reads]
        for (durable, channels), line in zip(reads, lines, strict=True):
            while True:
                progress = await self._bus.progress(channels, durable)
                if progress.passed(line) and not self._missing():
                    break
                await asyncio.sleep(_LOOK_EVERY_S)

    async def set(self, tenant: str, terms: BudgetTerms) -> BudgetTerms:
        """Sets a budget, or changes the one of the same scope, subject, unit and period."""

        def store(vault: Vault, transaction: Transaction) -> BudgetTerms:
            return vault.set(transaction.credit, tenant, terms)

        stored = await self._writing.run(lambda: self._bookkeeper.with_vault(store, tenant))
        await self.announce(tenant)
        return stored

    async def lift(self, tenant: str, terms: BudgetTerms) -> bool:
        """Lifts that budget; whether there was one."""

        def store(vault: Vault, transaction: Transaction) -> bool:
            return vault.lift(transaction.credit, tenant, terms)

        lifted = await self._writing.run(lambda: self._bookkeeper.with_vault(store, tenant))
        await self.announce(tenant)
        return lifted

    async def announce(self, tenant: str = "") -> None:
        """Tells what budgets a tenant has; of all tenants that have some, where none is named."""
        looked = partial(self._bookkeeper.look, lambda vault, _: vault.budgets(tenant), tenant)
        found = [each for some in await self._writing.run(looked) for each in some]
        of: dict[str, list[BudgetTerms]] = {tenant: []} if tenant else {}
        for owner, terms in found:
            of.setdefault(owner, []).append(terms)
        for owner, budgets in of.items():
            event = BudgetsSet(tenant=owner, budgets=tuple(budgets), at_unix_ms=self._clock.unix_ms())
            while True:
                try:
                    self._bus.publish(event)
                    break
                except OutboxFull:
                    await asyncio.sleep(_RETRY_S)

    def tell(self, reached: Sequence[BudgetReached], written_off: Sequence[RequestFinished]) -> None:
        """Tells what budgets have come to, and the ends of requests that are not billed."""
        for each in reached:
            log.warning(
                "budget %d of tenant %s (%s %s) has come to %d %%: %d of %d %s",
                each.budget,
                each.tenant,
                each.scope,
                each.subject,
                each.percent,
                each.spent,
                each.limit,
                each.unit,
            )
            self._reached.add(
                1, {names.TENANT: each.tenant, names.BUDGET_SCOPE: each.scope, names.BUDGET_PERCENT: each.percent}
            )
        for finished in written_off:
            log.warning(
                "request %s is not billed: whoever funded it was gone for so long that its credit is others'",
                finished.request_id,
            )
        events: list[Event] = [*reached, *(replace(finished, router=self._meter) for finished in written_off)]
        for event in events:
            try:
                self._bus.publish(event)
            except OutboxFull:
                log.error("the bus takes no more: %s is in this log only", event)

    async def _answer(self, asked: Sequence[LeaseAsked]) -> Sequence[LeaseGranted]:
        def answer(vault: Vault, transaction: Transaction) -> tuple[list[LeaseGranted], list[Account]]:
            for each in asked:
                if partition_of_funder(f"{each.holder}/") not in (None, *transaction.partitions):
                    raise ShardMoved(f"{each.holder} asks for credit that another meter gives out now")
            return [vault.answer(each) for each in asked], vault.take_recalled()

        granted, recalled = await self._writing.run(lambda: self._bookkeeper.with_vault(answer))
        for account in recalled:
            self._bus.publish(
                CreditRecalled(
                    meter=self._meter,
                    budget=account.budget,
                    subject=account.subject,
                    window=account.window,
                    at_unix_ms=self._clock.unix_ms(),
                )
            )
        return granted
