"""Tables as files: CSV, or Parquet in row groups, written as rows come: a file of any length takes little memory.

In: columns with their kinds, rows in their order. Out: the file under its name once it is whole; while it is written
it is called `<name>.part`. Only this file imports pyarrow, from the extra `reports`.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TextIO

from services.cli.output import CommandFailed

_ROW_GROUP: Final = 50_000
_PACKED: Final = 2_000  # rows are made columns in so many, which takes a tenth of their memory
_DIGITS, _DECIMALS = 38, 15  # dollars per token at a nano-dollar per million are exact
SUFFIXES: Final = (".csv", ".parquet")

Value = str | int | Decimal | datetime | None


class Kind(Enum):
    TEXT = "text"
    WHOLE = "whole"
    DECIMAL = "decimal"
    TIME = "time"


class Column(NamedTuple):
    """`nullable` is what a Parquet file says of it."""

    name: str
    kind: Kind
    nullable: bool = True


class Writer(Protocol):
    def write(self, row: Sequence[Value]) -> None: ...


def text_of(value: Value) -> str:
    """A value as text: decimals with a point and without exponents, times as 2026-11-24T09:00:00Z, nothing for None."""
    match value:
        case None:
            return ""
        case Decimal():
            text = format(value, "f")
            whole, _, rest = text.partition(".")
            return f"{whole}.{rest.rstrip('0') or '0'}"
        case datetime():
            return value.strftime("%Y-%m-%dT%H:%M:%SZ")
        case _:
            return str(value)


def check_path(path: Path) -> None:
    """Raises CommandFailed: the name says neither CSV nor Parquet, its folder or pyarrow is not there."""
    if path.suffix not in SUFFIXES:
        raise CommandFailed(f"{path} ends in neither of {' or '.join(SUFFIXES)}, which says what is written")
    if not path.parent.is_dir():
        raise CommandFailed(
            f"{path} is to be in {path.parent}, which is no folder; make it first, or name another file"
        )
    if path.suffix == ".parquet":
        _pyarrow()


@contextmanager
def table_file(path: Path, columns: Sequence[Column], about: dict[str, str] | None = None) -> Iterator[Writer]:
    """What writes rows to `path`, CSV or Parquet by its suffix; the file appears when the block ends without an error.

    Args:
        about: metadata, where the format has some.
    """
    check_path(path)
    scratch = path.with_name(path.name + ".part")
    try:
        if path.suffix == ".csv":
            with scratch.open("w", encoding="utf-8", newline="") as file:
                yield _Csv(file, columns)
        else:
            with _Parquet(scratch, columns, about or {}) as writer:
                yield writer
        scratch.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            scratch.unlink()
        raise


def read_texts(path: Path) -> Iterator[dict[str, str | None]]:
    """A table file's rows as texts by column, None where there is nothing; some rows in memory at a time."""
    check_path(path)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield {name: value or None for name, value in row.items()}
        return
    _, parquet = _pyarrow()
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                yield {name: text_of(value) or None for name, value in row.items()}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CommandFailed(
            "Parquet files are written by the package pyarrow: pip install 'tokenworks[reports]'; or write a .csv file",
            reason="PackageMissing",
        ) from error
    return pyarrow, parquet


class _Csv:
    def __init__(self, file: TextIO, columns: Sequence[Column]) -> None:
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(each.name for each in columns)

    def write(self, row: Sequence[Value]) -> None:
        self._rows.writerow(map(text_of, row))


class _Parquet:
    def __init__(self, path: Path, columns: Sequence[Column], about: dict[str, str]) -> None:
        arrow, parquet = _pyarrow()
        types = {
            Kind.TEXT: arrow.string(),
            Kind.WHOLE: arrow.int64(),
            Kind.DECIMAL: arrow.decimal128(_DIGITS, _DECIMALS),
            Kind.TIME: arrow.timestamp("ms", tz="UTC"),
        }
        fields = [arrow.field(each.name, types[each.kind], nullable=each.nullable) for each in columns]
        self._arrow = arrow
        self._schema = arrow.schema(fields, metadata=about or None)
        self._file = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[Sequence[Value]] = []
        self._batches: list[Any] = []

    def write(self, row: Sequence[Value]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _PACKED:
            self._pack()
            if len(self._batches) * _PACKED >= _ROW_GROUP:
                self._flush()

    def _pack(self) -> None:
        columns = zip(*self._rows, strict=True)
        arrays = [
            self._arrow.array(list(each), type=field.type) for each, field in zip(columns, self._schema, strict=True)
        ]
        self._batches.append(self._arrow.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows.clear()

    def _flush(self) -> None:
        if self._rows:
            self._pack()
        if self._batches:
            table = self._arrow.Table.from_batches(self._batches, schema=self._schema)
            self._file.write_table(table.combine_chunks(), row_group_size=_ROW_GROUP)
            self._batches.clear()

    def __enter__(self) -> "_Parquet":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._file.close()
