"""Writing many rows with one statement, past the price of SQLAlchemy's parameters: it takes as long as SQLite itself.

In: a table and what an existing row becomes. Out: the statement, composed by SQLAlchemy for the database's dialect
once, and handed to the driver with the rows as they are. So values must be what drivers take: integers, floats, text,
booleans.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Dialect, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite

Values = tuple[Any, ...]  # in the order of the table's columns, without those that the database numbers

_INSERT: Final[dict[str, Callable[[Table], sqlite.Insert | postgresql.Insert]]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


class Bulk:
    """One INSERT for rows of `table`; `text` is what the driver gets."""

    def __init__(self, dialect: Dialect, table: Table, statement: Insert | None = None) -> None:
        self._names = [column.name for column in table.columns if column.autoincrement is not True]
        compiled = (statement if statement is not None else table.insert()).compile(
            dialect=dialect, column_keys=self._names
        )
        self.text = str(compiled)
        self._positional = dialect.positional
        assert not self._positional or list(compiled.positiontup or ()) == self._names, compiled.positiontup

    def write(self, connection: Connection, rows: Sequence[Values]) -> None:
        if not rows:
            return
        if self._positional:
            connection.exec_driver_sql(self.text, list(rows))
        else:
            connection.exec_driver_sql(self.text, [dict(zip(self._names, row, strict=True)) for row in rows])


def upsert(dialect: Dialect, table: Table, *, added: Sequence[str] = (), kept: Sequence[str] = ()) -> Bulk:
    """Inserts, or where the key exists adds to the `added` columns, leaves the `kept` ones, and replaces the others."""
    statement = _INSERT[dialect.name](table)
    changes = {
        column.name: column + statement.excluded[column.name]
        if column.name in added
        else statement.excluded[column.name]
        for column in table.columns
        if not column.primary_key and column.name not in kept
    }
    return Bulk(
        dialect, table, statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=changes)
    )
