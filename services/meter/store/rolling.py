"""Adding hours up by who called, into the tables of `caller_tables.py`.

`HourRoller` reads what an hour comes to, from several threads, and writes it within transactions of `Books`: first that
the hour is not added up, then its rows, some at a time, so that bookings never wait long, then that it is.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Select, Table, delete, func, select, update

from services.meter.core.amounts import Amounts
from services.meter.core.presence import MS_PER_HOUR
from services.meter.core.usage import DIMENSIONS, MINUTES_BY_UNIT
from services.meter.store import schema
from services.meter.store.bill_tables import bill_hours, postings
from services.meter.store.books import Transaction
from services.meter.store.bulk import Bulk, Values, upsert
from services.meter.store.caller_tables import (
    caller_hours,
    caller_postings,
    rolled_hours,
    session_hours,
    session_postings,
)
from services.meter.store.callers import ALL_POSTINGS, lines_with_callers, postings_with_callers
from services.meter.store.database import Database
from services.meter.store.grouped import COLUMNS
from services.meter.store.sums import whole_sum

_HOUR: Final = MINUTES_BY_UNIT["hour"]
_ROWS_A_WRITE: Final = 5_000
_TABLES: Final = (caller_hours, session_hours, caller_postings, session_postings)
_WHO: Final = tuple(COLUMNS.values())
_SESSION: Final = 1 + len(_WHO) - 1  # where the session stands in a row of `session_hours`


@dataclass(frozen=True, slots=True)
class DueHour:
    """An hour to add up: its lines, and the postings that count."""

    hour: int
    first_line: int
    last_line: int
    last_posting: int


@dataclass(slots=True)
class RolledHour:
    """What an hour comes to, in rows of each table."""

    due: DueHour
    unknown: bool = False
    rows: dict[Table, list[Values]] = field(default_factory=dict)


class HourRoller:
    """Prepared statements for one database."""

    def __init__(self, database: Database) -> None:
        self._engine = database.reader
        dialect = database.writer.dialect
        self._add = {table: Bulk(dialect, table) for table in _TABLES}
        self._put = upsert(dialect, rolled_hours)

    def look(self, transaction: Transaction) -> None:
        """Notes which hours that are added up have new postings."""
        connection = transaction.connection
        where = rolled_hours.c.hour == ALL_POSTINGS
        before = connection.execute(select(rolled_hours.c.last_posting).where(where)).scalar_one_or_none() or 0
        newest = connection.execute(select(func.max(postings.c.id))).scalar_one() or 0
        if newest == before:
            return
        touched = select(postings.c.hour).where(postings.c.id > before, postings.c.id <= newest).distinct()
        connection.execute(update(rolled_hours).where(rolled_hours.c.hour.in_(touched)).values(stale=True))
        self._put.write(connection, [(ALL_POSTINGS, 0, newest, False, False, 0)])

    def due(self, now_unix_ms: int, *, ask_again_ms: int, most: int) -> list[DueHour]:
        """Hours whose bill is booked and that are not added up as they stand, the latest first.

        Args:
            ask_again_ms: hours of the last day some of whose callers were not known are due again after so long.
        """
        bills, rolled = bill_hours.c, rolled_hours.c
        changed = rolled.hour.is_(None) | rolled.stale | (rolled.last_line != bills.last_line)
        yesterday = now_unix_ms // MS_PER_HOUR - 24
        again = rolled.unknown & (rolled.rolled_unix_ms < now_unix_ms - ask_again_ms) & (bills.hour >= yesterday)
        query = (
            select(bills.hour, bills.first_line, bills.last_line)
            .outerjoin(rolled_hours, rolled.hour == bills.hour)
            .where(bills.settled_unix_ms > 0, bills.last_line <= bills.settled_line, changed | again)
            .order_by(bills.hour.desc())
            .limit(most)
        )
        with self._engine.begin() as connection:
            where = rolled_hours.c.hour == ALL_POSTINGS
            position = connection.execute(select(rolled_hours.c.last_posting).where(where)).scalar_one_or_none() or 0
            return [DueHour(*row, last_posting=position) for row in connection.execute(query)]

    def add_up(self, due: DueHour) -> RolledHour:
        """What an hour comes to. Runs in a thread."""
        made = RolledHour(due)
        lines = lines_with_callers().where(
            schema.entries.c.id >= due.first_line,
            schema.entries.c.id <= due.last_line,
            schema.entries.c.minute >= due.hour * _HOUR,
            schema.entries.c.minute < (due.hour + 1) * _HOUR,
        )
        posted = postings_with_callers().where(postings.c.hour == due.hour, postings.c.id <= due.last_posting)
        with self._engine.begin() as connection:
            found = connection.execute(_grouped(lines, (*_WHO, *DIMENSIONS), Amounts._fields))
            of_lines = [(due.hour, *row) for row in _whole(found, len(Amounts._fields))]
            booked = connection.execute(_grouped(posted, ("account", *_WHO, *DIMENSIONS), ("amount_nusd", "carbon_ug")))
            of_postings = [(due.hour, *row) for row in _whole(booked, 2)]
        made.unknown = any(not row[1 + _WHO.index("caller_key")] for row in of_lines)
        made.rows = {
            caller_hours: _without(of_lines, _SESSION, len(Amounts._fields)),
            session_hours: of_lines,
            caller_postings: _without(of_postings, _SESSION + 1, 2),
            session_postings: of_postings,
        }
        return made

    def begin(self, transaction: Transaction, due: DueHour, now_unix_ms: int) -> None:
        """The hour is answered from the ledger until `end`."""
        for table in _TABLES:
            transaction.connection.execute(delete(table).where(table.c.hour == due.hour))
        self._put.write(transaction.connection, [(due.hour, 0, 0, True, False, now_unix_ms)])

    def parts(self, rolled: RolledHour) -> Iterator[tuple[Table, Sequence[Values]]]:
        """Its rows, few enough at a time for one transaction each."""
        for table, rows in rolled.rows.items():
            for start in range(0, len(rows), _ROWS_A_WRITE):
                yield table, rows[start : start + _ROWS_A_WRITE]

    def add(self, transaction: Transaction, table: Table, rows: Sequence[Values]) -> None:
        self._add[table].write(transaction.connection, rows)

    def end(self, transaction: Transaction, rolled: RolledHour, now_unix_ms: int) -> None:
        """The hour is added up, unless something was booked in it meanwhile."""
        due, connection = rolled.due, transaction.connection
        since = select(func.count()).where(postings.c.hour == due.hour, postings.c.id > due.last_posting)
        late = bool(connection.execute(since).scalar_one())
        row = (due.hour, due.last_line, due.last_posting, late, rolled.unknown, now_unix_ms)
        self._put.write(connection, [row])


def _grouped(rows: Select[Any], names: Sequence[str], added: Sequence[str]) -> Select[Any]:
    source = rows.subquery()
    keys = [source.c[name] for name in names]
    return select(*keys, *(whole_sum(source.c[name]) for name in added)).group_by(*keys)


def _whole(found: Iterable[Any], sums: int) -> Iterator[Values]:
    """Rows with their sums as integers; what comes to nothing is left out."""
    for row in found:
        values = tuple(int(each) for each in row[-sums:])
        if any(values):
            yield (*row[:-sums], *values)


def _without(rows: Iterable[Values], column: int, sums: int) -> list[Values]:
    """Rows added up without one of their columns."""
    totals: dict[Values, list[int]] = defaultdict(lambda: [0] * sums)
    for row in rows:
        total = totals[(*row[:column], *row[column + 1 : -sums])]
        for index, each in enumerate(row[-sums:]):
            total[index] += each
    return [(*key, *total) for key, total in totals.items() if any(total)]
