"""gRPC's own layer on HTTP/2: messages with a length before each, metadata as headers, a status as trailers.

In and out: bytes and pairs; nothing here knows a connection. https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

import base64
import binascii
import struct
import zlib
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote

import grpc

Metadata = tuple[tuple[str, str | bytes], ...]

PREFIX_BYTES: Final = 5
CONTENT_TYPE: Final = b"application/grpc"
ENCODINGS: Final = (b"identity", b"deflate", b"gzip")
_PREFIX: Final = struct.Struct(">BI")
_FRAME_HEAD: Final = struct.Struct(">HBBBI")  # length, type, flags, stream
_END_STREAM_AND_HEADERS: Final = 0x5
_STATUS_200: Final = b"\x88"  # RFC 7541, appendix A
_UNITS_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_RESERVED: Final = frozenset(
    (b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-message-type")
)
_PRINTABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class MalformedMessage(Exception):
    """Bytes that are no gRPC message; the text says what is wrong."""


class OversizedMessage(Exception):
    """A message that announces `size` bytes, more than are let in."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


def framed(message: bytes) -> bytes:
    """The message as it goes into DATA frames."""
    return _PREFIX.pack(0, len(message)) + message


def trailers_only(stream: int, code: grpc.StatusCode, details: str) -> bytes:
    """A HEADERS frame that is a whole answer, for a stream that its connection has given up already.

    It leaves the state of the connection's header compression as it is (RFC 7541, 6.2.2: literals without indexing).
    """
    number: int = code.value[0]
    fields = (
        (b"content-type", CONTENT_TYPE),
        (b"grpc-status", b"%d" % number),
        (b"grpc-message", message_header(details)),
    )
    block = _STATUS_200 + b"".join(b"\0" + _literal(name) + _literal(value) for name, value in fields)
    return _FRAME_HEAD.pack(len(block) >> 8, len(block) & 0xFF, 0x1, _END_STREAM_AND_HEADERS, stream) + block


def _literal(text: bytes) -> bytes:
    """RFC 7541, 5.2, without Huffman's code."""
    size = len(text)
    if size < 0x7F:
        return bytes((size,)) + text
    head, rest = bytearray((0x7F,)), size - 0x7F
    while rest >= 0x80:
        head.append(rest & 0x7F | 0x80)
        rest >>= 7
    head.append(rest)
    return bytes(head) + text


class Messages:
    """Cuts a body into messages as its bytes come.

    Args:
        limit_bytes: of one message, inflated.
        encoding: the request's grpc-encoding; empty for none.

    Attributes:
        held_bytes: of messages that are not complete yet.
    """

    def __init__(self, limit_bytes: int, encoding: bytes = b"") -> None:
        self._limit_bytes = limit_bytes
        self._encoding = encoding
        self._buffer = bytearray()

    @property
    def held_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes.

        Raises:
            OversizedMessage: as soon as a message announces more than the limit. MalformedMessage: its flag or its
                compression is not what was agreed on.
        """
        buffer = self._buffer
        if not buffer and len(data) >= PREFIX_BYTES:
            flag, size = _PREFIX.unpack_from(data)
            if flag == 0 and len(data) == PREFIX_BYTES + size <= PREFIX_BYTES + self._limit_bytes:
                return [data[PREFIX_BYTES:]]  # one whole message, as most requests are
        buffer += data
        found: list[bytes] = []
        while len(buffer) >= PREFIX_BYTES:
            flag, size = _PREFIX.unpack_from(buffer)
            if size > self._limit_bytes:
                raise OversizedMessage(size)
            if len(buffer) < PREFIX_BYTES + size:
                break
            message = bytes(buffer[PREFIX_BYTES : PREFIX_BYTES + size])
            del buffer[: PREFIX_BYTES + size]
            found.append(self._inflated(message) if flag else message)
            if flag > 1:
                raise MalformedMessage(f"a message's flag is {flag}, must be 0 or 1")
        return found

    def _inflated(self, message: bytes) -> bytes:
        if self._encoding not in (b"gzip", b"deflate"):
            named = self._encoding.decode("latin-1")
            raise MalformedMessage(f"a message is compressed, and grpc-encoding is {named!r}; send gzip, or none")
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip's and zlib's header alike
        try:
            inflated = inflater.decompress(message, self._limit_bytes + 1)
        except zlib.error as error:
            raise MalformedMessage(f"a compressed message can't be read: {error}") from error
        if len(inflated) > self._limit_bytes:
            raise OversizedMessage(len(inflated))
        return inflated


def timeout_s(value: bytes) -> float | None:
    """Seconds that a `grpc-timeout` names; None when it is none.

    Raises:
        MalformedMessage: it is not a number of at most eight digits and a unit.
    """
    if not value:
        return None
    text = value.decode("latin-1")
    digits, unit = text[:-1], _UNITS_S.get(text[-1])
    if unit is None or not (digits.isascii() and digits.isdigit()) or len(digits) > 8:
        raise MalformedMessage(f"grpc-timeout {text!r} is not a duration; send e.g. 500m")
    return int(digits) * unit


def metadata_of(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """The metadata among a call's headers; values of keys that end in `-bin` as bytes."""
    return tuple(
        (name.decode("latin-1"), _binary(value) if name.endswith(b"-bin") else value.decode("latin-1"))
        for name, value in headers
        if not name.startswith(b":") and name not in _RESERVED
    )


def headers_of(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Metadata as headers.

    Raises:
        UnicodeEncodeError: a key or a value that is not binary has characters beyond ASCII.
    """
    headers = []
    for key, value in metadata:
        if key.endswith("-bin"):
            raw = value.encode() if isinstance(value, str) else value
            headers.append((key.encode("ascii"), base64.b64encode(raw).rstrip(b"=")))
        else:
            headers.append((key.encode("ascii"), value.encode("ascii") if isinstance(value, str) else value))
    return headers


def message_header(text: str) -> bytes:
    """A status's message as `grpc-message` carries it."""
    return quote(text, safe=_PRINTABLE).encode("ascii")


def message_of(header: bytes) -> str:
    """What `message_header` was given."""
    return unquote(header.decode("latin-1"))


def _binary(value: bytes) -> bytes:
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4))
    except binascii.Error:
        return value
