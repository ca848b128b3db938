"""One bidirectional gRPC call on a connection of its own, read by callback: what a router's session with a worker is.

In: messages to send, and where what comes goes. Out: each message of the peer, within the turn of the loop that its
bytes came in: nobody is woken for it, no thread takes part. grpcio's servers serve it as any other client's.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import grpc
import ngh2

from services.mesh.errors import PeerError, TokenworksError
from services.mesh.grpc_wire import (
    CONTENT_TYPE,
    MalformedMessage,
    Messages,
    OversizedMessage,
    framed,
    headers_of,
    message_of,
    metadata_of,
)
from services.mesh.http2 import Headers, Http2Connection
from services.mesh.rpc import error_of

_TAKES_S: Final = 10.0  # for what was sent to leave
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class GrpcStream(Http2Connection):
    """Made by `connect`. Its end comes from the peer, from a broken connection, or by `close`."""

    def __init__(self, on_message: Callable[[bytes], None], limit_bytes: int) -> None:
        super().__init__(ngh2.Role.CLIENT)
        self._on_message = on_message
        self._messages = Messages(limit_bytes)
        self._stream = 0
        self._said_bytes = 0
        loop = asyncio.get_running_loop()
        self._answered: asyncio.Future[TokenworksError | None] = loop.create_future()
        self._ended: asyncio.Future[TokenworksError | None] = loop.create_future()
        self._unsent_since: asyncio.TimerHandle | None = None

    @classmethod
    async def connect(
        cls,
        address: str,
        method: str,
        metadata: Iterable[tuple[str, str]],
        on_message: Callable[[bytes], None],
        *,
        limit_bytes: int,
    ) -> "GrpcStream":
        """Calls `method` (like `/tokenworks.v1.Worker/Session`) at `host:port`; returns once it is answered.

        Args:
            on_message: called with each message of the peer; it does not raise.
            limit_bytes: of one message.

        Raises:
            OSError: nobody listens there, or it is no address.
            TokenworksError: the call was refused, or the connection broke.
        """
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            _, stream = await loop.create_connection(lambda: cls(on_message, limit_bytes), host.strip("[]"), int(port))
        except (ValueError, OverflowError) as wrong:  # a peer may say anything of where it listens
            raise ConnectionError(f"{address[:100]!r} is no host:port: {wrong}") from wrong
        try:
            stream._call(address, method, metadata)
            error = await stream._answered
            if stream._ended.done():
                raise error or PeerError(f"the call of {method} at {address} ended at once")
        except BaseException:
            stream.close()
            raise
        return stream

    def send(self, message: bytes) -> None:
        """Sends one message; without effect once the call has ended."""
        if self.lost or self._ended.done():
            return
        data = framed(message)
        try:
            self.h2.send_data(self._stream, data)
        except ngh2.NGH2Error:
            return  # the peer has ended the call, which the next events tell
        self._said_bytes += len(data)
        self.flush_soon()
        if self._unsent_since is None:
            self._unsent_since = self.loop.call_later(_TAKES_S, self._check_taken, -1)

    async def ended(self) -> TokenworksError | None:
        """Waits for the end: None when the peer ended the call well, else why it did or why the connection broke."""
        return await asyncio.shield(self._ended)

    def on_response(self, stream: int, headers: Headers, ended: bool) -> None:
        fields = dict(headers)
        if ended:
            self.on_trailers(stream, headers)
        elif fields.get(b":status") != b"200" or not fields.get(b"content-type", b"").startswith(CONTENT_TYPE):
            status = fields.get(b":status", b"").decode("latin-1")
            self._end(PeerError(f"the peer answers with HTTP status {status} where gRPC was expected"))
        elif not self._answered.done():
            self._answered.set_result(None)

    def on_data(self, stream: int, data: bytes, ended: bool) -> None:
        try:
            messages = self._messages.feed(data)
        except (MalformedMessage, OversizedMessage) as error:
            self._end(PeerError(f"the peer sent what can't be read: {error}"))
            return
        for message in messages:
            self._on_message(message)
        if ended:
            self._end(PeerError("the peer ended the call without a status"))

    def on_trailers(self, stream: int, headers: Headers) -> None:
        fields = dict(headers)
        code = _CODES.get(_number(fields.get(b"grpc-status", b"")), grpc.StatusCode.UNKNOWN)
        if code is grpc.StatusCode.OK:
            self._end(None)
            return
        details = message_of(fields.get(b"grpc-message", b""))
        trailing = grpc.aio.Metadata(*metadata_of(headers))
        failure = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details, None)
        self._end(error_of(failure))

    def on_stream_closed(self, stream: int) -> None:
        self._end(PeerError("the peer broke off the call"))

    def on_lost(self, why: str) -> None:
        self._end(PeerError(why))
        if self._unsent_since is not None:
            self._unsent_since.cancel()

    def _call(self, address: str, method: str, metadata: Iterable[tuple[str, str]]) -> None:
        self._stream = self.h2.send_request(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", method.encode("ascii")),
                (b":authority", address.encode("ascii")),
                (b"te", b"trailers"),
                (b"content-type", CONTENT_TYPE),
                *headers_of(metadata),
            ]
        )
        self.flush_soon()

    def _check_taken(self, before_bytes: int) -> None:
        """Hangs up on a peer that takes nothing of what waits for it.

        That something waits says nothing: in a busy turn of the loop there is always what was said just now.

        Args:
            before_bytes: all that had left at the last look.
        """
        waits_bytes = self.h2.queued_body_size()
        left_bytes = self._said_bytes - waits_bytes
        if waits_bytes and left_bytes == before_bytes:
            self.abort(f"the peer has taken nothing for {_TAKES_S:g} s")
        elif waits_bytes:
            self._unsent_since = self.loop.call_later(_TAKES_S, self._check_taken, left_bytes)
        else:
            self._unsent_since = None

    def _end(self, error: TokenworksError | None) -> None:
        if not self._ended.done():
            self._ended.set_result(error)
        if not self._answered.done():
            self._answered.set_result(error)


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() else -1
