"""Enough of HTTP/2 and gRPC to be a client that costs nearly nothing: frames out, and frames in as they arrive.

In: bytes as they arrive, in pieces of any length. Out: `Frame`s, and the bytes to send. Header blocks are written as
literals without Huffman coding, and not read: whether a call went well shows in its messages, which are counted.

Source: RFC 9113 (frames), RFC 7541 6.2.2 (literal header fields without indexing).
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
INITIAL_WINDOW: Final = 3  # SETTINGS_INITIAL_WINDOW_SIZE
_HEAD: Final = struct.Struct(">HBBBI")  # length in 24 bits (high two bytes, low byte), type, flags, stream


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


class FrameReader:
    """Cuts bytes into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes."""
        buffer = self._rest + data if self._rest else data
        at, size = 0, len(buffer)
        while size - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(buffer, at)
            end = at + 9 + (high << 8 | low)
            if end > size:
                break
            yield Frame(kind, flags, stream & 0x7FFFFFFF, buffer[at + 9 : end])
            at = end
        self._rest = buffer[at:]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


def header_block(fields: Iterable[tuple[str, str]]) -> bytes:
    block = bytearray()
    for pair in fields:
        block.append(0)
        for part in pair:
            raw = part.encode("ascii")
            block += _length(len(raw)) + raw
    return bytes(block)


def _length(size: int) -> bytes:
    """An integer with a prefix of 7 bits, whose first bit says that no Huffman code follows (RFC 7541, 5.1)."""
    if size < 127:
        return bytes((size,))
    size, written = size - 127, bytearray((127,))
    while size >= 128:
        written.append(size & 0x7F | 0x80)
        size >>= 7
    written.append(size)
    return bytes(written)


def grpc_message(body: bytes) -> bytes:
    return struct.pack(">BI", 0, len(body)) + body
