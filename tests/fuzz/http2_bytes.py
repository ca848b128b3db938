"""A gRPC call as bytes of HTTP/2, made by hand so that each layer can be wrong: preface, frames, headers, framing.

https://www.rfc-editor.org/rfc/rfc9113 and rfc7541: headers are sent as literals, never indexed.
"""

import struct
from collections.abc import Sequence
from random import Random
from typing import Final

from tests.fuzz.mutations import mutated_bytes

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM: Final = 1
_END_HEADERS: Final = 4
_TIMEOUTS: Final = ("1S", "0n", "99999999H", "-1S", "1", "x", "999999999S", "1S2")
_ENCODINGS: Final = ("gzip", "deflate", "identity", "nonsense")


def connection_bytes(path: str, body: bytes, metadata: Sequence[tuple[str, str | bytes]], rng: Random) -> bytes:
    """Everything that a client says on a connection with one call, wrong in some way; it may end in the middle."""
    headers = _headers(path, metadata, rng)
    flag = rng.choice((0, 0, 0, 1, 2, 255))
    size = rng.choice((len(body),) * 4 + (0, len(body) + 1, 2**31, 2**32 - 1))
    message = struct.pack(">BI", flag, size) + body
    end = rng.choice((0, _END_STREAM, _END_STREAM))
    frames = [
        _frame(_SETTINGS, 0, 0, b""),
        _frame(_HEADERS, _END_HEADERS, 1, headers),
        *_cut(message, rng, end),
    ]
    if rng.random() < 0.4:
        frames.insert(rng.randrange(len(frames) + 1), _odd_frame(rng))
    if rng.random() < 0.2:
        rng.shuffle(frames)
    said = _PREFACE + b"".join(frames)
    return mutated_bytes(said, rng) if rng.random() < 0.4 else said


def _headers(path: str, metadata: Sequence[tuple[str, str | bytes]], rng: Random) -> bytes:
    pairs: list[tuple[str, str | bytes]] = [
        (":method", rng.choice(("POST", "POST", "POST", "GET", ""))),
        (":scheme", "http"),
        (":path", rng.choice((path, path, path, "/", "", path + "x", "/x" * 500))),
        (":authority", "mesh"),
        ("content-type", rng.choice(("application/grpc",) * 5 + ("application/json", ""))),
        ("te", "trailers"),
        *metadata,
    ]
    if rng.random() < 0.3:
        pairs.append(("grpc-timeout", rng.choice(_TIMEOUTS)))
    if rng.random() < 0.3:
        pairs.append(("grpc-encoding", rng.choice(_ENCODINGS)))
    if rng.random() < 0.2:
        rng.shuffle(pairs)
    if rng.random() < 0.1:
        pairs.append(("x-odd-bin", rng.choice(("A", "====", "!!", "é"))))
    return b"".join(_literal(name, value) for name, value in pairs)


def _literal(name: str, value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return b"\x00" + _string(name.encode()) + _string(raw)


def _string(raw: bytes) -> bytes:
    if len(raw) < 127:
        return bytes((len(raw),)) + raw
    rest, length = len(raw) - 127, bytearray(b"\x7f")
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    length.append(rest)
    return bytes(length) + raw


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _cut(message: bytes, rng: Random, end: int) -> list[bytes]:
    """The message in one DATA frame or several; `end` is the last one's flag."""
    parts = rng.choice((1, 1, 2, 5))
    cuts = sorted(rng.randrange(len(message) + 1) for _ in range(parts - 1))
    pieces = [message[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(message)], strict=True)]
    most = 16_384  # what a server takes in one frame until it says otherwise
    small = [piece[at : at + most] for piece in pieces for at in range(0, max(1, len(piece)), most)]
    return [_frame(_DATA, end if index == len(small) - 1 else 0, 1, piece) for index, piece in enumerate(small)]


def _odd_frame(rng: Random) -> bytes:
    kind = rng.choice((_DATA, _HEADERS, 2, _RST, _SETTINGS, 5, _PING, _GOAWAY, _WINDOW, _CONTINUATION, 0xEE))
    payload = rng.randbytes(rng.choice((0, 4, 6, 8, 40)))
    return _frame(kind, rng.randrange(256), rng.choice((0, 1, 2, 3, 2**31 - 1)), payload)
