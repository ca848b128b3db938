"""Events as the streams hold them, in Parquet files, for longer than the streams do.

In: messages in stream order. Out: files `<stream>-<first>-<last>-<hour>.parquet` in one folder, each of which begins
where the one before ended; read again, the same messages. A file is there whole or not at all: it is written beside,
put on the disk, and named. What a row holds: position in the stream, the event's id, its subject, and its body as on
the wire, so that any protobuf reader of `tokenworks.v1` understands it. Calls block.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from services.mesh.bus import Delivered, EventId
from services.mesh.codec import decode, encode
from services.mesh.errors import InvariantBroken, SettingInvalid
from services.mesh.subjects import channel_at

_BATCH: Final = 2048


@dataclass(frozen=True, slots=True, order=True)
class RawFile:
    """One file: all that the stream held from position `first` to `last` when it was written."""

    first: int
    last: int
    path: Path = field(compare=False)


class RawEvents:
    """The files in `folder`; a folder that is not there has none, and is made by `open`.

    Raises:
        SettingInvalid: pyarrow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import pyarrow as arrow
            from pyarrow import parquet
        except ImportError as error:
            raise SettingInvalid(
                f"meter.raw_events_dir = {folder} needs pyarrow: {error}; pip install 'tokenworks[reports]'"
            ) from error
        self._arrow: Any = arrow
        self._parquet: Any = parquet
        self._schema = arrow.schema(
            [
                ("stream_sequence", arrow.int64()),
                ("publisher", arrow.string()),
                ("epoch", arrow.string()),
                ("sequence", arrow.int64()),
                ("subject", arrow.string()),
                ("traceparent", arrow.string()),
                ("body", arrow.binary()),
            ]
        )
        self.folder = folder

    def files(self, stream: str) -> list[RawFile]:
        """Those of a stream, in its order."""
        found = []
        for path in self.folder.glob(f"{stream}-*.parquet"):
            first, last, _ = path.stem.removeprefix(f"{stream}-").split("-", 2)
            found.append(RawFile(int(first), int(last), path))
        return sorted(found)

    def last(self, stream: str) -> int:
        """The position up to which a stream is in the files; 0 where it is not."""
        return max((each.last for each in self.files(stream)), default=0)

    def read(self, stream: str) -> Iterator[Sequence[Delivered]]:
        """The messages of a stream, some at a time.

        Raises:
            InvariantBroken: a file between two others is gone.
        """
        through = 0
        for file in self.files(stream):
            if through and file.first != through + 1:
                raise InvariantBroken(
                    f"{self.folder} has {stream} up to {through} and then from {file.first}: what is between is lacking"
                )
            through = file.last
            with self._parquet.ParquetFile(file.path) as opened:
                for some in opened.iter_batches(batch_size=_BATCH):
                    yield [_delivered(row) for row in some.to_pylist()]

    def open(self, stream: str, after: int, hour: str) -> "RawWriter":
        """A new file for what comes after a position.

        Args:
            hour: when that is, as in 2026-11-24T16.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{stream}.part"  # one meter writes at a time; what a crash left is overwritten
        file = self._parquet.ParquetWriter(beside, self._schema, compression="zstd")
        return RawWriter(
            file,
            partial(self._arrow.Table.from_pylist, schema=self._schema),
            beside,
            stream=stream,
            after=after,
            hour=hour,
        )


class RawWriter:
    """One file that is being written: `close` names it, `drop` leaves no trace."""

    def __init__(
        self,
        file: Any,
        table: Callable[[list[dict[str, Any]]], Any],
        beside: Path,
        *,
        stream: str,
        after: int,
        hour: str,
    ) -> None:
        self._file = file
        self._table = table
        self._beside = beside
        self._stream = stream
        self._after = self._last = after
        self._hour = hour

    def write(self, messages: Sequence[Delivered]) -> None:
        """Appends messages; what came before is passed over: a stream that is read again begins a little earlier."""
        fresh = [each for each in messages if each.stream_sequence > self._last]
        if not fresh:
            return
        self._last = fresh[-1].stream_sequence
        rows = [
            {
                "stream_sequence": each.stream_sequence,
                "publisher": each.id.publisher,
                "epoch": each.id.epoch,
                "sequence": each.id.sequence,
                "subject": each.subject,
                "traceparent": each.traceparent,
                "body": encode(each.event),
            }
            for each in fresh
        ]
        self._file.write_table(self._table(rows))

    def close(self) -> Path | None:
        """The file; None where nothing came."""
        self._file.close()
        if self._last == self._after:
            self._beside.unlink()
            return None
        folder = self._beside.parent
        path = folder / f"{self._stream}-{self._after + 1:012}-{self._last:012}-{self._hour}.parquet"
        _sync(self._beside, os.O_RDONLY)
        self._beside.replace(path)
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
        return path

    def drop(self) -> None:
        self._file.close()
        self._beside.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _delivered(row: dict[str, Any]) -> Delivered:
    channel = channel_at(row["subject"])
    if channel is None:
        raise InvariantBroken(f"{row['subject']!r} is no subject of events that are known here")
    return Delivered(
        id=EventId(row["publisher"], row["epoch"], row["sequence"]),
        event=decode(channel.event, row["body"]),
        subject=row["subject"],
        traceparent=row["traceparent"],
        stream_sequence=row["stream_sequence"],
    )
