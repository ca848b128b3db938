"""Two databases of books held against each other: the live one and one made again from the streams.

In: both. Out: what differs, a line per finding. Compared is what the events decide: every request with its end, what is
booked for it at each place, what each tenant was billed and may spend, and the sums per dimension. Not compared is what
depends on how events fell into batches: the number of ledger lines, the minute at which an increment is dated, and the
row of a place from which all that was booked there has moved on.
"""

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, Table, select

from services.meter.core.amounts import Amounts
from services.meter.core.presence import MS_PER_HOUR
from services.meter.core.usage import DIMENSIONS
from services.meter.store import schema
from services.meter.store.database import Database
from services.meter.store.dropped import DETAIL, hour_of
from services.meter.store.sums import whole_sum

_MOST_FINDINGS: Final = 100
_UNDATED: Final = frozenset({"minute", "earlier"})
_OF_A_PLACE: Final = ("generated", "worker_prompt_tokens", "worker_cached_prompt_tokens", *Amounts._fields)


def differences(live: Database, rebuilt: Database, *, since_unix_ms: int) -> list[str]:
    """What the rebuilt books lack, have beyond the live ones, or have otherwise; at most 100 findings.

    Args:
        since_unix_ms: requests that ended earlier are looked over: the streams may have let go of their events. So are
            those that the live books have dropped.
    """
    findings: list[str] = []
    with live.reader.connect() as here, rebuilt.reader.connect() as there:
        dropped_before_ms = hour_of(here, DETAIL) * MS_PER_HOUR
        since_unix_ms = max(since_unix_ms, dropped_before_ms)
        old = _old(here, since_unix_ms) | _old(there, since_unix_ms)
        for table in (schema.requests, schema.segments):
            findings += _rows_that_differ(table, here, there, old)
        if not old and not dropped_before_ms:
            for table, columns in ((schema.tenants, ("tenant",)), (schema.usage, DIMENSIONS)):
                findings += _sums_that_differ(table, columns, here, there)
    return findings[:_MOST_FINDINGS]


def _old(connection: Connection, since_unix_ms: int) -> set[tuple[str, str]]:
    table = schema.requests
    query = select(table.c.request_id, table.c.tenant).where(table.c.finished, table.c.finished_unix_ms < since_unix_ms)
    return {(row.request_id, row.tenant) for row in connection.execute(query)}


def _rows_that_differ(table: Table, live: Connection, rebuilt: Connection, old: set[tuple[str, str]]) -> Iterator[str]:
    names = [column.name for column in table.primary_key]
    columns = [column.name for column in table.columns if column.name not in _UNDATED]
    query = select(*(table.c[name] for name in columns))

    def rows(connection: Connection) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        ordered = query.order_by(*(_by_bytes(table.c[name], connection) for name in names))
        for row in connection.execution_options(stream_results=True).execute(ordered).mappings():
            empty = table is schema.segments and not any(row[name] for name in _OF_A_PLACE)
            if (row["request_id"], row["tenant"]) not in old and not empty:
                yield tuple(row[name] for name in names), dict(row)

    ours, theirs = rows(live), rows(rebuilt)
    here, there = next(ours, None), next(theirs, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here[0] < there[0]):
            assert here is not None
            yield f"{table.name} {_named(here[0])}: in the live books only"
            here = next(ours, None)
        elif here is None or there[0] < here[0]:
            yield f"{table.name} {_named(there[0])}: in the rebuilt books only"
            there = next(theirs, None)
        else:
            for name in columns:
                if here[1][name] != there[1][name]:
                    yield f"{table.name} {_named(here[0])}: {name} is {here[1][name]!r}, rebuilt {there[1][name]!r}"
            here, there = next(ours, None), next(theirs, None)


def _sums_that_differ(table: Table, names: tuple[str, ...], live: Connection, rebuilt: Connection) -> Iterator[str]:
    sums = ("spent_nusd",) if table is schema.tenants else Amounts._fields
    keys = [table.c[name] for name in names]
    query = select(*keys, *(whole_sum(table.c[name]).label(name) for name in sums)).group_by(*keys)

    def by_key(connection: Connection) -> dict[tuple[str, ...], tuple[int, ...]]:
        found = {
            tuple(row[name] for name in names): tuple(int(row[name] or 0) for name in sums)
            for row in connection.execute(query).mappings()
        }
        return {key: values for key, values in found.items() if any(values)}

    here, there = by_key(live), by_key(rebuilt)
    for key in sorted(here.keys() | there.keys()):
        ours, theirs = here.get(key), there.get(key)
        if ours != theirs:
            yield f"{table.name} {_named(key)}: {_shown(sums, ours)}, rebuilt {_shown(sums, theirs)}"


def _named(key: tuple[str, ...]) -> str:
    return "/".join(key)


def _shown(names: tuple[str, ...], values: tuple[int, ...] | None) -> str:
    if values is None:
        return "nothing"
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True) if value)


def _by_bytes(column: Column[str], connection: Connection) -> ColumnElement[str]:
    """A text in the order that Python gives it, whatever the database's own is."""
    return column.collate("C") if connection.dialect.name == "postgresql" else column
