"""PostgreSQL keeps requests, their places and their lines apart by month, so that a month's detail goes at once.

In: the time. Out: partitions of `PARTED`, all three by the same ranges of `request_id`: an id that a router made begins
with its millisecond, and sorts by it byte by byte (`COLLATE "C"`). `entries_y2026m11` has the lines of the requests of
November 2026, whenever they were booked; `_below` and `_above` have what sorts before the first month and behind all
that will come, which ids that clients choose mostly do; `_default` has what no other has. SQLite has plain
tables.

A line's number is given by a sequence. Its key there is `id, request_id`: what tables are parted by has to be in
each key.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    case,
    func,
    or_,
    select,
    text,
    true,
)

from services.meter.core.amounts import Amounts
from services.meter.core.presence import MS_PER_HOUR
from services.meter.store import schema
from services.meter.store.bill_tables import postings
from services.meter.store.sums import whole_sum

PARTED: Final = (schema.requests, schema.segments, schema.entries)
_NAMES: Final = tuple(each.name for each in PARTED)
AHEAD: Final = 3  # months that are made before they begin
_ABOVE: Final = "04"  # what no id of before the year 2109 is above
_LOCK_MS: Final = 500  # below the server's deadlock_timeout: who only reads is never the one that is given up
_ADD_UP_MS: Final = 1_800_000  # a month of a large fleet is read through; nobody waits for it
_NAME: Final = re.compile(rf"{schema.entries.name}_y(\d{{4}})m(\d\d)")
_MINUTES: Final = 60
_MS_PER_DAY: Final = 24 * MS_PER_HOUR


def month_of(unix_ms: int) -> int:
    """Months since the year 0."""
    day = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return day.year * 12 + day.month - 1


def begin_of(month: int) -> int:
    """Its first millisecond since 1970."""
    year, number = divmod(month, 12)
    return int(datetime(year, number + 1, 1, tzinfo=UTC).timestamp()) * 1000


def bound_of(month: int) -> str:
    """The least text that an id of the month may be."""
    digits = f"{begin_of(month):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def suffix_of(month: int) -> str:
    """What the names of its partitions end with."""
    year, number = divmod(month, 12)
    return f"_y{year:04}m{number + 1:02}"


def are_kept_by(connection: Connection) -> bool:
    """Whether this database has months."""
    return connection.dialect.name == "postgresql"


def create_tables(connection: Connection, metadata: MetaData) -> None:
    """Makes every table of new books, those of `PARTED` with the months that are needed soon."""
    if not are_kept_by(connection):
        metadata.create_all(connection)
        return
    apart = (*PARTED, postings)  # postings are joined with requests by id, so both sort ids alike
    metadata.create_all(connection, tables=[each for each in metadata.sorted_tables if each not in apart])
    now_unix_ms = connection.execute(text("SELECT CAST(extract(epoch FROM now()) * 1000 AS BIGINT)")).scalar_one()
    first = month_of(now_unix_ms)
    for table in apart:
        made = table.to_metadata(MetaData())
        made.c.request_id.type = String(collation="C")
        if table is postings:
            made.create(connection)
            continue
        if table is schema.entries:
            made.c.request_id.primary_key = True
            made.append_constraint(PrimaryKeyConstraint("id", "request_id"))
        made.kwargs["postgresql_partition_by"] = "RANGE (request_id)"
        made.create(connection)
        for suffix, values in (
            ("_default", "DEFAULT"),
            ("_below", f"FOR VALUES FROM (MINVALUE) TO ('{bound_of(first)}')"),
            ("_above", f"FOR VALUES FROM ('{_ABOVE}') TO (MAXVALUE)"),
        ):
            connection.exec_driver_sql(f"CREATE TABLE {table.name}{suffix} PARTITION OF {table.name} {values}")
    _add(connection, range(first, first + AHEAD + 1))


def months_there(connection: Connection) -> list[int]:
    """The months that have partitions, the oldest first; none on SQLite."""
    if not are_kept_by(connection):
        return []
    query = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass(:parent)")
    names = connection.execute(query.bindparams(parent=schema.entries.name)).scalars()
    found = [_NAME.fullmatch(name) for name in names]
    return sorted(int(each[1]) * 12 + int(each[2]) - 1 for each in found if each)


def due_months(connection: Connection, before_hour: int) -> list[int]:
    """Those that may be dropped as a whole when all before an hour is: over for a day, in which requests end."""
    return [each for each in months_there(connection) if begin_of(each + 1) + _MS_PER_DAY <= before_hour * MS_PER_HOUR]


def ids_of_others(connection: Connection, before_hour: int) -> ColumnElement[bool]:
    """Of requests: those whose month is not dropped as a whole later, by its time."""
    kept = [each for each in months_there(connection) if each not in due_months(connection, before_hour)]
    if not kept:
        return true()
    request_id = schema.requests.c.request_id
    return or_(request_id < bound_of(kept[0]), request_id >= bound_of(kept[-1] + 1))


def lacking(connection: Connection, now_unix_ms: int) -> list[int]:
    """The months that are to be made now."""
    if not are_kept_by(connection):
        return []
    there, first = months_there(connection), month_of(now_unix_ms)
    # What is older than the oldest is below it, or was dropped.
    return [each for each in range(max([first, *there[:1]]), first + AHEAD + 1) if each not in there]


def add_months(connection: Connection, now_unix_ms: int) -> list[int]:
    """Makes the months that are lacking, with what there is of them already; which. Nobody books meanwhile."""
    wanted = lacking(connection, now_unix_ms)
    if wanted:
        _lock(connection)
        _add(connection, wanted)
    return wanted


def hold_months(connection: Connection) -> None:
    """Has no month dropped until the transaction ends: to be said before its snapshot is taken, which would have the
    rows of a month that is gone neither as lines nor among what was dropped."""
    if are_kept_by(connection):
        connection.exec_driver_sql(f"LOCK TABLE ONLY {', ONLY '.join(_NAMES)} IN ACCESS SHARE MODE")


@dataclass(frozen=True, slots=True)
class Summed:
    """One month's lines added up.

    Attributes:
        newest: the id of its newest line; 0: it has none.
        dropped: lines that were dropped in all before it was added up.
        by_tenant: how many lines, and what they come to.
        open: why it cannot go as a whole; empty where it can.
    """

    month: int
    newest: int
    dropped: int
    by_tenant: dict[str, list[int]]
    open: str


def add_up(connection: Connection, month: int, *, before_hour: int, cuts: dict[str, int] | None, gone: int) -> Summed:
    """Adds up a month's lines, as `drop_month` needs them.

    Args:
        before_hour: since 1970; what is dated later is kept.
        cuts: the line up to which each tenant's are on invoices; None: the house issues none.
        gone: lines that were dropped in all, as known before.
    """
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {_ADD_UP_MS}")
    lines = _part(schema.entries, month).c
    newest_priced = func.max(case((lines.price_nusd != 0, lines.id), else_=0))
    totals = (func.count(), func.max(lines.id), func.max(lines.minute), newest_priced)
    query = select(lines.tenant, *totals, *(whole_sum(lines[name]) for name in Amounts._fields)).group_by(lines.tenant)
    newest, by_tenant, why = 0, defaultdict[str, list[int]](list), ""
    for tenant, count, last, minute, priced, *sums in connection.execute(query):
        newest = max(newest, last)
        by_tenant[tenant] = [count, *map(int, sums)]
        if minute >= before_hour * _MINUTES:
            why = "lines of it are dated in what is kept"
        elif cuts is not None and priced > cuts.get(tenant, 0):
            why = f"lines of {tenant!r} are on no invoice yet"
    _, ended_unix_ms = _requests(connection, month)
    if ended_unix_ms >= before_hour * MS_PER_HOUR:
        why = "requests of it went on into what is kept"
    return Summed(month, newest, gone, dict(by_tenant), why)


def drop_month(connection: Connection, summed: Summed, *, before_hour: int, through: int, gone: int) -> int | None:
    """Drops a month's partitions, where it is as it was added up; how many requests are gone, None where it is not.

    Nobody books meanwhile. The sums are left to the caller to keep, in the same transaction.

    Args:
        through: the line up to which lines may go.
        gone: lines that were dropped in all, by now.
    """
    part = _part(schema.entries, summed.month)
    newest = connection.execute(select(func.max(part.c.id))).scalar_one() or 0
    # Lines are only ever appended, or dropped and counted as such.
    if summed.open or (newest, gone) != (summed.newest, summed.dropped) or newest > through:
        return None
    count, ended_unix_ms = _requests(connection, summed.month)
    if ended_unix_ms >= before_hour * MS_PER_HOUR:
        return None
    _lock(connection, summed.month)
    for table in PARTED:
        connection.exec_driver_sql(f"DROP TABLE {table.name}{suffix_of(summed.month)}")
    return count


def _requests(connection: Connection, month: int) -> tuple[int, int]:
    """How many are there, and when the last one ended, ms since 1970; 0: there is none."""
    requests = _part(schema.requests, month).c
    last = func.max(case((requests.finished, requests.finished_unix_ms), else_=requests.admitted_unix_ms))
    count, ended_unix_ms = connection.execute(select(func.count(requests.request_id), last)).one()
    return count, ended_unix_ms or 0


def _part(table: Table, month: int) -> Table:
    return table.to_metadata(MetaData(), name=table.name + suffix_of(month))


def _lock(connection: Connection, month: int | None = None) -> None:
    """What making months changes, and dropping one; no other partition, where the server may be vacuuming."""
    # Whoever reads has locks in an order of its own: wait for it less than the server waits to look for deadlocks.
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_MS}")
    wanted = [f"ONLY {name}" for name in _NAMES] + [f"{name}_default" for name in _NAMES]
    if month is not None:
        wanted += [name + suffix_of(month) for name in _NAMES]
    connection.exec_driver_sql(f"LOCK TABLE {', '.join(wanted)} IN ACCESS EXCLUSIVE MODE")


def _add(connection: Connection, months: list[int] | range) -> None:
    for table in PARTED:
        for month in months:
            name, low, high = table.name + suffix_of(month), bound_of(month), bound_of(month + 1)
            connection.exec_driver_sql(f"CREATE TABLE {name} (LIKE {table.name} INCLUDING ALL)")
            connection.exec_driver_sql(
                f"WITH moved AS (DELETE FROM {table.name}_default"
                f" WHERE request_id >= '{low}' AND request_id < '{high}' RETURNING *)"
                f" INSERT INTO {name} SELECT * FROM moved"
            )
            connection.exec_driver_sql(
                f"ALTER TABLE {table.name} ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}')"
            )
