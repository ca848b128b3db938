"""What other meters booked, for who leads: the ledger's newest lines, and what tenants with budgets have spent.

In: the id of the last line that was seen. Out: lines added up, each committed after all with lower ids.
"""

from collections.abc import Collection
from typing import Final

from sqlalchemy import func, select

from services.mesh.partitions import partition_of
from services.meter.core.amounts import NOTHING, Amounts
from services.meter.core.budgets import Credit
from services.meter.core.usage import UsageKey
from services.meter.store import rows, schema
from services.meter.store.database import Database
from services.meter.store.shards import Shard, all_shards

_MOST_LINES: Final = 20_000


class Following:
    """Reads the books in `database`. May be called from several threads."""

    def __init__(self, database: Database) -> None:
        self._engine = database.reader

    def shards(self) -> list[Shard]:
        with self._engine.begin() as connection:
            return all_shards(connection)

    def last_line(self) -> int:
        with self._engine.begin() as connection:
            return connection.execute(select(func.max(schema.entries.c.id))).scalar() or 0

    def lines(self, after: int, partitions: Collection[int]) -> tuple[int, dict[UsageKey, Amounts]]:
        """The id of the last line, and usage by those of these partitions' tenants."""
        entries, requests = schema.entries, schema.requests
        own = [name for name in UsageKey._fields if name in entries.c]
        keys = [(entries if name in own else requests).c[name] for name in UsageKey._fields]
        same = (entries.c.request_id == requests.c.request_id) & (entries.c.tenant == requests.c.tenant)
        query = (
            select(entries.c.id, *keys, *(entries.c[name] for name in Amounts._fields))
            .select_from(entries.join(requests, same))
            .where(entries.c.id > after)
            .order_by(entries.c.id)
            .limit(_MOST_LINES)
        )
        last, found = after, dict[UsageKey, Amounts]()
        with self._engine.begin() as connection:
            for row in connection.execute(query).mappings():
                last = row["id"]
                if partition_of(row["tenant"]) in partitions:
                    key = UsageKey(*(row[name] for name in UsageKey._fields))
                    found[key] = found.get(key, NOTHING).plus(rows.amounts_of(row))
        return last, found

    def credits(self, partitions: Collection[int]) -> list[Credit]:
        """Of those of these partitions' tenants that ever had a budget."""
        tenants = schema.tenants
        with self._engine.begin() as connection:
            return [
                Credit(row.tenant, row.limit_nusd, row.spent_nusd)
                for row in connection.execute(select(tenants).where(tenants.c.budgeted_unix_ms > 0))
                if partition_of(row.tenant) in partitions
            ]
