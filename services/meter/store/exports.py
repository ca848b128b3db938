"""Usage and the ledger's lines, a bounded piece at a time, for exports and for who is told of each line.

In: minutes, ids, tenants. Out: rows, in the order of minutes or ids. From several threads; each piece is a snapshot.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select

from services.meter.core.amounts import Amounts
from services.meter.core.lines import BookedLine
from services.meter.core.usage import DIMENSIONS, UsageKey
from services.meter.store import rows, schema
from services.meter.store.books import Transaction
from services.meter.store.bulk import upsert
from services.meter.store.database import Database
from services.meter.store.invoice_tables import told_events

_OF_REQUESTS: Final = ("workload", "model", "slo_class")


class ExportReader:
    def __init__(self, database: Database) -> None:
        self._engine = database.reader

    def usage(
        self, after: UsageKey | None, from_minute: int, to_minute: int, tenants: Sequence[str], limit: int
    ) -> list[tuple[UsageKey, Amounts]]:
        """Usage of the minutes [from, to), in the order of its keys.

        Args:
            after: the last key of the piece before, which must be of minute `from_minute`; None: from the start of it.
        """
        table = schema.usage
        keys = [table.c.minute, *(table.c[name] for name in DIMENSIONS)]
        query = select(table).where(table.c.minute >= from_minute, table.c.minute < to_minute)
        if after is not None:
            later = table.c.minute > after.minute
            same = table.c.minute == after.minute
            for name in DIMENSIONS:
                later = later | (same & (table.c[name] > getattr(after, name)))
                same = same & (table.c[name] == getattr(after, name))
            query = query.where(later)
        if tenants:
            query = query.where(table.c.tenant.in_(sorted(tenants)))
        with self._engine.begin() as connection:
            found = connection.execute(query.order_by(*keys).limit(limit)).mappings()
            return [(UsageKey(*(row[each.name] for each in keys)), rows.amounts_of(row)) for row in found]

    def lines(
        self,
        after: int,
        through: int,
        *,
        limit: int,
        from_minute: int = 0,
        to_minute: int | None = None,
        tenants: Sequence[str] = (),
    ) -> list[BookedLine]:
        """Lines with ids in (after, through] that are dated in [from, to), in the order of their ids."""
        lines, requests = schema.entries, schema.requests
        names = [func.coalesce(requests.c[name], "").label(name) for name in _OF_REQUESTS]
        joined = lines.outerjoin(
            requests, (lines.c.request_id == requests.c.request_id) & (lines.c.tenant == requests.c.tenant)
        )
        query = select(lines, *names).select_from(joined).where(lines.c.id > after, lines.c.id <= through)
        query = query.where(lines.c.minute >= from_minute)
        if to_minute is not None:
            query = query.where(lines.c.minute < to_minute)
        if tenants:
            query = query.where(lines.c.tenant.in_(sorted(tenants)))
        with self._engine.begin() as connection:
            return [
                BookedLine(
                    row["id"],
                    row["booked_unix_ms"],
                    row["request_id"],
                    UsageKey(*(row[name] for name in UsageKey._fields)),
                    rows.amounts_of(row),
                )
                for row in connection.execute(query.order_by(lines.c.id).limit(limit)).mappings()
            ]

    def newest_line(self) -> int:
        """0 where there is none."""
        with self._engine.begin() as connection:
            return connection.execute(select(func.max(schema.entries.c.id))).scalar_one() or 0

    def told(self, receiver: str) -> tuple[str, int] | None:
        """The books' name and the last line that a receiver has acknowledged; None where it was never told of any."""
        query = select(told_events.c.books, told_events.c.line).where(told_events.c.receiver == receiver)
        with self._engine.begin() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else (row.books, row.line)


def put_told(transaction: Transaction, receiver: str, books: str, line: int) -> None:
    """Stores up to which line a receiver was told."""
    statement = upsert(transaction.connection.dialect, told_events)
    statement.write(transaction.connection, [(receiver, books, line)])
