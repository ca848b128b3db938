"""One call on a fast HTTP server: a whole request, and the answer as it is made. It is what a route's handler gets.

In: what the connection read. Out: a head and a body on it, whole (`answer`) or in parts (`begin`, `push`, `end`), which
anybody may push from wherever they arose, without awaiting. A handler ends by returning once the call is over, by its
client's leaving (which cancels it), or by a defect, which hangs up.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Final, Protocol

from services.mesh.errors import InvalidRequest, MessageTooLarge

EVENT_STREAM: Final = b"text/event-stream\r\nCache-Control: no-cache"
JSON: Final = b"application/json"
TEXT: Final = b"text/plain; charset=utf-8"
_STATUS_LINES: Final = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
_END: Final = b"0\r\n\r\n"
_INFLATERS: Final = {b"gzip": zlib.MAX_WBITS | 16, b"x-gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}


class Carrier(Protocol):
    """The connection below a call."""

    full: bool

    def date(self) -> bytes:
        """For the head of an answer."""

    def send(self, data: bytes) -> None:
        """At the end of this turn of the loop, after what was gathered."""

    def send_gathered(self, data: bytes) -> None:
        """With what comes within the server's time for that."""

    def tell_of_room(self, on_room: Callable[[], None]) -> None:
        """Calls `on_room` once when the client takes more."""

    def answered(self, call: "HttpCall", *, keep_alive: bool) -> None:
        """The call's answer is whole."""


class HttpCall:
    """A request, and its answer.

    Attributes:
        method, path: as they came; the path without its query.
        headers: of each name, in lower case, the first value.
        body: whole; as it came.
        begun: the head of the answer is on its way.
        caller: who that is, once it was found out; its service's to write and to read.
        over: the answer is whole, or nobody waits for it.
        traceparent: context of the span it is served under; its server's guard writes it.
    """

    __slots__ = (
        "_carrier",
        "_chunked",
        "_keep_alive",
        "_pushed",
        "begun",
        "body",
        "caller",
        "headers",
        "method",
        "over",
        "path",
        "query",
        "traceparent",
    )

    def __init__(
        self,
        carrier: Carrier,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: Mapping[bytes, bytes],
        *,
        version_11: bool,
        keep_alive: bool,
    ) -> None:
        self._carrier = carrier
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = b""
        self.caller: object = None
        self.traceparent = ""
        self.begun = self.over = self._pushed = False
        self._chunked = version_11
        self._keep_alive = keep_alive

    def header(self, name: bytes) -> str:
        """The first value of a header, `name` in lower case; empty where it was not sent."""
        value = self.headers.get(name)
        return value.decode("utf-8", "surrogateescape") if value else ""

    def inflated(self, limit_bytes: int) -> bytes:
        """The body as it was before its Content-Encoding.

        Raises:
            MessageTooLarge: it has more than `limit_bytes`.
            InvalidRequest: it is not compressed as its headers say, or in a way that is not known here.
        """
        encoding = self.headers.get(b"content-encoding", b"").strip().lower()
        if not encoding or encoding == b"identity":
            return self.body
        window = _INFLATERS.get(encoding)
        if window is None:
            named = encoding.decode("latin-1")[:60]
            raise InvalidRequest(f"the body can't be read: it is compressed as {named!r}; send it plain, or as gzip")
        inflater = zlib.decompressobj(window)
        try:
            whole = inflater.decompress(self.body, limit_bytes + 1)
        except zlib.error as error:
            raise InvalidRequest(f"the body can't be read: it is not {encoding.decode()}: {error}") from None
        if len(whole) > limit_bytes:
            raise too_large(limit_bytes)
        if not inflater.eof:
            raise InvalidRequest(f"the body can't be read: its {encoding.decode()} ends too early")
        return whole

    def close_after(self) -> None:
        """The connection ends with the answer."""
        self._keep_alive = False

    def answer(self, status: int, content_type: bytes, body: bytes, fields: bytes = b"") -> None:
        """The whole answer in one piece; `fields` as `fields_of` makes them."""
        if self.over or self.begun:
            return
        self.begun = True
        self._carrier.send(
            b"%bContent-Type: %b\r\nContent-Length: %d\r\nDate: %b\r\n%b%b\r\n%b"
            % (
                _STATUS_LINES[status],
                content_type,
                len(body),
                self._carrier.date(),
                b"" if self._keep_alive else b"Connection: close\r\n",
                fields,
                b"" if self.method == b"HEAD" else body,
            )
        )
        self._finish()

    def begin(self, content_type: bytes, fields: bytes = b"") -> None:
        """The head of an answer in parts, with status 200; it leaves with the first of them in the same turn."""
        if self.over or self.begun:
            return
        self.begun = True
        if not self._chunked:  # its end is the connection's
            self._keep_alive = False
        self._carrier.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%bDate: %b\r\n%b%b\r\n"
            % (
                content_type,
                b"Transfer-Encoding: chunked\r\n" if self._chunked else b"",
                self._carrier.date(),
                b"" if self._keep_alive else b"Connection: close\r\n",
                fields,
            )
        )

    @property
    def has_room(self) -> bool:
        """Whether its client takes what is sent; where not, ask `tell_of_room`."""
        return not (self._carrier.full or self.over)

    def push(self, data: bytes) -> bool:
        """Sends a part; False, with nothing sent, when nobody takes it any more. The first part and the end wait for
        no company."""
        if self.over:
            return False
        carrier = self._carrier
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        if self._pushed:
            carrier.send_gathered(framed)
        else:
            self._pushed = True
            carrier.send(framed)
        return True

    def tell_of_room(self, on_room: Callable[[], None]) -> None:
        """Calls `on_room` once when there is room again; never when the call ends first."""
        if not self.over:
            self._carrier.tell_of_room(on_room)

    def end(self, last: bytes = b"") -> None:
        """Nothing follows but this, which is sent however full the connection is."""
        if self.over:
            return
        if self._chunked:
            self._carrier.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last) if last else _END)
        elif last:
            self._carrier.send(last)
        self._finish()

    def _finish(self) -> None:
        self.over = True
        self._carrier.answered(self, keep_alive=self._keep_alive)


def fields_of(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Headers of an answer. What no header may hold is left out of their values."""
    return b"".join([b"%b: %b\r\n" % (name.encode("ascii"), _shown(value).encode()) for name, value in pairs])


def _shown(value: str) -> str:
    return value if value.isprintable() else "".join(each for each in value if each.isprintable())


def too_large(limit_bytes: int) -> MessageTooLarge:
    """The error of a body over the limit."""
    return MessageTooLarge(f"the body is longer than {limit_bytes} bytes; send less, or raise mesh.max_message_bytes")
