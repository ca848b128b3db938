"""A gRPC client that costs next to nothing: hundreds of calls at once on one warm connection, no thread, no task each.

grpcio's own costs several times what a service spends on a call that it refuses. In: a method's path, metadata and the
bytes of requests, which nothing here looks at. Out: how the call ended.
"""

import asyncio
import base64
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import grpc
import ngh2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from services.mesh.grpc_wire import CONTENT_TYPE, Messages, framed, headers_of, message_of
from services.mesh.http2 import Headers, Http2Connection

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_LIMIT_BYTES: Final = 64 << 20


@dataclass(slots=True)
class Ended:
    """How a call ended.

    Attributes:
        code: None for one that was left before it had ended.
        reason: of the error's `ErrorInfo`; empty where there is none.
        answers: the messages that came, at most as many as were asked for.
    """

    code: grpc.StatusCode | None
    details: str
    reason: str
    answers: list[bytes]


class _Call:
    """One call; it ends by its status, by its last message that is asked for, or by silence."""

    def __init__(self, caller: "GrpcCaller", most_answers: int, silence_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self.stream = 0
        self._caller = caller
        self._most_answers = most_answers
        self._silence_s = silence_s
        self._messages = Messages(_LIMIT_BYTES)
        self._answers: list[bytes] = []
        self._timer = loop.call_later(silence_s, self.leave)

    def data(self, data: bytes) -> None:
        self._answers += self._messages.feed(data)
        if len(self._answers) >= self._most_answers:
            self.leave()
        elif self._answers:
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self._silence_s, self.leave)

    def end(self, code: grpc.StatusCode, details: str, reason: str = "") -> None:
        self._resolve(Ended(code, details, reason, self._answers))

    def leave(self) -> None:
        """Goes away, as a client does that has enough or has waited long enough."""
        self._caller.reset(self.stream)
        self._resolve(Ended(None, "", "", self._answers))

    def _resolve(self, ended: Ended) -> None:
        self._timer.cancel()
        if not self.ended.done():
            self.ended.set_result(ended)


class GrpcCaller(Http2Connection):
    """Made by `connect`; `lost` once its server has hung up."""

    def __init__(self) -> None:
        super().__init__(ngh2.Role.CLIENT)
        self._calls: dict[int, _Call] = {}

    @classmethod
    async def connect(cls, port: int) -> "GrpcCaller":
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(cls, "127.0.0.1", port)
        return caller

    async def call(
        self,
        path: str,
        metadata: Iterable[tuple[str, str | bytes]],
        bodies: Sequence[bytes],
        *,
        timeout_s: float,
        most_answers: int,
        silence_s: float,
    ) -> Ended:
        """Sends all requests and waits for the end, for so many answers, or for so long a silence."""
        call = _Call(self, most_answers, silence_s)
        headers = [
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"mesh"),
            (b"te", b"trailers"), (b"content-type", CONTENT_TYPE), (b"grpc-timeout", b"%du" % (timeout_s * 1e6)),
            *headers_of(metadata),
        ]  # fmt: skip
        try:
            call.stream = self.h2.send_request(headers)
            self._calls[call.stream] = call
            self.h2.send_data(call.stream, b"".join(map(framed, bodies)), end_stream=True)
        except ngh2.NGH2Error as error:
            call.end(grpc.StatusCode.UNAVAILABLE, f"the connection takes no call: {error}")
        self.flush_soon()
        return await call.ended

    def reset(self, stream: int) -> None:
        """Breaks a call off."""
        self._calls.pop(stream, None)
        if not self.lost:
            with suppress(ngh2.NGH2Error):  # it is over already
                self.h2.reset_stream(stream, ngh2.ErrorCode.CANCEL)
            self.flush_soon()

    def on_response(self, stream: int, headers: Headers, ended: bool) -> None:
        if ended:
            self.on_trailers(stream, headers)

    def on_data(self, stream: int, data: bytes, ended: bool) -> None:
        if (call := self._calls.get(stream)) is not None:
            call.data(data)

    def on_trailers(self, stream: int, headers: Headers) -> None:
        if (call := self._calls.pop(stream, None)) is None:
            return
        fields = dict(headers)
        status = fields.get(b"grpc-status", b"")
        if not status.isdigit() or int(status) not in _CODES:
            call.end(grpc.StatusCode.UNKNOWN, f"an end without a status: {headers!r}")
            return
        reason = _reason(fields.get(b"grpc-status-details-bin", b""))
        call.end(_CODES[int(status)], message_of(fields.get(b"grpc-message", b"")), reason)

    def on_stream_closed(self, stream: int) -> None:
        if (call := self._calls.pop(stream, None)) is not None:
            call.end(grpc.StatusCode.UNKNOWN, "the stream was reset without a status")

    def on_lost(self, why: str) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.end(grpc.StatusCode.UNKNOWN, f"the connection ended under it: {why}")


@lru_cache(maxsize=512)
def _reason(details: bytes) -> str:
    """Of the `ErrorInfo` in a status's details."""
    try:
        status = status_pb2.Status.FromString(base64.b64decode(details + b"=" * (-len(details) % 4)))
    except (ValueError, DecodeError):
        return ""
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for each in status.details if each.Unpack(info)), "")
