"""An HTTP/1.1 client whose connections stay warm: bytes go out as they are, and an answer is read to its end.

In: a request's bytes. Out: the answer's status and body. A request that may leave its connection in any other state
than before it goes out on one of its own.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from tests.fuzz.target import Wrong

_MOST_READ: Final = 4 << 20


@dataclass(slots=True)
class Answer:
    """Of a request.

    Attributes:
        status: 0 where the server hung up before it had said anything, or in the middle.
        whole: it ended as its own headers say; the connection may be used again.
    """

    status: int
    body: bytes = b""
    whole: bool = False


class HttpConnection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.lost = False
        self._transport: Any = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._heard = bytearray()
        self._bodyless = False

    @classmethod
    async def connect(cls, port: int) -> "HttpConnection":
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def ask(self, said: bytes, within_s: float, *, bodyless: bool = False) -> Answer:
        """What is answered.

        Args:
            bodyless: the answer has headers only, whatever they say (HEAD).

        Raises:
            TimeoutError: nothing came, or not all of it. Wrong: what came is no HTTP.
        """
        loop = asyncio.get_running_loop()
        self._waiting, self._bodyless = loop.create_future(), bodyless
        self._heard.clear()
        if self.lost:
            return Answer(0)
        self._transport.write(said)
        waiting = self._waiting
        timer = loop.call_later(within_s, lambda: waiting.done() or waiting.set_exception(TimeoutError()))
        try:
            return await waiting
        finally:
            timer.cancel()

    def heard_anything(self) -> bool:
        return bool(self._heard)

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if self._waiting is None or self._waiting.done():
            return
        try:
            answer = self._answer()
        except Wrong as wrong:
            self._waiting.set_exception(wrong)
            return
        if answer is not None:
            self._waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._waiting is not None and not self._waiting.done():
            head, end, body = bytes(self._heard).partition(b"\r\n\r\n")
            try:
                self._waiting.set_result(Answer(status_of(head), body) if end else Answer(0))
            except Wrong as wrong:
                self._waiting.set_exception(wrong)

    def _answer(self) -> Answer | None:
        """None as long as more of it has to come."""
        heard = self._heard
        while True:
            end = heard.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = bytes(heard[:end])
            if not head.startswith(b"HTTP/1.1 100"):
                break
            del heard[: end + 4]
        status, fields = status_of(head), _fields(head)
        body = bytes(heard[end + 4 :])
        keeps = fields.get(b"connection") != b"close"
        if self._bodyless or status in (204, 304):
            return Answer(status, whole=keeps and not body)
        if b"content-length" in fields:
            size = int(fields[b"content-length"])
            if len(body) >= min(size, _MOST_READ):
                return Answer(status, body, whole=keeps and len(body) == size)
        elif fields.get(b"transfer-encoding") == b"chunked" and (b"\r\n" + body).endswith(b"\r\n0\r\n\r\n"):
            return Answer(status, body, whole=keeps)
        return None  # as long as the connection stands


def status_of(head: bytes) -> int:
    """Of an answer's first line; 0 for none. Raises Wrong: it is none of HTTP."""
    if not head:
        return 0
    parts = head.split(b" ", 2)
    if not head.startswith(b"HTTP/") or len(parts) < 2 or not parts[1].isdigit():
        raise Wrong(f"an answer that is no HTTP: {head[:80]!r}")
    return int(parts[1])


def _fields(head: bytes) -> dict[bytes, bytes]:
    lines = head.lower().split(b"\r\n")[1:]
    return {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
