"""gRPC, by a client of its own that costs nearly nothing: `Router.Generate`, whose tokens are counted without decoding
messages, and beneath it any call whose answer is read piece by piece.

A connection carries `streams_per_connection` requests at once.
"""

import asyncio
import struct
import time
from typing import Final, NamedTuple, Protocol, cast

from bench.datapath import http2
from bench.datapath.answers import TokenCounter
from bench.datapath.orders import Order, Reading
from tokenworks.v1 import inference_pb2 as wire

_CONNECT_S: Final = 10.0
_WINDOW: Final = 8 << 20
_GIVE_BACK: Final = 1 << 20  # of a connection's window, at once
_MESSAGE_HEAD: Final = 5


Metadata = tuple[tuple[str, str], ...]


class Tally(Protocol):
    """Counts the tokens of one answer."""

    def feed(self, data: bytes) -> int:
        """The tokens that `data`, which follows what was fed before, completes."""


class GrpcChannel:
    """Connections to one server.

    Args:
        streams_per_connection: at most, at once.
    """

    def __init__(self, address: str, streams_per_connection: int) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._most = streams_per_connection
        self._connections: list[_Connection] = []

    async def call(
        self,
        method: str,
        request: bytes,
        metadata: Metadata,
        reading: Reading,
        tally: Tally,
        *,
        wanted: int,
        slow_bytes_s: int = 0,
    ) -> None:
        """Makes a call and returns when its answer is over. Cancelled, it resets the stream.

        Args:
            method: full name, like `/tokenworks.v1.Router/Generate`.
            wanted: tokens of a whole answer.

        Raises:
            OSError: no connection.
        """
        connection = await self._connection(slow_bytes_s)
        fields = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", f"{self._host}:{self._port}"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *metadata,
        )
        number = connection.open(http2.header_block(fields), http2.grpc_message(request), _Open(reading, tally, wanted))
        try:
            await reading.done
        finally:
            connection.release(number)
            if slow_bytes_s:
                connection.transport.abort()

    async def unary(self, method: str, request: bytes, metadata: Metadata) -> bytes:
        """Calls a method with one answer; the answer's bytes.

        Raises:
            ConnectionError: there was none. OSError: no connection.
        """
        reading, whole = Reading(time.monotonic()), _Whole()
        await self.call(method, request, metadata, reading, whole, wanted=0)
        if len(whole.data) < _MESSAGE_HEAD:
            raise ConnectionError(f"{method} was refused")
        return whole.data[_MESSAGE_HEAD:]

    async def close(self) -> None:
        for connection in self._connections:
            connection.transport.close()

    async def _connection(self, slow_bytes_s: int) -> "_Connection":
        if not slow_bytes_s:
            self._connections = [each for each in self._connections if each.usable]
            for connection in self._connections:
                if connection.taken < self._most:
                    connection.taken += 1
                    return connection
        async with asyncio.timeout(_CONNECT_S):
            _, made = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(slow_bytes_s), self._host, self._port
            )
        made.taken = 1
        if not slow_bytes_s:
            self._connections.append(made)
        return made


class GrpcClient:
    """`Router.Generate`, relayed."""

    def __init__(self, order: Order) -> None:
        self._channel = GrpcChannel(order.address, order.streams_per_connection)

    async def request(self, order: Order, reading: Reading) -> None:
        await self._channel.call(
            "/tokenworks.v1.Router/Generate",
            generate_request(order).SerializeToString(),
            authorization(order),
            reading,
            TokenCounter(),
            wanted=order.tokens,
            slow_bytes_s=order.slow_bytes_s if reading.slow else 0,
        )

    async def close(self) -> None:
        await self._channel.close()


def generate_request(order: Order) -> wire.GenerateRequest:
    return wire.GenerateRequest(
        model=order.model,
        text="Say something of no importance, at length.",
        sampling=wire.Sampling(max_tokens=order.tokens, seed=int(order.step_ms), ignore_eos=True),
    )


def authorization(order: Order) -> Metadata:
    return (("authorization", f"Bearer {order.key}"),) if order.key else ()


class _Whole:
    """Keeps an answer, in which no tokens are counted."""

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: bytes) -> int:
        self.data += data
        return 0


class _Open(NamedTuple):
    reading: Reading
    tally: Tally
    wanted: int


class _Connection(asyncio.Protocol):
    """`taken`: how many requests it was given and has not released."""

    transport: asyncio.Transport

    def __init__(self, slow_bytes_s: int) -> None:
        self.taken = 0
        self.usable = True
        self._slow_bytes_s = slow_bytes_s
        self._frames = http2.FrameReader()
        self._open: dict[int, _Open] = {}
        self._next = 1
        self._taken_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        window = 65_535 if self._slow_bytes_s else _WINDOW
        self.transport.write(http2.PREFACE + http2.settings((http2.INITIAL_WINDOW, window)))
        if not self._slow_bytes_s:
            self.transport.write(http2.window_update(0, _WINDOW - 65_535))

    def open(self, header_block: bytes, body: bytes, stream: "_Open") -> int:
        """Starts a call; the number of its stream."""
        number, self._next = self._next, self._next + 2
        self._open[number] = stream
        self.transport.write(
            http2.frame(http2.HEADERS, http2.END_HEADERS, number, header_block)
            + http2.frame(http2.DATA, http2.END_STREAM, number, body)
        )
        return number

    def release(self, number: int) -> None:
        """The caller is done with the stream; what still runs of it is reset."""
        self.taken -= 1
        if self._open.pop(number, None) is not None and self.usable:
            self.transport.write(http2.frame(http2.RST_STREAM, 0, number, struct.pack(">I", 8)))

    def data_received(self, data: bytes) -> None:
        if self._slow_bytes_s:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(len(data) / self._slow_bytes_s, self._resume)
        now_s = time.monotonic()
        for frame in self._frames.feed(data):
            if frame.kind == http2.DATA:
                self._taken_bytes += len(frame.payload)
                stream = self._open.get(frame.stream)
                if stream is not None and (count := stream.tally.feed(frame.payload)):
                    stream.reading.came(count, now_s)
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
        for number in list(self._open):
            self._end(number)

    def _end(self, number: int) -> None:
        ended = self._open.pop(number, None)
        if ended is not None:
            ended.reading.end("" if ended.reading.tokens == ended.wanted else "tokens lost or repeated")

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()
