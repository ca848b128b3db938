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


class Burst:
    """What goes out to many clients, written in one go: at the end of the loop's turn, or `gather_s` later.

    A frame brings tokens of many streams. Written one by one as they are made up, each write wakes a reader that has
    gone to sleep over the last; written together, they find it awake. What is gathered longer than a step makes fewer
    and larger writes, and it is writes that cost.

    Args:
        gather_s: 0: a turn of the loop.
    """

    def __init__(self, gather_s: float = 0.0) -> None:
        self._waiting: dict[asyncio.Transport, list[bytes]] = {}
        self._gather_s = gather_s
        self._due: asyncio.Handle | None = None

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """To be written with the others'; whoever writes to `transport` himself calls `write_out` before."""
        waiting = self._waiting.get(transport)
        if waiting is not None:
            waiting.append(data)
            return
        self._waiting[transport] = [data]
        if self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_later(self._gather_s, self.flush) if self._gather_s else loop.call_soon(self.flush)

    def write_out(self, transport: asyncio.Transport) -> None:
        """Writes what waits for one client; the others' stays together."""
        if (parts := self._waiting.pop(transport, None)) is not None:
            transport.write(b"".join(parts))

    def flush(self) -> None:
        """Writes what waits."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        waiting, self._waiting = self._waiting, {}
        for transport, parts in waiting.items():
            transport.write(parts[0] if len(parts) == 1 else b"".join(parts))


class EventSink:
    """One stream of events; its messages wait until it is open."""

    def __init__(self, answer: Answer, burst: Burst) -> None:
        self._answer = answer
        self._burst = burst
        self._transport: asyncio.Transport | None = None
        self._chunked = False
        self._begun = False
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
        framed = b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events
        if self._begun:
            self._burst.write(transport, framed)
        else:  # nobody waits for company with the first token
            self._begun = True
            transport.write(framed)
        return True

    def ended(self, error: TokenworksError | None) -> None:
        self._ended, self._error = True, error
        if error is not None and self._transport is not None:
            events = error_event(error)
            framed = b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events
            self._burst.write(self._transport, framed)
        if self._transport is not None:
            self._burst.write_out(self._transport)  # what ends the response is written past it
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
