"""Usage added up by the hour, so that questions over long times read an hour's rows instead of sixty minutes' of them.

In: hours that ended a while ago. Out: their rows in `usage_hours`, made in one transaction from those of `usage`; from
then on what is booked late in such an hour is added to both, in the transaction that books it. Which hours are added up
stands in `rolled`, one row: whoever reads takes hours below it where whole ones are asked for, minutes elsewhere.
"""

from typing import Any, Final

from sqlalchemy import Connection, FromClause, Select, Table, delete, func, literal_column, select, union_all, update
from sqlalchemy.sql.elements import ColumnElement

from services.meter.core.amounts import Amounts
from services.meter.core.usage import DIMENSIONS, MINUTES_BY_UNIT
from services.meter.store import schema
from services.meter.store.schema import integer, metadata, text
from services.meter.store.sums import whole_sum

USAGE: Final = "usage"
_MINUTES: Final = MINUTES_BY_UNIT["hour"]

usage_hours = Table(
    "usage_hours",
    metadata,
    integer("hour", key=True),
    *(text(name, key=True) for name in DIMENSIONS),
    *(integer(name) for name in Amounts._fields),
    sqlite_with_rowid=False,
)

rolled = Table(
    "rolled",
    metadata,
    text("what", key=True),
    integer("before_hour"),  # hours below are added up
)


def rolled_before(connection: Connection) -> int:
    """The first hour that is not added up; 0 before any is."""
    return connection.execute(select(rolled.c.before_hour).where(rolled.c.what == USAGE)).scalar() or 0


def next_hour(connection: Connection, before_hour: int) -> int | None:
    """The first hour from `before_hour` on that anything is dated in."""
    minute = connection.execute(
        select(func.min(schema.usage.c.minute)).where(schema.usage.c.minute >= before_hour * _MINUTES)
    ).scalar()
    return None if minute is None else minute // _MINUTES


def roll_up(connection: Connection, hour: int) -> None:
    """Adds one hour up, and says that all up to it are; what is there of it already is made anew."""
    connection.execute(delete(usage_hours).where(usage_hours.c.hour == hour))
    add_up(connection, schema.usage.c.minute >= hour * _MINUTES, schema.usage.c.minute < (hour + 1) * _MINUTES)
    if not connection.execute(update(rolled).where(rolled.c.what == USAGE).values(before_hour=hour + 1)).rowcount:
        connection.execute(rolled.insert().values(what=USAGE, before_hour=hour + 1))


def add_up(connection: Connection, *which: ColumnElement[bool]) -> None:
    """Adds the rows of `usage` that these conditions name to their hours."""
    table = schema.usage
    hour = _hour_of(table.c.minute)
    keys = [hour, *(table.c[name] for name in DIMENSIONS)]
    sums = [whole_sum(table.c[name]).label(name) for name in Amounts._fields]
    found = select(*keys, *sums).where(*which).group_by(*keys)
    connection.execute(usage_hours.insert().from_select([column.name for column in usage_hours.columns], found))


def add_up_again(connection: Connection, tenant: str, before_hour: int) -> None:
    """Makes a tenant's hours what its minutes come to."""
    connection.execute(delete(usage_hours).where(usage_hours.c.tenant == tenant))
    add_up(connection, schema.usage.c.tenant == tenant, schema.usage.c.minute < before_hour * _MINUTES)


def usage_between(from_minute: int | None, to_minute: int | None, before_hour: int) -> FromClause:
    """Usage in [from, to) as rows of `usage`, each whole hour that is added up as one minute, its first.

    Args:
        from_minute: None: the beginning.
        to_minute: None: no end.
        before_hour: hours from here on are taken by their minutes; 0: all of them are.
    """
    minutes, hours = schema.usage, usage_hours
    first = 0 if from_minute is None else -(-from_minute // _MINUTES)
    end = before_hour if to_minute is None else min(before_hour, to_minute // _MINUTES)
    if end <= first:
        return _columns(minutes, minutes.c.minute).where(*_within(minutes.c.minute, from_minute, to_minute)).subquery()
    parts: list[Select[Any]] = [
        _columns(hours, hours.c.hour * _MINUTES).where(hours.c.hour >= first, hours.c.hour < end),
        _columns(minutes, minutes.c.minute).where(*_within(minutes.c.minute, end * _MINUTES, to_minute)),
    ]
    if from_minute is not None and from_minute < first * _MINUTES:
        parts.append(
            _columns(minutes, minutes.c.minute).where(*_within(minutes.c.minute, from_minute, first * _MINUTES))
        )
    return union_all(*parts).subquery()


def _columns(table: Table, minute: ColumnElement[int]) -> Select[Any]:
    names = (*DIMENSIONS, *Amounts._fields)
    return select(minute.label("minute"), *(table.c[name] for name in names))


def _within(minute: ColumnElement[int], from_minute: int | None, to_minute: int | None) -> list[ColumnElement[bool]]:
    bounds = [] if from_minute is None else [minute >= from_minute]
    return bounds if to_minute is None else [*bounds, minute < to_minute]


def _hour_of(minute: ColumnElement[int]) -> ColumnElement[int]:
    """Whole hours: both databases divide integers so, SQLAlchemy's `//` says more than is needed."""
    return minute.op("/")(literal_column(str(_MINUTES)))
