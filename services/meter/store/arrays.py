"""Columns as PostgreSQL reads arrays of text: `{1,2,NULL}`, `{"a","b"}`.

In: a column's values. Out: one text for the server to cast. The driver's own way takes each value by itself; joining
them leaves nearly all of the work to `str.join`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Column, String


def array_of(column: Column[Any]) -> Callable[[Sequence[Any]], str]:
    """How an array of the column's values is written."""
    if isinstance(column.type, String):
        assert not column.nullable, f"{column}: no text of the books may be null"
        return text_array
    return optional_array if column.nullable else plain_array


def plain_array(values: Sequence[int | float | bool]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


def optional_array(values: Sequence[int | float | bool | None]) -> str:
    return "{" + ",".join("NULL" if value is None else str(value) for value in values) + "}"


def text_array(values: Sequence[str]) -> str:
    joined = '","'.join(values)
    if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
        joined = '","'.join(value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return '{"' + joined + '"}'
