"""The meter's side of a chaos run: bills, budgets, the reconciler's word, and the books made again from the streams.

In: an `Access`. Out: `Books` as `services/chaos/ground.py` asks for them.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from services.chaos.core.verdict import Audited, Bill
from services.chaos.ground import Budget, Rebuilt
from services.cli.output import CommandFailed
from services.cli.peers import Peers
from services.cli.rebuild import rebuilt
from tokenworks.errors import CallError
from tokenworks.v1 import metering_pb2 as metering


class MeterBooks:
    """The books of the mesh that `peers` reach.

    Args:
        nats: URL of the streams that books are rebuilt from.
        database: settings of the meter by which its database is read here; None where it cannot be.
    """

    def __init__(self, peers: Peers, nats: str, database: Mapping[str, str] | None) -> None:
        self._peers = peers
        self._nats = nats
        self._database = database

    async def audited(self) -> Audited:
        audit = await self._peers.audit()
        return Audited(
            rounds=audit.rounds,
            lag_events=audit.lag_events,
            missing_events=audit.missing_events,
            generated_tokens=audit.generated_tokens,
            delivered_tokens=audit.delivered_tokens,
            repaired=len(audit.repaired),
            standing=tuple(f"{each.kind} {each.subject}: {each.what}" for each in audit.standing),
        )

    async def bill(self, request_id: str) -> Bill | None:
        try:
            bill = await self._peers.bill(request_id)
        except CallError as error:
            if error.reason == "UnknownRequest":
                return None
            raise
        return Bill(bill.delivered_tokens, bill.generated_tokens, bill.price_nusd, bill.outcome)

    async def budget(self, tenant: str) -> Budget:
        budget = await self._peers.budget(tenant)
        return Budget(0 if budget.unlimited else budget.limit_nusd, budget.spent_nusd)

    async def set_budget(self, tenant: str, limit_nusd: int) -> None:
        await self._peers.set_budget(metering.SetBudgetRequest(tenant=tenant, limit_nusd=limit_nusd))

    async def rebuilt(self) -> Rebuilt:
        if self._database is None:
            return Rebuilt(0, None)
        with tempfile.TemporaryDirectory(prefix="tokenworks-rebuilt-") as folder:
            try:
                said = await rebuilt(self._nats, Path(folder) / "books.db", check=True, environment=self._database)
            except CommandFailed as error:
                return Rebuilt(0, [f"they could not be made again: {error}"])
        return Rebuilt(said["events"], said["differences"])
