"""One HTTP/2 connection on an asyncio transport: what the fast gRPC server and the routers' sessions stand on.

The protocol itself (frames, HPACK, flow control, limits against abuse) is libnghttp2's, through `ngh2`; only this file
drives it. In: bytes from the transport, which become calls of a subclass's `on_…` methods, and what the subclass
submits to `h2`. Out: bytes to the transport.

What makes it cheap is when it writes: whatever streams submit within one turn of the loop leaves in one write, at the
turn's end; what may wait for company, in one some time later (`Departures`). While the transport is full nothing is
written at all; streams see `has_room` turn false and keep what they have, to send it merged once `on_room` is called
for them.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import ngh2

from services.mesh.departures import Departures

log = logging.getLogger(__name__)

Headers = tuple[tuple[bytes, bytes], ...]

HIGH_WATER_BYTES: Final = 256 << 10  # buffered by the transport before streams are told to wait
_STREAM_BYTES: Final = 16 << 10  # of one stream that its peer's window does not admit yet, before it has to wait
_WINDOW_BYTES: Final = 16 << 20
_STREAM_WINDOW_BYTES: Final = 1 << 20
_FRAME_BYTES: Final = 1 << 20
_KEEPALIVE_S: Final = 4.0  # of silence, then a ping
_PING_S: Final = 4.0  # to answer it
_MOST_STREAMS: Final = 100_000
# Told to peers, some of which refuse a call with more by themselves: a block beyond 64 KiB ends the whole connection in
# libnghttp2.
_HEADERS_BYTES: Final = 60 << 10
_SETTINGS: Final = {
    ngh2.Setting.ENABLE_PUSH: 0,
    ngh2.Setting.MAX_CONCURRENT_STREAMS: _MOST_STREAMS,
    ngh2.Setting.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
    ngh2.Setting.MAX_FRAME_SIZE: _FRAME_BYTES,
    ngh2.Setting.MAX_HEADER_LIST_SIZE: _HEADERS_BYTES,
}
# A client that goes away with thousands of calls resets each of them; libnghttp2 takes 1,000 at once by default.
_CONFIGURATION: Final = ngh2.Configuration(stream_reset_rate_limit=(100_000, 1_000), glitch_rate_limit=(100_000, 1_000))


class Http2Connection(asyncio.Protocol):
    """One side of one connection. Submit to `h2`, then call `flush_soon` or `flush_gathered`.

    Args:
        departures: shared with other connections; None: on its own.

    Attributes:
        h2: the protocol's state.
        loop: that it runs on; asking for the running one is a system call each time.
        lost: the connection is over; nothing can be submitted.
    """

    def __init__(self, role: ngh2.Role, departures: Departures | None = None) -> None:
        self.h2 = ngh2.Connection(role, _CONFIGURATION)
        self.lost = False
        self._departures = departures or Departures()
        self.loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._full = False
        self._flush_due = self._gathering = False
        self._waiting: dict[int, Callable[[], None]] = {}
        self._to_reset: list[int] = []
        self._heard = False
        self._keepalive: asyncio.TimerHandle | None = None

    # What a subclass is told.

    def on_request(self, stream: int, headers: Headers, ended: bool) -> None:
        """A request's headers; `ended` when it has no body."""

    def on_response(self, stream: int, headers: Headers, ended: bool) -> None:
        """A response's headers, or its only ones."""

    def on_data(self, stream: int, data: bytes, ended: bool) -> None:
        """A part of a body."""

    def on_trailers(self, stream: int, headers: Headers) -> None:
        """The end of a body."""

    def on_stream_closed(self, stream: int) -> None:
        """The stream is over: both sides ended it, or one broke it off."""

    def answer_of_malformed(self, stream: int) -> bytes:
        """The frames that leave ahead of the reset of a stream that the peer has broken the rules with; none for one
        that is answered by other means."""
        return b""

    def on_lost(self, why: str) -> None:
        """The connection is over, and every stream with it. Called once."""

    # What a subclass does.

    def has_room(self, stream: int) -> bool:
        """Whether more of the stream's body would leave soon; where not, ask `tell_of_room`."""
        return not self._full and self.h2.queued_body_size(stream) <= _STREAM_BYTES

    def tell_of_room(self, stream: int, on_room: Callable[[], None]) -> None:
        """Calls `on_room` once when the stream has room again; not when it closes first."""
        self._waiting[stream] = on_room

    def reset_when_sent(self, stream: int) -> None:
        """Tells the peer to send no more on the stream, once all that was submitted for it has left."""
        self._to_reset.append(stream)

    def flush_soon(self) -> None:
        """Sends what was submitted, at the end of this turn of the loop."""
        if not self._flush_due:
            self._flush_due = True
            self._departures.soon(self)

    def flush_gathered(self) -> None:
        """Sends what was submitted once more has come, or soon where nothing is gathered."""
        if not self._departures.gathers:
            self.flush_soon()
        elif not (self._gathering or self._flush_due):
            self._gathering = True
            self._departures.gathered(self)

    def flush_if_due(self) -> None:
        """Sends what was submitted, unless that has left meanwhile."""
        if not (self._flush_due or self._gathering):
            return
        try:
            self._flush()
        except Exception:
            log.exception("a defect in one connection")
            self.abort("an internal error")

    def close(self) -> None:
        """Sends what is submitted as far as it goes, and hangs up."""
        if not self.lost:
            self._flush()
            if self._transport is not None:
                self._transport.close()

    def abort(self, why: str) -> None:
        """Hangs up at once."""
        if self._transport is not None:
            self._transport.abort()
        self._lose(why)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        self.h2.initiate_connection(_SETTINGS)
        self.h2.set_local_window_size(_WINDOW_BYTES)
        self._flush()
        self._keepalive = self.loop.call_later(_KEEPALIVE_S, self._check_alive)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self.h2.receive_data(data)
        except ngh2.NGH2Error as error:
            self.abort(f"the peer does not speak HTTP/2 as it should: {error}")
            return
        self._handle(self.h2.events())
        self.flush_soon()  # after the calls that began just now, which have something to say at once

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(f"the connection broke: {exc}" if exc else "the peer hung up")

    def _handle(self, events: Iterable[ngh2.Event]) -> None:
        for event in events:
            match event:
                case ngh2.DataReceived(stream, data, ended):
                    self.on_data(stream, data, ended)
                case ngh2.RequestReceived(stream, headers, ended):
                    self.on_request(stream, headers, ended)
                case ngh2.StreamClosed(stream):
                    self._waiting.pop(stream, None)
                    self.on_stream_closed(stream)
                case ngh2.TrailersReceived(stream, headers):
                    self.on_trailers(stream, headers)
                case ngh2.ResponseReceived(stream, headers, ended):
                    self.on_response(stream, headers, ended)
                case ngh2.ConnectionClosed():
                    self._hang_up()

    def _flush(self) -> None:
        self._flush_due = self._gathering = False
        if self.lost or self._full or self._transport.is_closing():
            return
        try:
            data = self.h2.data_to_send()
            if self._to_reset:
                data += self._resets()
        except ngh2.NGH2Error as error:
            self.abort(f"nothing more can be sent: {error}")
            return
        events = self.h2.events()
        if data:
            ahead = b"".join(map(self._ahead, events)) if events else b""
            self._transport.write(ahead + data if ahead else data)
        self._handle(events)
        if self._waiting and not self._full:
            self._wake()

    def _ahead(self, event: ngh2.Event) -> bytes:
        match event:
            case ngh2.StreamClosed(stream, ngh2.ErrorCode.PROTOCOL_ERROR):
                return self.answer_of_malformed(stream)
        return b""

    def _resets(self) -> bytes:
        later = []
        for stream in self._to_reset:
            if self.h2.queued_body_size(stream):
                later.append(stream)
            else:
                with suppress(ngh2.NGH2Error):  # it is closed already
                    self.h2.reset_stream(stream, ngh2.ErrorCode.NO_ERROR)
        self._to_reset = later
        return self.h2.data_to_send()

    def _wake(self) -> None:
        for stream in [each for each in self._waiting if self.has_room(each)]:
            on_room = self._waiting.pop(stream, None)
            if on_room is not None:
                on_room()

    def _hang_up(self) -> None:
        """The protocol is over: what it still has to say, and then nothing."""
        with suppress(ngh2.NGH2Error):
            self._transport.write(self.h2.data_to_send())
        self._transport.close()

    def _check_alive(self) -> None:
        """Pings a silent peer; one that stays silent is gone."""
        if self.lost:
            return
        if self._heard:
            self._heard = False
            self._keepalive = self.loop.call_later(_KEEPALIVE_S, self._check_alive)
            return
        try:
            self.h2.ping()
        except ngh2.NGH2Error:
            self.abort("the connection is ending")
            return
        self._flush()
        self._keepalive = self.loop.call_later(_PING_S, self._check_answered)

    def _check_answered(self) -> None:
        if self.lost:
            return
        if self._heard:
            self._keepalive = self.loop.call_later(_KEEPALIVE_S, self._check_alive)
        else:
            self.abort(f"the peer has been silent for {_KEEPALIVE_S + _PING_S:g} s")

    def _lose(self, why: str) -> None:
        if self.lost:
            return
        self.lost = True
        self._waiting.clear()
        if self._keepalive is not None:
            self._keepalive.cancel()
        self.on_lost(why)
