"""Chat completions over HTTP/1.1, streamed: one request at a time on a connection, connections kept and used again."""

import asyncio
import json
import socket
import time
from typing import Final, cast

from bench.datapath.answers import End, HttpAnswer
from bench.datapath.orders import Order, Reading

_CONNECT_S: Final = 10.0
_SLOW_BUFFER_BYTES: Final = 4096


class HttpClient:
    def __init__(self, order: Order) -> None:
        self._host, _, port = order.address.rpartition(":")
        self._port = int(port)
        self._idle: list[_Connection] = []
        self._bodies: dict[tuple[str, int, float], bytes] = {}

    async def request(self, order: Order, reading: Reading) -> None:
        connection = await self._connection(order, slow=reading.slow)
        try:
            connection.send(self._request(order), reading, order.tokens)
            await reading.done
        finally:
            if connection.answer.end is End.WHOLE and not connection.answer.close and not reading.slow:
                self._idle.append(connection)
            else:
                connection.drop()

    async def close(self) -> None:
        for connection in self._idle:
            connection.transport.close()

    async def _connection(self, order: Order, *, slow: bool) -> "_Connection":
        while self._idle and not slow:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        sock = socket.socket()
        if slow:  # or the kernel reads ahead what the reader does not take
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER_BYTES)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                await loop.sock_connect(sock, (self._host, self._port))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                bytes_s = order.slow_bytes_s if slow else 0
                _, connection = await loop.create_connection(lambda: _Connection(bytes_s), sock=sock)
                return connection
        except BaseException:
            sock.close()
            raise

    def _request(self, order: Order) -> bytes:
        which = (order.model, order.tokens, order.step_ms)
        if which not in self._bodies:
            body = json.dumps(
                {
                    "model": order.model,
                    "messages": [{"role": "user", "content": "Say something of no importance, at length."}],
                    "max_tokens": order.tokens,
                    "seed": int(order.step_ms),
                    "stream": True,
                    "stream_options": {"include_usage": True},
                }
            ).encode()
            bearer = f"Authorization: Bearer {order.key}\r\n" if order.key else ""
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{bearer}"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            self._bodies[which] = head.encode() + body
        return self._bodies[which]


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, slow_bytes_s: int) -> None:
        self.answer = HttpAnswer()
        self._slow_bytes_s = slow_bytes_s
        self._reading: Reading | None = None
        self._wanted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses

    def send(self, request: bytes, reading: Reading, wanted: int) -> None:
        self.answer, self._reading, self._wanted = HttpAnswer(), reading, wanted
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        reading = self._reading
        if reading is None:
            return
        if self._slow_bytes_s:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(len(data) / self._slow_bytes_s, self._resume)
        if count := self.answer.feed(data):
            reading.came(count, time.monotonic())
        if self.answer.end is not End.OPEN:
            self._end(reading)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reading is not None:
            self.answer.closed()
            self._end(self._reading)

    def drop(self) -> None:
        """Breaks off what still runs."""
        self._reading = None
        self.transport.abort()

    def _end(self, reading: Reading) -> None:
        answer, self._reading = self.answer, None
        if answer.status not in (0, 200):
            reading.end(f"status {answer.status}")
        elif answer.end is End.BROKEN:
            reading.end("broken off")
        else:
            reading.end("" if answer.tokens == self._wanted else "tokens lost or repeated")

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()
