"""What a process's outboxes hold of what counts, on disk as well, for the process that comes after it.

In: messages as they are put into an outbox, and word of when the server has them. Out: a file beside those of other
starts; and, of starts that are over, what no server had. A process that is killed while the bus is away takes with it
what its outboxes held: of a stream that a client has to its end, the only word of that end. The next start under the
same name sends it first, under its old ids, and readers drop what they have already.

Nothing is forced to the disk: the file outlives its process, not its machine. What cannot be written is held in memory
as before, and the log says so once. The first bytes of a record tell its length and its CRC-32; a record that was cut
off, as the last one may be, ends the file.
"""

import fcntl
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_HEAD: Final = struct.Struct(">II")
_CLEARED_AT_BYTES: Final = 64 << 10  # what is acknowledged is sent again by the next start, and dropped by its readers
_REWRITTEN_AT_BYTES: Final = 16 << 20
_SUFFIX: Final = ".outbox"


@dataclass(frozen=True, slots=True)
class Spooled:
    """A message as it is sent."""

    subject: str
    headers: dict[str, str]
    body: bytes


class Spool:
    """The file of one start of one publisher. It is made with the first message.

    Args:
        folder: of all publishers on this machine; made when it is missing.
        name: of the publisher.
        epoch: of this start.
    """

    def __init__(self, folder: Path, name: str, epoch: str) -> None:
        self._folder = folder
        self._name = name
        self._path = folder / f"{name}.{epoch}{_SUFFIX}"
        self._file: int | None = None
        self._bytes = 0
        self._rewritten_at = _REWRITTEN_AT_BYTES
        self._broken = False

    def keep(self, *messages: Spooled) -> None:
        """Writes messages, in one piece; it never raises."""
        try:
            if self._file is None:
                self._file = self._made()
            self._append(b"".join(map(_record, messages)))
        except OSError as error:
            if not self._broken:
                log.error("%s: what waits for the bus is in memory only: %s: %s", self._name, self._path, error)
            self._broken = True
            self._cut_back()

    def acknowledged(self, held: Iterable[Spooled]) -> None:
        """The server has something more; `held`: what it does not have yet, looked at only when there is need."""
        if self._bytes < _CLEARED_AT_BYTES or self._file is None:
            return
        waiting = list(held) if self._bytes >= self._rewritten_at else None
        if waiting is None and next(iter(held), None) is not None:
            return
        with suppress(OSError):
            os.ftruncate(self._file, 0)
            self._bytes = 0
            self._broken = False
        for message in waiting or ():
            self.keep(message)
        self._rewritten_at = max(_REWRITTEN_AT_BYTES, 2 * self._bytes)

    def close(self, held: int) -> None:
        """The process ends with `held` messages that no server has: the file stays for them, else it goes."""
        if self._file is None:
            return
        if not held:
            with suppress(OSError):
                self._path.unlink()
        os.close(self._file)
        self._file = None

    def left_behind(self) -> Iterator["LeftBehind"]:
        """Of each start that is over, in their order, what it left; close each when it is sent."""
        for path in sorted(self._folder.glob(f"{self._name}.*{_SUFFIX}")):
            if path == self._path or path.name.removesuffix(_SUFFIX).rpartition(".")[0] != self._name:
                continue
            try:
                file = os.open(path, os.O_RDWR)
            except OSError as error:
                log.warning("%s: what an earlier start left cannot be read: %s", self._name, error)
                continue
            if _locked(file):
                yield LeftBehind(path, file)
            else:
                os.close(file)  # a process of this name runs

    def _made(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        _locked(file)
        return file

    def _append(self, records: bytes) -> None:
        assert self._file is not None, "made before"
        written = os.write(self._file, records)
        if written < len(records):
            raise OSError(f"{written} of {len(records)} bytes were taken")
        self._bytes += written

    def _cut_back(self) -> None:
        """Leaves no part of a record behind which others would stand."""
        if self._file is not None:
            with suppress(OSError):
                os.ftruncate(self._file, self._bytes)


class LeftBehind:
    """What one earlier start left; the file is ours until it is closed."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file

    def messages(self) -> list[Spooled]:
        """In the order in which they were numbered. Raises OSError."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            return list(_records(file.read()))

    def close(self, *, sent: bool) -> None:
        """Gives the file up, and removes it where everything in it was sent."""
        if sent:
            with suppress(OSError):
                self.path.unlink()
        os.close(self._file)


def _record(message: Spooled) -> bytes:
    # JSON has no bare line feed: the first one ends it.
    content = json.dumps([message.subject, message.headers]).encode() + b"\n" + message.body
    return _HEAD.pack(len(content), zlib.crc32(content)) + content


def _records(data: bytes) -> Iterator[Spooled]:
    at = 0
    while at + _HEAD.size <= len(data):
        length, check = _HEAD.unpack_from(data, at)
        content = data[at + _HEAD.size : at + _HEAD.size + length]
        if len(content) < length or zlib.crc32(content) != check:
            return
        head, _, body = content.partition(b"\n")
        subject, headers = json.loads(head)
        yield Spooled(subject, headers, body)
        at += _HEAD.size + length


def _locked(file: int) -> bool:
    """Whether nobody else holds the file; it is held from now on."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
