"""Credit in the store: budgets, what is spent of them, what is out with holders, and what is held for requests.

In: what the cores changed, in the transaction of the batch or answer that changed it. Out: what stands, for a meter
that starts. Columns are named so that no database takes them for words of its own: `most` is a budget's limit, `starts`
an account's window.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Final

from sqlalchemy import Boolean, Column, Connection, Index, Table, Text, delete, select, update

from services.mesh.credit import Account
from services.mesh.events import BudgetTerms
from services.mesh.partitions import ALL, partition_of, partition_of_funder
from services.meter.core.funded import Held
from services.meter.core.leases import Changed, Lease
from services.meter.core.requests import Key
from services.meter.store.bulk import upsert
from services.meter.store.schema import integer, metadata, text

_KEYS_PER_QUERY: Final = 500
_NUMBERING: Final = 0x746B776D  # PostgreSQL's advisory lock


budgets = Table(
    "budgets",
    metadata,
    integer("budget", key=True),
    text("tenant"),
    text("scope"),
    text("subject"),
    text("unit"),
    text("period"),
    integer("most"),
    Column("hard", Boolean, nullable=False),
    text("notify_percents"),  # "80,100"
    integer("set_unix_ms"),
    integer("lifted_unix_ms"),  # 0: it stands
)

accounts = Table(
    "budget_accounts",
    metadata,
    integer("budget", key=True),
    text("subject", key=True),
    integer("starts", key=True),
    integer("spent"),
    integer("reached"),
)

leases = Table(
    "leases",
    metadata,
    integer("budget", key=True),
    text("subject", key=True),
    integer("starts", key=True),
    text("funder", key=True),
    integer("granted"),
    integer("returned"),
    integer("closed"),
)

closed_funders = Table(
    "closed_funders",
    metadata,
    text("funder", key=True),
    integer("closed_unix_ms"),
)

holders = Table(
    "credit_holders",
    metadata,
    text("funder", key=True),
    integer("linger_ms"),
)

funded = Table(
    "funded_requests",
    metadata,
    text("request_id", key=True),
    text("tenant", key=True),
    Column("is_open", Boolean, nullable=False),
    Column("body", Text, nullable=False),
    integer("changed_unix_ms"),
    Index("funded_requests_open", "is_open"),
)


class CreditStore:
    """What one transaction reads and writes of it; of the tenants of these partitions."""

    def __init__(self, connection: Connection, partitions: frozenset[int] = ALL) -> None:
        self._connection = connection
        self._partitions = partitions

    def _mine(self, tenant: str) -> bool:
        return partition_of(tenant) in self._partitions

    def _funds_mine(self, funder: str) -> bool:
        """Whether its holder holds credit of these partitions; one that names none may hold any."""
        partition = partition_of_funder(funder)
        return partition is None or partition in self._partitions

    def _elsewhere(self) -> set[int]:
        """Budgets of other tenants."""
        if self._partitions == ALL:
            return set()
        found = self._connection.execute(select(budgets.c.budget, budgets.c.tenant))
        return {row.budget for row in found if not self._mine(row.tenant)}

    def budgets(self) -> list[tuple[str, BudgetTerms]]:
        """Those that stand, each with its tenant."""
        found = self._connection.execute(select(budgets).where(budgets.c.lifted_unix_ms == 0))
        return [
            (
                row.tenant,
                BudgetTerms(
                    budget=row.budget,
                    scope=row.scope,
                    subject=row.subject,
                    unit=row.unit,
                    period=row.period,
                    limit=row.most,
                    hard=bool(row.hard),
                    notify_percents=tuple(int(each) for each in row.notify_percents.split(",") if each),
                    set_unix_ms=row.set_unix_ms,
                ),
            )
            for row in found
            if self._mine(row.tenant)
        ]

    def last_budget(self) -> int:
        """The highest number a budget ever had; 0 before the first. Others wait until this transaction ends."""
        if self._connection.dialect.name == "postgresql":
            self._connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_NUMBERING})")
        found = self._connection.execute(select(budgets.c.budget).order_by(budgets.c.budget.desc()).limit(1))
        return found.scalar() or 0

    def put_budget(self, tenant: str, terms: BudgetTerms) -> None:
        row = (
            terms.budget,
            tenant,
            terms.scope,
            terms.subject,
            terms.unit,
            terms.period,
            terms.limit,
            terms.hard,
            ",".join(str(each) for each in terms.notify_percents),
            terms.set_unix_ms,
            0,
        )
        upsert(self._connection.dialect, budgets).write(self._connection, [row])

    def lift_budget(self, budget: int, now_unix_ms: int) -> None:
        self._connection.execute(update(budgets).where(budgets.c.budget == budget).values(lifted_unix_ms=now_unix_ms))

    def accounts(self, since_s: int) -> list[tuple[Account, int, int]]:
        """Accounts that never refill, and those of windows that began at `since_s` or later: spent, and told of."""
        found = self._connection.execute(
            select(accounts).where((accounts.c.starts == 0) | (accounts.c.starts >= since_s))
        )
        others = self._elsewhere()
        return [
            (Account(row.budget, row.subject, row.starts), row.spent, row.reached)
            for row in found
            if row.budget not in others
        ]

    def leases(self) -> list[tuple[Account, str, Lease]]:
        others = self._elsewhere()
        return [
            (Account(row.budget, row.subject, row.starts), row.funder, Lease(row.granted, row.returned, row.closed))
            for row in self._connection.execute(select(leases))
            if row.budget not in others
        ]

    def lingers_ms(self) -> dict[str, int]:
        """How long what each funder has funded may take to come to light."""
        found = self._connection.execute(select(holders))
        return {row.funder: row.linger_ms for row in found if self._funds_mine(row.funder)}

    def closed_funders(self) -> list[str]:
        found = self._connection.execute(select(closed_funders.c.funder)).scalars()
        return [funder for funder in found if self._funds_mine(funder)]

    def write(self, changed: Changed, now_unix_ms: int) -> None:
        connection = self._connection
        upsert(connection.dialect, closed_funders).write(connection, [(funder, now_unix_ms) for funder in changed.over])
        for funder in changed.over:
            connection.execute(delete(holders).where(holders.c.funder == funder))
        upsert(connection.dialect, holders).write(connection, list(changed.lingers_ms))
        upsert(connection.dialect, accounts).write(
            connection, [(*account, spent, reached) for account, spent, reached in changed.accounts]
        )
        upsert(connection.dialect, leases).write(
            connection,
            [
                (*account, funder, lease.granted, lease.returned, lease.closed)
                for account, funder, lease in changed.leases
                if lease is not None
            ],
        )
        for account, funder, lease in changed.leases:
            if lease is None:
                connection.execute(
                    delete(leases).where(
                        leases.c.budget == account.budget,
                        leases.c.subject == account.subject,
                        leases.c.starts == account.window,
                        leases.c.funder == funder,
                    )
                )

    def open_requests(self) -> dict[Key, Held]:
        found = self._connection.execute(select(funded).where(funded.c.is_open.is_(True)))
        return {(row.request_id, row.tenant): _held(row.body) for row in found if self._mine(row.tenant)}

    def requests(self, keys: Iterable[Key]) -> dict[Key, Held]:
        """Those of the requests that anything was held for."""
        wanted = set(keys)
        ids = sorted({request_id for request_id, _ in wanted})
        found: dict[Key, Held] = {}
        for start in range(0, len(ids), _KEYS_PER_QUERY):
            some = select(funded).where(funded.c.request_id.in_(ids[start : start + _KEYS_PER_QUERY]))
            for row in self._connection.execute(some):
                if (key := (row.request_id, row.tenant)) in wanted:
                    found[key] = _held(row.body)
        return found

    def write_requests(self, changed: Iterable[tuple[Key, Held]], now_unix_ms: int) -> None:
        upsert(self._connection.dialect, funded).write(
            self._connection, [(*key, held.open, _body(held), now_unix_ms) for key, held in changed]
        )

    def forget(self, before_unix_ms: int) -> None:
        """Drops what was held for requests, and holders that were closed out, so long ago."""
        self._connection.execute(
            delete(funded).where(funded.c.is_open.is_(False), funded.c.changed_unix_ms < before_unix_ms)
        )
        self._connection.execute(delete(closed_funders).where(closed_funders.c.closed_unix_ms < before_unix_ms))
        self._connection.execute(delete(funded).where(funded.c.changed_unix_ms < before_unix_ms))


def _body(held: Held) -> str:
    return json.dumps(
        {
            "held": _rows_by_funder(held.held),
            "closed": _rows_by_funder(held.closed),
            "spent": _rows(held.spent),
            "ended": held.ended,
            "final": held.final,
            "funders_ended": sorted(held.funders_ended),
            "workers_ended": sorted(held.workers_ended),
        },
        separators=(",", ":"),
    )


def _held(body: str) -> Held:
    told = json.loads(body)
    return Held(
        held={funder: _accounts(rows) for funder, rows in told["held"].items()},
        closed={funder: _accounts(rows) for funder, rows in told["closed"].items()},
        spent=_accounts(told["spent"]),
        ended=told["ended"],
        final=told["final"],
        funders_ended=set(told["funders_ended"]),
        workers_ended=set(told["workers_ended"]),
    )


def _rows(amounts: Mapping[Account, int]) -> list[tuple[int, str, int, int]]:
    return [(*account, amount) for account, amount in amounts.items()]


def _rows_by_funder(amounts: Mapping[str, Mapping[Account, int]]) -> dict[str, list[tuple[int, str, int, int]]]:
    return {funder: _rows(some) for funder, some in amounts.items()}


def _accounts(rows: Iterable[tuple[int, str, int, int]]) -> dict[Account, int]:
    return {Account(budget, subject, window): amount for budget, subject, window, amount in rows}
