"""Writing many rows with one statement, past the price of SQLAlchemy's parameters: it takes as long as SQLite itself.

In: a table and what an existing row becomes. Out: the statement, composed by SQLAlchemy for the database's dialect
once, and handed to the driver with the rows: to SQLite row by row as they are, to PostgreSQL as one array a column
(`arrays.py`), since a statement run for each row costs the driver and the server more than the row does. So values
must be what drivers take: integers, floats, text, booleans.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Column, Connection, Dialect, Insert, Select, Table, bindparam, cast, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import String

from services.meter.store.arrays import array_of

Values = tuple[Any, ...]  # in the order of the table's columns, without those that the database numbers

_APPENDING: Final = 0x746B776C  # PostgreSQL's advisory lock

_INSERT: Final[dict[str, Callable[[Table], sqlite.Insert | postgresql.Insert]]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
_known: Final[dict[tuple[str, ...], "Bulk"]] = {}


class Bulk:
    """One INSERT for rows of `table`; `text` is what the driver gets."""

    def __init__(
        self, dialect: Dialect, table: Table, statement: sqlite.Insert | postgresql.Insert | None = None
    ) -> None:
        columns = [column for column in table.columns if column.autoincrement is not True]
        names = [column.name for column in columns]
        self._by_column = dialect.name == "postgresql"
        self._keys = [names.index(column.name) for column in table.primary_key.columns if column in columns]
        self._is_upsert = statement is not None
        whole: Insert = statement if statement is not None else table.insert()
        if self._by_column:
            whole = whole.from_select(names, _rows_of_arrays(columns), include_defaults=False)
        compiled = whole.compile(dialect=dialect, column_keys=names)
        self.text = str(compiled)
        self._arrays = [(column.name, array_of(column)) for column in columns]
        assert self._by_column or list(compiled.positiontup or ()) == names, compiled.positiontup

    def write(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Writes the rows; of those with the same key, later ones find what earlier ones left."""
        if not rows:
            return
        if not self._by_column:
            connection.exec_driver_sql(self.text, list(rows))
            return
        for some in _apart(rows, self._keys) if self._is_upsert else (rows,):
            columns = zip(*some, strict=True)
            arrays = {name: write(column) for (name, write), column in zip(self._arrays, columns, strict=True)}
            connection.exec_driver_sql(self.text, arrays)


def in_order(dialect: Dialect) -> str:
    """What a transaction says before it appends to the ledger, so that lines are committed in the order of their ids:
    whoever reads on from an id would pass over what comes in below it. Empty where transactions are one at a time."""
    return f"SELECT pg_advisory_xact_lock({_APPENDING})" if dialect.name == "postgresql" else ""


def upsert(dialect: Dialect, table: Table, *, added: Sequence[str] = (), kept: Sequence[str] = ()) -> Bulk:
    """Inserts, or where the key exists adds to the `added` columns, leaves the `kept` ones, and replaces the others."""
    asked = (dialect.name, dialect.driver, table.name, *added, "", *kept)
    if (known := _known.get(asked)) is not None:
        return known
    statement = _INSERT[dialect.name](table)
    changes = {
        column.name: column + statement.excluded[column.name]
        if column.name in added
        else statement.excluded[column.name]
        for column in table.columns
        if not column.primary_key and column.name not in kept
    }
    keys = list(table.primary_key.columns)
    # Composing one costs as much as writing a hundred rows, and some are asked for in every transaction.
    made = _known[asked] = Bulk(dialect, table, statement.on_conflict_do_update(index_elements=keys, set_=changes))
    return made


def _rows_of_arrays(columns: Sequence[Column[Any]]) -> Select[Any]:
    """A SELECT of the rows that arrays make, one a column, each given as the text of an array."""
    arrays = [cast(bindparam(each.name, type_=String()), postgresql.ARRAY(each.type)) for each in columns]
    rows = func.unnest(*arrays).table_valued(*(each.name for each in columns), name="given").render_derived()
    return select(*(rows.c[each.name] for each in columns))


def _apart(rows: Sequence[Values], keys: Sequence[int]) -> Iterator[Sequence[Values]]:
    """The rows in parts that have no key twice, which one statement must not change twice."""
    key_of = itemgetter(*keys)
    if len({key_of(row) for row in rows}) == len(rows):
        yield rows
        return
    part: dict[Any, Values] = {}
    for row in rows:
        key = key_of(row)
        if key in part:
            yield list(part.values())
            part = {}
        part[key] = row
    yield list(part.values())
