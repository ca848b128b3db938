"""One call on a fast gRPC server, from its headers to its status. It is the context that its method's handler gets.

In: a request's bytes. Out: headers, messages and a status on one stream of a connection. A handler ends by returning,
by `abort`, by its caller's leaving or its deadline (both cancel it), or by a defect, which is logged.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from inspect import isawaitable
from typing import Any, Final, NoReturn

import grpc
import ngh2

from services.mesh.errors import QueueFull, RequestTimedOut, TokenworksError
from services.mesh.grpc_wire import (
    CONTENT_TYPE,
    ENCODINGS,
    Messages,
    Metadata,
    framed,
    headers_of,
    message_header,
    metadata_of,
    timeout_s,
)
from services.mesh.http2 import Headers, Http2Connection
from services.mesh.rpc import shortened, status_of

log = logging.getLogger(__name__)

_MOST_REQUESTS: Final = 1024  # of a streaming call that its handler has not taken yet
_OPENING: Final = [
    (b":status", b"200"),
    (b"content-type", CONTENT_TYPE),
    (b"grpc-accept-encoding", b",".join(ENCODINGS)),
]


class Method:
    """A method's handler, unpacked once: it takes bytes. Its behaviour is a coroutine function or an async generator
    function."""

    def __init__(self, path: str, handler: "grpc.RpcMethodHandler[Any, Any]") -> None:
        self.path = path
        self.streams_in = bool(handler.request_streaming)
        self.streams_out = bool(handler.response_streaming)
        behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        self.behaviour: Any = behaviours[2 * self.streams_in + self.streams_out]
        self.serialise: Callable[[Any], bytes] = handler.response_serializer or _as_it_is


class ServerCall:
    """What this mesh's methods use of `grpc.aio.ServicerContext`, and `push`.

    Attributes:
        task: runs the handler; None until there is a request.
    """

    def __init__(
        self,
        connection: Http2Connection,
        stream: int,
        headers: Headers,
        fields: Mapping[bytes, bytes],
        *,
        limit_bytes: int,
        peer: str,
    ) -> None:
        """`fields`: the headers by name, of those of one name the first."""
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._stream = stream
        self._headers = headers
        self._fields = fields
        self._peer = peer
        self._timeout = fields.get(b"grpc-timeout", b"")
        self._messages = Messages(limit_bytes, fields.get(b"grpc-encoding", b""))
        self._metadata: Metadata | None = None
        self._method: Method | None = None
        self._requests: deque[bytes] = deque()
        self._request_came: asyncio.Event | None = None  # only where requests are a stream
        self._asked_all = False
        self._opened = self._pushed = False
        self._over = False
        self._trailing: Metadata = ()
        self._status = (grpc.StatusCode.OK, "")
        self._deadline: asyncio.TimerHandle | None = None

    # What a handler uses.

    def invocation_metadata(self) -> Metadata:
        if self._metadata is None:
            self._metadata = metadata_of(self._headers)
        return self._metadata

    def first_value(self, key: str) -> str:
        """The first value of a key that is not binary; empty when it was not sent."""
        return self._fields.get(key.encode("ascii"), b"").decode("latin-1")

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None where there is none."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline.when() - self._connection.loop.time())

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self._trailing = tuple(metadata)

    def open(self, metadata: Iterable[tuple[str, str | bytes]] = (), *, with_next: bool = False) -> None:
        """Sends the response's headers; without effect when they are sent. `with_next`: in one write with what follows
        them, its first message as a rule."""
        if self._opened or self._over:
            return
        self._opened = True
        with suppress(ngh2.NGH2Error):  # the stream or the connection is over: events tell of it
            self._connection.h2.send_response(self._stream, _OPENING + headers_of(metadata))
            if not with_next:
                self._connection.flush_soon()

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]] = ()) -> None:
        self.open(metadata)

    def push(self, message: bytes) -> bool:
        """Sends a serialised message, one past the first with what the server gathers; False, with nothing sent, when
        the client's side is full or gone."""
        if self._over or not self._connection.has_room(self._stream):
            return False
        if not self._opened:
            self.open()
        connection = self._connection
        try:
            connection.h2.send_data(self._stream, framed(message))
        except ngh2.NGH2Error:
            return False
        if self._pushed:
            connection.flush_gathered()
        else:  # nobody waits for company with the first message
            self._pushed = True
            connection.flush_soon()
        return True

    def tell_of_room(self, on_room: Callable[[], None]) -> None:
        """Calls `on_room` once when `push` may succeed again; never when the call ends first."""
        if not self._over:
            self._connection.tell_of_room(self._stream, on_room)

    async def write(self, message: Any) -> None:
        """Sends a message, once there is room for it."""
        assert self._method is not None, "a handler runs only with its method"
        data = self._method.serialise(message)
        while not self.push(data):
            room = asyncio.Event()
            self.tell_of_room(room.set)
            await room.wait()

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """Ends the call with a status; raises `grpc.aio.AbortError`, which the handler lets through."""
        self._status = (code, details)
        self._trailing = tuple(trailing_metadata) or self._trailing
        raise grpc.aio.AbortError

    # What the connection tells.

    @property
    def held_bytes(self) -> int:
        """Of a request that is not complete."""
        return self._messages.held_bytes

    def begin(self, method: Method) -> None:
        """Its method is known.

        Raises:
            MalformedMessage: the deadline is none.
        """
        self._method = method
        seconds = timeout_s(self._timeout)
        if seconds is not None:
            self._deadline = self._connection.loop.call_later(seconds, self._late, seconds)
        if method.streams_in:
            self._request_came = asyncio.Event()
            self._start(self._each_request(self._request_came))

    def request_data(self, data: bytes) -> None:
        """A part of the requests. Raises what `Messages.feed` raises."""
        if self._over or self._method is None:
            return
        self._requests.extend(self._messages.feed(data))
        if self._request_came is not None:
            self._request_came.set()
            if len(self._requests) > _MOST_REQUESTS:
                self.refuse_for(QueueFull(f"{len(self._requests)} requests of this call wait; send them more slowly"))

    def request_ended(self) -> None:
        """The client has said all."""
        self._asked_all = True
        method = self._method
        if self._over or method is None:
            return
        if self._request_came is not None:
            self._request_came.set()
        elif self.held_bytes or len(self._requests) != 1:
            incomplete = " and an incomplete one" if self.held_bytes else ""
            came = f"{len(self._requests)}{incomplete}"
            self.refuse(grpc.StatusCode.UNIMPLEMENTED, f"{method.path} takes one request, {came} came")
        else:
            self._start(self._requests.popleft())

    def refuse_for(self, error: TokenworksError) -> None:
        """As `refuse`, with the error's status and name."""
        status = status_of(error)
        self.refuse(status.code, status.details, status.trailing_metadata)

    def refuse(
        self, code: grpc.StatusCode, details: str, trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> None:
        """Ends the call for what came over the wire; a handler that runs is cancelled."""
        self._trailing = tuple(trailing_metadata)
        self._finish(code, shortened(details))
        if self.task is not None:
            self.task.cancel()

    def cut(self, code: grpc.StatusCode, details: str) -> None:
        """Cancels the handler; the call ends with this status."""
        if self.task is None:
            self.refuse(code, details)
        elif not self._over:
            self._status = (code, details)
            self.task.cancel()

    def _late(self, seconds: float) -> None:
        late = RequestTimedOut(f"the call's deadline has passed: it gave {seconds:g} s")
        if self.task is None:
            self.refuse_for(late)
        elif not self._over:
            status = status_of(late)
            self.set_trailing_metadata(status.trailing_metadata)
            self.cut(status.code, status.details)

    def peer_left(self) -> None:
        """The stream is over. A handler that still runs is cancelled."""
        if not self._over:
            self._end()
            if self.task is not None:
                self.task.cancel()

    def _start(self, request: Any) -> None:
        self.task = self._connection.loop.create_task(self._run(request))

    async def _run(self, request: Any) -> None:
        method = self._method
        assert method is not None, "started by `begin` or after it"
        try:
            result = method.behaviour(request, self)
            if not isawaitable(result):
                async with aclosing(result) as responses:
                    async for response in responses:
                        await self.write(response)
            elif method.streams_out:
                await result
            else:
                await self.write(await result)
        except grpc.aio.AbortError:
            self._finish(*self._status)
        except asyncio.CancelledError:
            cut = self._status[0] is not grpc.StatusCode.OK
            self._finish(*(self._status if cut else (grpc.StatusCode.CANCELLED, "the call was cancelled")))
            raise
        except Exception:
            log.exception("a defect in %s", method.path)
            self._finish(grpc.StatusCode.UNKNOWN, "an internal error; the service's log has the details")
        else:
            self._finish(grpc.StatusCode.OK, "")

    async def _each_request(self, came: asyncio.Event) -> AsyncIterator[bytes]:
        while True:
            while self._requests:
                yield self._requests.popleft()
            if self._asked_all:
                return
            came.clear()
            await came.wait()

    def _finish(self, code: grpc.StatusCode, details: str) -> None:
        if self._over:
            return
        number: int = code.value[0]
        trailers = [(b"grpc-status", b"%d" % number)]
        if details:
            trailers.append((b"grpc-message", message_header(details)))
        trailers += headers_of(self._trailing)
        connection = self._connection
        with suppress(ngh2.NGH2Error):  # the stream or the connection is over; events tell of it
            if self._opened:
                connection.h2.send_trailers(self._stream, trailers)
            else:
                connection.h2.send_response(self._stream, [*_OPENING, *trailers], end_stream=True)
            if not self._asked_all:
                connection.reset_when_sent(self._stream)
            connection.flush_soon()
        self._end()

    def _end(self) -> None:
        self._over = True
        self._requests.clear()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _as_it_is(message: Any) -> Any:
    return message
