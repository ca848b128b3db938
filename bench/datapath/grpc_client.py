"""`Router.Generate` over gRPC, by a client of its own that counts tokens without decoding messages.

A connection carries `streams_per_connection` requests at once.
"""

import asyncio
import struct
import time
from typing import Final, cast

from bench.datapath import http2
from bench.datapath.answers import TokenCounter
from bench.datapath.orders import Order, Reading
from tokenworks.v1 import inference_pb2 as wire

_CONNECT_S: Final = 10.0
_WINDOW: Final = 8 << 20
_GIVE_BACK: Final = 1 << 20  # of a connection's window, at once


class GrpcClient:
    """Calls one method of the server at an order's address.

    Args:
        method: full name, like `/tokenworks.v1.Router/Generate`.
    """

    def __init__(self, order: Order, method: str = "/tokenworks.v1.Router/Generate") -> None:
        self._host, _, port = order.address.rpartition(":")
        self._port = int(port)
        self._most = order.streams_per_connection
        self._method = method
        self._connections: list[_Connection] = []

    async def request(self, order: Order, reading: Reading) -> None:
        request = wire.GenerateRequest(
            model=order.model,
            text="Say something of no importance, at length.",
            sampling=wire.Sampling(max_tokens=order.tokens, seed=int(order.step_ms), ignore_eos=True),
        )
        await self.call(request.SerializeToString(), self._metadata(order), reading, order)

    async def call(self, request: bytes, metadata: tuple[tuple[str, str], ...], reading: Reading, order: Order) -> None:
        connection = await self._connection(order, slow=reading.slow)
        fields = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", self._method),
            (":authority", f"{self._host}:{self._port}"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *metadata,
        )
        number = connection.open(http2.header_block(fields), http2.grpc_message(request), reading, order.tokens)
        try:
            await reading.done
        finally:
            connection.release(number)
            if reading.slow:
                connection.transport.abort()

    async def close(self) -> None:
        for connection in self._connections:
            connection.transport.close()

    @staticmethod
    def _metadata(order: Order) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {order.key}"),) if order.key else ()

    async def _connection(self, order: Order, *, slow: bool) -> "_Connection":
        if not slow:
            self._connections = [each for each in self._connections if each.usable]
            for connection in self._connections:
                if connection.taken < self._most:
                    connection.taken += 1
                    return connection
        bytes_s = order.slow_bytes_s if slow else 0
        async with asyncio.timeout(_CONNECT_S):
            _, made = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(bytes_s), self._host, self._port
            )
        made.taken = 1
        if not slow:
            self._connections.append(made)
        return made


class _Connection(asyncio.Protocol):
    """`taken`: how many requests it was given and has not released."""

    transport: asyncio.Transport

    def __init__(self, slow_bytes_s: int) -> None:
        self.taken = 0
        self.usable = True
        self._slow_bytes_s = slow_bytes_s
        self._frames = http2.FrameReader()
        self._readings: dict[int, tuple[Reading, int, TokenCounter]] = {}
        self._next = 1
        self._taken_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        window = 65_535 if self._slow_bytes_s else _WINDOW
        self.transport.write(http2.PREFACE + http2.settings((http2.INITIAL_WINDOW, window)))
        if not self._slow_bytes_s:
            self.transport.write(http2.window_update(0, _WINDOW - 65_535))

    def open(self, header_block: bytes, body: bytes, reading: Reading, wanted: int) -> int:
        """Starts a call; the number of its stream."""
        number, self._next = self._next, self._next + 2
        self._readings[number] = (reading, wanted, TokenCounter())
        self.transport.write(
            http2.frame(http2.HEADERS, http2.END_HEADERS, number, header_block)
            + http2.frame(http2.DATA, http2.END_STREAM, number, body)
        )
        return number

    def release(self, number: int) -> None:
        """The caller is done with the stream; what still runs of it is reset."""
        self.taken -= 1
        if self._readings.pop(number, None) is not None and self.usable:
            self.transport.write(http2.frame(http2.RST_STREAM, 0, number, struct.pack(">I", 8)))

    def data_received(self, data: bytes) -> None:
        if self._slow_bytes_s:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(len(data) / self._slow_bytes_s, self._resume)
        now_s = time.monotonic()
        for frame in self._frames.feed(data):
            if frame.kind == http2.DATA:
                self._taken_bytes += len(frame.payload)
                open_here = self._readings.get(frame.stream)
                if open_here is not None and (count := open_here[2].feed(frame.payload)):
                    open_here[0].came(count, now_s)
            elif frame.kind == http2.SETTINGS and not frame.flags & http2.ACK:
                self.transport.write(http2.frame(http2.SETTINGS, http2.ACK, 0))
            elif frame.kind == http2.PING and not frame.flags & http2.ACK:
                self.transport.write(http2.frame(http2.PING, http2.ACK, 0, frame.payload))
            elif frame.kind == http2.GOAWAY:
                self.usable = False
            if frame.kind == http2.RST_STREAM or (
                frame.kind in (http2.DATA, http2.HEADERS) and frame.flags & http2.END_STREAM
            ):
                self._end(frame.stream)
        if self._taken_bytes >= (_GIVE_BACK if not self._slow_bytes_s else 16_384):
            self.transport.write(http2.window_update(0, self._taken_bytes))
            self._taken_bytes = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        for number in list(self._readings):
            self._end(number)

    def _end(self, number: int) -> None:
        ended = self._readings.pop(number, None)
        if ended is not None:
            reading, wanted, _ = ended
            reading.end("" if reading.tokens == wanted else "tokens lost or repeated")

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()
