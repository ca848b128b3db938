"""One HTTP/1.1 connection of a fast HTTP server: bytes to calls, and answers to bytes.

The protocol itself is llhttp's, through `httptools`; only this file drives it. In: bytes. Out: one call after the other
to the server, each once its request is whole, and their answers in the order of the requests, however many the client
has sent ahead. All that is sent in one turn of the loop leaves in one write. While a client does not read, nothing more
is taken of what is for it (`full`).

What a client may do is bounded: the size of a head and of a body, how much it sends ahead, how long either may take,
how long a connection may be silent, and for how long it may leave an answer unread. What is no HTTP is answered and
hung up on, after what was sent before it has been answered.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Final, Protocol

import httptools

from services.mesh.departures import Departures
from services.mesh.errors import RequestTimedOut, TokenworksError
from services.mesh.http_call import TEXT, HttpCall, too_large

log = logging.getLogger(__name__)

HIGH_WATER_BYTES: Final = 32 << 10  # buffered for one client before its messages are held and merged
FIRST_REQUEST_S: Final = 30.0  # from a client's connecting to the end of its first head
IDLE_S: Final = 75.0  # between requests
HEAD_S: Final = 30.0
BODY_S: Final = 60.0
UNREAD_S: Final = 120.0  # in which a client takes nothing of what waits for it
_LINGER_S: Final = 5.0  # for a client that is still sending to see why it is hung up on
_MOST_HEAD_BYTES: Final = 64 << 10
_MOST_TARGET_BYTES: Final = 8 << 10
_MOST_FIELDS: Final = 128
_MOST_AHEAD: Final = 8  # requests behind the one that is served, before no more is read
_OF_UPGRADES: Final = (b"upgrade", b"connection", b"http2-settings", b"expect")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Host(Protocol):
    """The server of a connection."""

    max_body_bytes: int
    departures: Departures
    draining: bool
    connections: "set[Http1Connection]"

    def date(self) -> bytes:
        """For the head of an answer."""

    def check(self, call: HttpCall) -> None:
        """Its head is here, its body may be on its way. Raises TokenworksError: it need not come."""

    async def serve(self, call: HttpCall) -> None:
        """Answers a call."""

    def refuse(self, call: HttpCall, error: TokenworksError) -> None:
        """Answers a call with an error."""


class _At(Enum):
    """Where in the protocol the client is."""

    START = auto()  # nothing of a request has come
    HEAD = auto()
    BODY = auto()
    DEAF = auto()  # what it says does not matter any more


class _Refused(Exception):
    """Raised in the parser's callbacks: it reads no further, since the connection ends."""


class Http1Connection(asyncio.Protocol):
    """One client's; see `Carrier` for what a call uses of it.

    Attributes:
        full: the client does not take what was sent to it.
    """

    def __init__(self, host: Host) -> None:
        self.full = False
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._at = _At.START
        self._spoke = False
        self._since_s = self._loop.time()  # when it came there
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._fields = self._head_bytes = 0
        self._begun = 0  # heads within the bytes being parsed
        self._upgrading = False
        self._call: HttpCall | None = None  # whose body is coming
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._served: HttpCall | None = None
        self._task: asyncio.Task[None] | None = None
        self._ahead: deque[HttpCall] = deque()
        self._paused = False
        self._refusal: tuple[int, str] | None = None  # for when what came before it is answered
        self._parts: list[bytes] = []  # to be sent
        self._parts_bytes = 0
        self._due = self._gathering = False
        self._waiting: list[Callable[[], None]] = []
        self._unread_bytes, self._unread_since_s = 0, 0.0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._at is _At.DEAF:
            return
        fresh = self._at is _At.START
        if fresh:
            self._now_at(_At.HEAD)
            self._head_bytes = 0
        while data:
            data = self._parsed(data, fresh)

    def eof_received(self) -> None:
        """Its client hangs up; asyncio closes the transport."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._at = _At.DEAF
        self._host.connections.discard(self)
        self._waiting.clear()
        self._parts.clear()
        self._ahead.clear()
        self._call = self._refusal = None
        if self._served is not None and not self._served.over:
            self._served.over = True
            if self._task is not None:
                self._task.cancel()

    def pause_writing(self) -> None:
        self.full = True
        self._unread_bytes, self._unread_since_s = self._transport.get_write_buffer_size(), self._loop.time()

    def resume_writing(self) -> None:
        self.full = False
        waiting, self._waiting = self._waiting, []
        for on_room in waiting:
            on_room()

    # What the parser tells.

    def _parsed(self, data: bytes, fresh: bool) -> bytes:
        """What is to be parsed once more; mostly nothing. `fresh`: a request begins with it."""
        self._begun = 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if self._at is _At.DEAF:
                return b""
            if self._refusal is None:
                log.debug("a bad request: %s", error)
                self._refusal = 400, f"this is no HTTP: {error}"
            self._hear_no_more()
        else:
            if self._at is _At.HEAD and self._begun <= fresh:  # else part of it was another request's
                self._head_bytes += len(data)
                if self._head_bytes > _MOST_HEAD_BYTES:
                    self._refusal = 431, f"the head has more than {_MOST_HEAD_BYTES} bytes"
                    self._hear_no_more()
        return b""

    def _without_upgrade(self) -> bytes:
        """The head anew. The parser stands still behind one that asks for another protocol; the request goes on in
        this one."""
        if self._call is None:
            return b""
        self._parser = httptools.HttpRequestParser(self)
        fields = [b"%b: %b\r\n" % each for each in self._headers.items() if each[0] not in _OF_UPGRADES]
        return b"%b %b HTTP/1.1\r\n%b\r\n" % (self._call.method, self._url, b"".join(fields))

    def on_message_begin(self) -> None:
        self._now_at(_At.HEAD)
        self._begun += 1
        self._url, self._headers = b"", {}
        self._fields = self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > _MOST_TARGET_BYTES:
            self._refuse(414, f"the request's target has more than {_MOST_TARGET_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._at is not _At.HEAD:
            return  # behind a body, where nothing that matters may stand
        name = name.lower()
        self._fields += 1
        self._head_bytes += len(name) + len(value)
        if self._fields > _MOST_FIELDS or self._head_bytes > _MOST_HEAD_BYTES:
            self._refuse(431, f"the head has more than {_MOST_FIELDS} fields or {_MOST_HEAD_BYTES} bytes")
        if name not in self._headers:
            self._headers[name] = value
        elif name == b"host":
            self._refuse(400, "the request names two hosts")

    def on_headers_complete(self) -> None:
        parser, headers, url = self._parser, self._headers, self._url
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(505, f"this is HTTP {version}; 1.1 is spoken here")
        if b"host" not in headers and version == "1.1":
            self._refuse(400, "the request names no host")
        if not url.startswith(b"/") and b"://" in url:  # the absolute form, as proxies send it
            url = b"/" + url.partition(b"://")[2].partition(b"/")[2]
        path, _, query = url.partition(b"?")
        call = HttpCall(
            self,
            parser.get_method(),
            path,
            query,
            headers,
            version_11=version == "1.1",
            keep_alive=parser.should_keep_alive() and not self._host.draining,
        )
        self._call, self._body, self._body_bytes = call, [], 0
        self._now_at(_At.BODY)
        self._spoke = True
        # An upgrade is an offer, which is not taken up: the request is served as it is.
        self._upgrading = parser.should_upgrade()
        if call.method == b"CONNECT":
            self._refuse(405, "this is no proxy")
        length = headers.get(b"content-length", b"")
        if length or b"transfer-encoding" in headers:
            try:
                if length.isdigit() and int(length[:20]) > self._host.max_body_bytes:
                    raise too_large(self._host.max_body_bytes)
                self._host.check(call)
            except TokenworksError as error:
                self._refuse_call(call, error)
        if b"expect" in headers and self._served is None and self._at is _At.BODY:
            if headers[b"expect"].lower() != b"100-continue":
                self._refuse(417, "100-continue is all that can be expected here")
            if version == "1.1" and not self._body_bytes:
                self.send(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._at is not _At.BODY:
            return
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > self._host.max_body_bytes and self._call is not None:
            self._refuse_call(self._call, too_large(self._host.max_body_bytes))

    def on_message_complete(self) -> None:
        call = self._call
        if call is None or self._upgrading or self._at is not _At.BODY:
            return
        self._call = None
        call.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._now_at(_At.START)
        if self._served is None:
            self._serve(call)
            return
        self._ahead.append(call)
        if not self._paused and (len(self._ahead) >= _MOST_AHEAD or len(call.body) > HIGH_WATER_BYTES):
            self._paused = True
            self._transport.pause_reading()

    # What a call does.

    def date(self) -> bytes:
        return self._host.date()

    def send(self, data: bytes) -> None:
        self._parts.append(data)
        if not self._due:
            self._due = True
            self._host.departures.soon(self)

    def send_gathered(self, data: bytes) -> None:
        self._parts.append(data)
        self._parts_bytes += len(data)
        if self._parts_bytes > HIGH_WATER_BYTES:
            self.flush()
        elif not (self._due or self._gathering):
            departures = self._host.departures
            if departures.gathers:
                self._gathering = True
                departures.gathered(self)
            else:
                self._due = True
                departures.soon(self)

    def flush_if_due(self) -> None:
        self._due = self._gathering = False
        self.flush()

    def flush(self) -> None:
        """Sends what was submitted."""
        if self._parts:
            parts, self._parts, self._parts_bytes = self._parts, [], 0
            if not self._transport.is_closing():
                self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def tell_of_room(self, on_room: Callable[[], None]) -> None:
        self._waiting.append(on_room)

    def answered(self, call: HttpCall, *, keep_alive: bool) -> None:
        if keep_alive and not self._host.draining:
            return
        self._ahead.clear()
        if call is self._served and self._at is _At.START:
            self._at = _At.DEAF
            self.flush()
            self._transport.close()
        elif self._at is not _At.DEAF:
            self._hang_up()

    # What the server does.

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """Of the call that is served."""
        return self._task

    def close_if_idle(self) -> None:
        """Hangs up on a client that has no request under way."""
        if self._served is None and self._at in (_At.START, _At.DEAF):
            self._at = _At.DEAF
            self.flush()
            self._transport.close()

    def abort(self) -> None:
        """Hangs up at once."""
        if self._transport is not None:
            self._transport.abort()

    def look(self, now_s: float) -> bool:
        """Ends what has taken too long; whether the client said nothing that was to be answered."""
        waits_s = now_s - self._since_s
        if self.full:
            left_bytes = self._transport.get_write_buffer_size()
            if left_bytes != self._unread_bytes:
                self._unread_bytes, self._unread_since_s = left_bytes, now_s
            elif now_s - self._unread_since_s >= UNREAD_S:
                self.abort()
            return False
        if self._served is not None:
            return False
        match self._at:
            case _At.START | _At.HEAD if not self._spoke:
                late = waits_s >= FIRST_REQUEST_S
            case _At.START:
                late = waits_s >= IDLE_S
                if late:
                    self.close_if_idle()
                return False
            case _At.HEAD:
                late = waits_s >= HEAD_S
            case _At.BODY:
                if waits_s >= BODY_S and self._call is not None:
                    words = f"the body has not come within {BODY_S:g} s; send it at once"
                    self._end_with(self._call, RequestTimedOut(words))
                return False
            case _At.DEAF:
                if waits_s >= _LINGER_S:
                    self.abort()
                return False
        if late:
            self.abort()
        return late

    # One call after the other.

    def _serve(self, call: HttpCall) -> None:
        self._served = call
        self._task = self._loop.create_task(self._run(call))

    async def _run(self, call: HttpCall) -> None:
        try:
            await self._host.serve(call)
        except asyncio.CancelledError:
            if not call.over:  # it was not its client who left
                self.abort()
            raise
        except Exception:
            log.exception("a defect in an answer to %s %s", call.method, call.path)
            self.abort()
        else:
            if not call.over:
                log.error("%s %s was left without an answer", call.method, call.path)
                self.abort()
        finally:
            self._task = self._served = None
            self._next()

    def _next(self) -> None:
        if self._ahead:
            self._serve(self._ahead.popleft())
        elif self._refusal is not None:
            self._say_refusal()
        elif self._host.draining:
            self.close_if_idle()
        if self._paused and not self._ahead and self._at is not _At.DEAF:
            self._paused = False
            self._transport.resume_reading()

    def _now_at(self, where: _At) -> None:
        self._at, self._since_s = where, self._loop.time()

    def _refuse(self, status: int, words: str) -> None:
        """Called by the parser: ends the reading."""
        self._refusal = status, words
        raise _Refused

    def _refuse_call(self, call: HttpCall, error: TokenworksError) -> None:
        """Called by the parser: the rest of the request need not come."""
        if self._served is not None:
            self._refuse(400, str(error))
        self._end_with(call, error)
        raise _Refused

    def _end_with(self, call: HttpCall, error: TokenworksError) -> None:
        call.close_after()
        self._host.refuse(call, error)
        if self._at is not _At.DEAF:
            self._hang_up()

    def _hear_no_more(self) -> None:
        self._now_at(_At.DEAF)
        self._call = None
        if self._served is None:
            self._say_refusal()

    def _say_refusal(self) -> None:
        if self._refusal is None:
            return
        (status, words), self._refusal = self._refusal, None
        call = HttpCall(self, b"GET", b"", b"", {}, version_11=True, keep_alive=False)
        call.answer(status, TEXT, f"{status}: {' '.join(words.split())}\n".encode())
        self._hang_up()

    def _hang_up(self) -> None:
        """Says no more; what the client is still sending is read for a while, or it would not see the answer."""
        self._now_at(_At.DEAF)
        self.flush()
        with suppress(OSError, RuntimeError):
            self._transport.write_eof()
