"""Dropping detail that is kept no longer, and what is left in its place, so that all sums stay what they were.

In: hours that are closed: settled, added up by caller, told to whoever is told of lines, and on an invoice where the
house issues any. Out: of requests whose every line is dated in them, their rows, segments and lines are gone, added to
their tenant's row in `dropped`; of postings, the amounts of one transaction that differ by the request alone are one.
On PostgreSQL a month whose every request may go does so at once (`months.py`); the requests of a month that goes on
wait for its end. Usage by minute and hour, hours by caller, invoices and what tenants were billed stay.

What holds before and after, and is checked without end: lines + dropped = usage, per tenant.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, tuple_

from services.meter.core.amounts import Amounts
from services.meter.core.journal import Subject
from services.meter.core.presence import MS_PER_HOUR
from services.meter.core.requests import Key
from services.meter.store import months, schema
from services.meter.store.bill_tables import bill_hours, postings
from services.meter.store.books import Transaction
from services.meter.store.bulk import upsert
from services.meter.store.caller_tables import rolled_hours
from services.meter.store.database import Database
from services.meter.store.dropped import DETAIL, POSTINGS, REQUESTS, dropped, dropped_lines, hour_of, put_hour
from services.meter.store.hours import rolled_before
from services.meter.store.invoice_tables import invoices, told_events
from services.meter.store.months import Summed, ids_of_others
from services.meter.store.sums import whole_sum

_HOURS_PER_DAY: Final = 24
_MINUTES: Final = 60
_OF_REQUESTS: Final = (schema.entries, schema.segments, schema.requests)


@dataclass(frozen=True, slots=True)
class Progress:
    """Hours since 1970: detail below `before` is not kept, and is gone where `requests` and `postings` are there."""

    before: int
    requests: int
    postings: int


class DetailDropper:
    """Args:
    receiver: who is told of each line; empty: nobody is.
    """

    def __init__(self, database: Database, receiver: str) -> None:
        self._engine = database.reader
        self._receiver = receiver

    def progress(self, wanted_hour: int) -> Progress:
        """How far it is; `before` goes on towards `wanted_hour` by whole days, as far as hours are closed."""
        with self._engine.begin() as connection:
            before = hour_of(connection, DETAIL)
            bills, rolled = bill_hours.c, rolled_hours.c
            open_hours = (
                select(func.min(bills.hour))
                .outerjoin(rolled_hours, rolled.hour == bills.hour)
                .where(
                    bills.hour >= before,
                    bills.hour < wanted_hour,
                    or_(bills.settled_unix_ms == 0, bills.last_line > bills.settled_line, _not_added_up()),
                )
            )
            first_open = connection.execute(open_hours).scalar_one()
            end = min(wanted_hour, rolled_before(connection), wanted_hour if first_open is None else first_open)
            whole_days = end // _HOURS_PER_DAY * _HOURS_PER_DAY
            return Progress(max(before, whole_days), hour_of(connection, REQUESTS), hour_of(connection, POSTINGS))

    def candidates(self, last: Key, before_hour: int, limit: int) -> tuple[list[Key], Key | None]:
        """Of the next `limit` requests in the order of their keys, those that ended in time; the last one looked at."""
        table, before_ms = schema.requests, before_hour * MS_PER_HOUR
        keys = (table.c.request_id, table.c.tenant)
        query = select(*keys, table.c.finished, table.c.finished_unix_ms, table.c.admitted_unix_ms)
        with self._engine.begin() as connection:
            some = query.where(tuple_(*keys) > last, ids_of_others(connection, before_hour))
            found = connection.execute(some.order_by(*keys).limit(limit)).all()
        old = [
            (row.request_id, row.tenant)
            for row in found
            if (row.finished_unix_ms if row.finished else row.admitted_unix_ms) < before_ms
        ]
        return old, (found[-1].request_id, found[-1].tenant) if len(found) == limit else None

    def drop(self, transaction: Transaction, keys: Collection[Key], before_hour: int) -> list[Key]:
        """Drops those of the requests whose every line may go; which."""
        connection = transaction.connection
        lines, wanted = schema.entries.c, set(keys)
        ids = sorted({request_id for request_id, _ in wanted})
        totals = (func.count(), func.max(lines.id), func.max(lines.minute))
        query = select(lines.request_id, lines.tenant, *totals, *(whole_sum(lines[name]) for name in Amounts._fields))
        most, cuts = self._last_line(connection), _cuts(connection)
        gone: dict[str, list[int]] = defaultdict(lambda: [0] * (1 + len(Amounts._fields)))
        for request_id, tenant, count, newest, minute, *sums in connection.execute(
            query.where(lines.request_id.in_(ids)).group_by(lines.request_id, lines.tenant)
        ):
            key = (request_id, tenant)
            if key not in wanted:
                continue
            amounts = Amounts(*map(int, sums))
            invoiced = cuts is None or not amounts.price_nusd or newest <= cuts.get(tenant, 0)
            if minute >= before_hour * _MINUTES or newest > most or not invoiced:
                wanted.remove(key)
                continue
            gone[tenant] = [a + b for a, b in zip(gone[tenant], (count, *amounts), strict=True)]
        add = upsert(connection.dialect, dropped, added=("lines", *Amounts._fields))
        add.write(connection, [(tenant, *sums) for tenant, sums in gone.items()])
        for tenant in {tenant for _, tenant in wanted}:
            own = sorted(request_id for request_id, whose in wanted if whose == tenant)
            for table in _OF_REQUESTS:
                connection.execute(delete(table).where(table.c.request_id.in_(own), table.c.tenant == tenant))
        return sorted(wanted)

    def due_months(self, before_hour: int) -> list[int]:
        """The months of which all may go, unless `month` says why not; none on SQLite."""
        with self._engine.begin() as connection:
            return months.due_months(connection, before_hour)

    def month(self, month: int, before_hour: int) -> Summed:
        """Adds up a month that is due, while others book."""
        with self._engine.begin() as connection:
            gone = dropped_lines(connection)
            return months.add_up(connection, month, before_hour=before_hour, cuts=_cuts(connection), gone=gone)

    def drop_month(self, transaction: Transaction, summed: Summed, before_hour: int) -> int | None:
        """Drops a month as a whole, where it is as it was added up; how many requests, None where it is not so."""
        connection = transaction.connection
        gone = dropped_lines(connection)
        through = self._last_line(connection)
        count = months.drop_month(connection, summed, before_hour=before_hour, through=through, gone=gone)
        if count is not None:
            add = upsert(connection.dialect, dropped, added=("lines", *Amounts._fields))
            add.write(connection, [(tenant, *sums) for tenant, sums in summed.by_tenant.items()])
        return count

    def next_hour(self, from_hour: int, before_hour: int) -> int | None:
        """The first hour of some in which anything was posted."""
        hour = postings.c.hour
        query = select(func.min(hour)).where(hour >= from_hour, hour < before_hour)
        with self._engine.begin() as connection:
            found: int | None = connection.execute(query).scalar_one()
            return found

    def merge_postings(self, transaction: Transaction, hour: int) -> int:
        """Makes one posting of those of an hour that differ by the request alone; how many are gone."""
        table, connection = postings, transaction.connection
        newest = connection.execute(select(func.max(table.c.id))).scalar_one() or 0
        # The newest stays: SQLite numbers on from the highest id that is there.
        which = and_(table.c.hour == hour, table.c.request_id != "", table.c.id != newest)
        names = ("recorded_unix_ms", "transaction_id", "kind", "hour", "account", *Subject._fields)
        keys = [table.c[name] for name in names if name != "request_id"]
        sums = [whole_sum(table.c[name]).label(name) for name in ("amount_nusd", "carbon_ug")]
        query = select(*keys, *sums, func.min(table.c.id).label("id"), func.count().label("count"))
        found = connection.execute(query.where(which).group_by(*keys)).mappings().all()
        if not found:
            return 0
        connection.execute(delete(table).where(which))
        # By the first id of each, so that it is on the invoice that all of them were on: none cuts a transaction.
        merged = [{**row, "request_id": ""} for row in found]
        count = sum(int(row.pop("count")) for row in merged)
        connection.execute(table.insert(), merged)
        return count - len(merged)

    def put_progress(self, transaction: Transaction, what: str, hour: int) -> None:
        """Stores how far `DETAIL`, `REQUESTS` or `POSTINGS` is."""
        put_hour(transaction.connection, what, hour)

    def _last_line(self, connection: Connection) -> int:
        """Lines up to it may go: sorted into hours, told, and not the newest, which SQLite numbers on from."""
        newest = connection.execute(select(func.max(schema.entries.c.id))).scalar_one() or 0
        in_hours = connection.execute(select(func.max(bill_hours.c.last_line))).scalar_one() or 0
        if not self._receiver:
            return min(newest - 1, in_hours)
        query = select(told_events.c.line).where(told_events.c.receiver == self._receiver)
        return min(newest - 1, in_hours, connection.execute(query).scalar_one_or_none() or 0)


def _not_added_up() -> ColumnElement[bool]:
    """An hour with lines that is not added up by caller with all of these."""
    bills, rolled = bill_hours.c, rolled_hours.c
    return and_(bills.first_line > 0, or_(rolled.hour.is_(None), rolled.stale, rolled.last_line != bills.last_line))


def _cuts(connection: Connection) -> dict[str, int] | None:
    """Up to which line each tenant's invoices have; None where the house issues none."""
    query = select(invoices.c.tenant, func.max(invoices.c.last_line).label("last_line")).group_by(invoices.c.tenant)
    return {row.tenant: row.last_line for row in connection.execute(query)} or None
