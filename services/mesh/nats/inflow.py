"""What arrives over one NATS connection, held until a reader takes it: `PullInflow` from a JetStream pull consumer,
`PlainInflow` from a core subscription. Both bring messages as `reading.Incoming`; their `take` raises `ConnectionLost`
when nothing more will come.

The pull protocol. A request for a number of messages stays open at the server until it is filled, so that a message
travels as soon as it is stored; at most one request's worth is held here. Idle heartbeats tell a quiet stream from a
dead consumer. The client library's own `fetch` is not used: it makes two tasks per message, and swallows a cancellation
that meets a closed connection.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

_HEARTBEAT_S: Final = 2.0
_SILENCE_S: Final = 2.5 * _HEARTBEAT_S
_REQUEST_S: Final = 30.0
_NEXT: Final = "$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
_PLAIN_HELD: Final = 4096

_IDLE: Final = "100"
_OVER: Final = frozenset({"404", "408"})  # no message, or the request's time is over


class ConnectionLost(ConnectionError):
    """The connection, or the consumer at its other end, is gone; start over on another."""


class Message(Protocol):
    """What the client library brings: `nats.aio.msg.Msg`."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None

    @property
    def metadata(self) -> Any: ...
    async def ack(self) -> None: ...
    async def nak(self, delay: int | float | None = None) -> None: ...
    async def in_progress(self) -> None: ...


class Pulled:
    """A message of a stream."""

    __slots__ = ("_message", "_settled", "attempt", "body", "headers", "pending", "stream_sequence", "subject")

    def __init__(self, message: Message) -> None:
        self._message = message
        self._settled = False
        self.subject = message.subject
        self.headers: Mapping[str, str] = message.headers or {}
        self.body = message.data
        metadata = message.metadata
        self.attempt: int = metadata.num_delivered
        self.stream_sequence: int = metadata.sequence.stream
        self.pending: int = metadata.num_pending

    async def ack(self) -> None:
        if not self._settled:
            self._settled = True
            await self._message.ack()

    async def give_back(self, delay_s: float) -> None:
        if not self._settled:
            self._settled = True
            await self._message.nak(delay_s or None)

    async def keep(self) -> None:
        if not self._settled:
            await self._message.in_progress()


class Plain:
    """A message that no stream keeps: there is nothing to settle.

    Attributes:
        reply: where an answer is wanted; empty when none is.
    """

    __slots__ = ("body", "headers", "reply", "subject")
    attempt = 1
    stream_sequence = 0
    pending = 0

    def __init__(self, message: Message) -> None:
        self.subject = message.subject
        self.reply = message.reply
        self.headers: Mapping[str, str] = message.headers or {}
        self.body = message.data

    async def ack(self) -> None:
        pass

    async def give_back(self, delay_s: float) -> None:
        pass

    async def keep(self) -> None:
        pass


class PlainInflow:
    """Messages of a core subscription; when `_PLAIN_HELD` are held the oldest goes."""

    def __init__(self) -> None:
        self._held: deque[Plain] = deque(maxlen=_PLAIN_HELD)
        self._changed = asyncio.Event()
        self._lost = ""

    async def arrive(self, message: Message) -> None:
        """Takes what came on the subject."""
        self._held.append(Plain(message))
        self._changed.set()

    def lose(self, reason: str) -> None:
        """The connection is gone."""
        self._lost = reason
        self._changed.set()

    async def take(self, limit: int) -> list[Plain]:
        """The next messages, 1 to `limit`; waits until there is one. Raises ConnectionLost."""
        while not self._held:
            if self._lost:
                raise ConnectionLost(self._lost)
            self._changed.clear()
            await self._changed.wait()
        return [self._held.popleft() for _ in range(min(limit, len(self._held)))]


class PullInflow:
    """Messages of one pull consumer, in stream order.

    Args:
        inbox: messages and statuses come on `inbox.<request>`; `arrive` is the callback of a subscription to `inbox.*`.
        batch: most messages held; >= 1.
        send: publishes (subject, body, reply) on the connection.
    """

    def __init__(
        self, stream: str, consumer: str, inbox: str, batch: int, send: Callable[[str, bytes, str], Awaitable[None]]
    ) -> None:
        self._next = _NEXT.format(stream=stream, consumer=consumer)
        self._inbox = inbox
        self._batch = batch
        self._send = send
        self._held: deque[Pulled] = deque()
        self._owed: set[int] = set()  # stream sequences that were given back unseen and must come before others
        self._changed = asyncio.Event()
        self._request = 0
        self._expected = 0  # messages that the open request may still bring
        self._heard = False
        self._lost = ""

    async def arrive(self, message: Message) -> None:
        """Takes what came on the inbox."""
        self._heard = True
        headers = message.headers or {}
        status = "" if message.data else headers.get("Status", "")
        if status == _IDLE:
            return
        if not status:
            self._held.append(Pulled(message))
            self._expected -= 1
        elif status not in _OVER:
            self._lost = f"the server ended the reading with status {status}: {headers.get('Description', 'no reason')}"
        elif message.subject == f"{self._inbox}.{self._request}":
            self._expected = 0
        self._changed.set()

    def lose(self, reason: str) -> None:
        """The connection is gone."""
        self._lost = reason
        self._changed.set()

    async def take(self, limit: int) -> list[Pulled]:
        """See `reading.Inflow`. Raises ConnectionLost."""
        while not self._held:
            if self._lost:
                raise ConnectionLost(self._lost)
            if self._expected <= 0:
                await self._ask()
            self._heard = False
            self._changed.clear()
            try:
                async with asyncio.timeout(_SILENCE_S):
                    await self._changed.wait()
            except TimeoutError:
                if not self._heard:
                    raise ConnectionLost(f"the server was silent for {_SILENCE_S:g} s") from None
        return [self._held.popleft() for _ in range(min(limit, len(self._held)))]

    async def give_back(self, delay_s: float) -> None:
        while self._held:
            message = self._held.popleft()
            self._owed.add(message.stream_sequence)
            await message.give_back(delay_s)

    async def until_back(self, stream_sequences: Sequence[int], deadline_s: float) -> None:
        """See `reading.Inflow`. What comes meanwhile is held as well, at most one more request's worth."""
        owed = self._owed.union(stream_sequences)
        self._owed = set()
        try:
            async with asyncio.timeout(deadline_s):
                while not self._lost and not owed.issubset(message.stream_sequence for message in self._held):
                    if self._expected <= 0:
                        if len(self._held) >= 2 * self._batch:
                            break
                        await self._ask()
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass  # the stream's limits may have removed one; what is here goes on
        self._held = deque(sorted(self._held, key=lambda message: message.stream_sequence))

    async def keep(self) -> None:
        for message in tuple(self._held):
            await message.keep()

    async def _ask(self) -> None:
        self._request += 1
        self._expected = self._batch
        wanted = {"batch": self._batch, "expires": int(_REQUEST_S * 1e9), "idle_heartbeat": int(_HEARTBEAT_S * 1e9)}
        await self._send(self._next, json.dumps(wanted).encode(), f"{self._inbox}.{self._request}")
