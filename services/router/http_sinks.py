"""A client's side on HTTP: a worker's messages as server-sent events, or as one answer.

In: messages, as they come. Out: bytes on the client's connection, written within the call that brought the message. A
connection that is full takes nothing more until it has drained; `Relay.flush` then offers what has grown together.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from services.mesh.errors import TokenworksError
from services.mesh.openai.answers import Answer, error_event
from tokenworks.v1 import inference_pb2 as wire

_parse: Final = wire.GenerateResponse.FromString
_HIGH_WATER_BYTES: Final = 32 << 10  # buffered for one client before its messages are held and merged


class EventSink:
    """One stream of events; its messages wait until it is open."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._transport: asyncio.Transport | None = None
        self._chunked = False
        self._ended = False
        self._error: TokenworksError | None = None
        self._news = asyncio.Event()  # it is full, or ended

    async def begun(self) -> None:
        """Waits for the first message. Raises what the stream ended with, when there is none."""
        await self._news.wait()
        if self._error is not None:
            raise self._error

    def open(self, transport: asyncio.Transport, *, chunked: bool) -> None:
        """The headers are on their way, events may follow; `chunked` as HTTP/1.1 frames them."""
        transport.set_write_buffer_limits(_HIGH_WATER_BYTES)
        self._transport, self._chunked = transport, chunked
        self._news.clear()

    async def held(self) -> bool:
        """Waits until messages are held, since the connection is full; False once everything is written."""
        await self._news.wait()
        self._news.clear()
        return not self._ended

    def message(self, data: bytes) -> bool:
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() > _HIGH_WATER_BYTES:
            self._news.set()
            return False
        if transport.is_closing():
            return False  # its handler is about to be cancelled
        events = self._answer.events(_parse(data))
        transport.write(b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events)
        return True

    def ended(self, error: TokenworksError | None) -> None:
        self._ended, self._error = True, error
        if error is not None and self._transport is not None:
            events = error_event(error)
            self._transport.write(b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events)
        self._news.set()


class WholeSink:
    """One answer in one piece."""

    def __init__(self) -> None:
        self._messages: list[wire.GenerateResponse] = []
        self._end: asyncio.Future[TokenworksError | None] = asyncio.get_running_loop().create_future()

    async def all(self) -> Sequence[wire.GenerateResponse]:
        """Every message, once the last has come. Raises what the stream ended with."""
        if (error := await self._end) is not None:
            raise error
        return self._messages

    def message(self, data: bytes) -> bool:
        # Its times are those at which the answer grew here; whether it reaches the client shows at the end.
        self._messages.append(_parse(data))
        return True

    def ended(self, error: TokenworksError | None) -> None:
        if not self._end.done():  # else its client is gone
            self._end.set_result(error)
