"""Sums of rows by the names of a `Grouping`: of any source that has its dimensions, and who called where it asks."""

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import ColumnElement, FromClause, Select, select

from services.meter.core.amounts import Amounts
from services.meter.core.usage import MINUTES_BY_UNIT, Grouping
from services.meter.store.sums import whole_sum

COLUMNS: Final = {"team": "caller_team", "key": "caller_key", "session": "session_id"}  # where it is not the name


def amounts_by_group(source: FromClause, grouping: Grouping, minute: ColumnElement[int] | None = None) -> Select[Any]:
    """Rows of `group_<name>` and the sums of all amounts.

    Args:
        minute: when a row of the source is dated; None: its column `minute`.
    """
    sums = [whole_sum(source.c[name]).label(name) for name in Amounts._fields]
    return sums_by_group(source, grouping, sums, at=source.c.minute if minute is None else minute)


def sums_by_group(
    source: FromClause,
    grouping: Grouping,
    sums: Iterable[ColumnElement[Any]],
    *,
    at: ColumnElement[int],
    also: Iterable[ColumnElement[Any]] = (),
) -> Select[Any]:
    """Rows of `group_<name>`, what they are told apart by `also`, and the sums.

    Args:
        at: the minute that a row of the source is dated in.
    """
    keys = [*(_group(source, name, at).label(f"group_{name}") for name in grouping.names), *also]
    query = select(*keys, *sums).group_by(*keys)
    for name, values in grouping.filters.items():
        query = query.where(_column(source, name).in_(sorted(values)))
    return query


def _group(source: FromClause, name: str, at: ColumnElement[int]) -> ColumnElement[Any]:
    return at - at % MINUTES_BY_UNIT[name] if name in MINUTES_BY_UNIT else _column(source, name)


def _column(source: FromClause, name: str) -> ColumnElement[str]:
    column: ColumnElement[str] = source.c[COLUMNS.get(name, name)]
    return column
