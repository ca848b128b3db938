"""What a broker in memory keeps: its streams, how far each durable reader is, and a stored message on its way.

In: messages as a server takes them. Out: the same, by sequence number, to whoever reads: `memory_bus.py`.
"""

import asyncio
import bisect
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from services.mesh.publishing import MESSAGE_ID
from services.mesh.subjects import Stream, channel_at

_WATCH_HELD: Final = 65_536


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as the broker keeps it; no stream's name and sequence 0 where none keeps it."""

    stream: str
    sequence: int
    subject: str
    headers: Mapping[str, str]
    body: bytes


class MemoryStream:
    """What one stream holds, by sequence number."""

    def __init__(self, stream: Stream) -> None:
        self.messages: dict[int, Stored] = {}
        self.last_sequence = 0
        self._stream = stream
        self._ids: set[str] = set()
        self._last_of: dict[str, int] = {}

    def store(
        self, subject: str, headers: Mapping[str, str], body: bytes, *, whatever_its_id: bool = False
    ) -> list[Stored]:
        """The message as stored; nothing when one of its id is there already."""
        message_id = headers.get(MESSAGE_ID, "")
        if message_id in self._ids and not whatever_its_id:
            return []
        if message_id:
            self._ids.add(message_id)
        self.last_sequence += 1
        stored = Stored(self._stream.name, self.last_sequence, subject, dict(headers), body)
        if self._stream.last_per_subject:
            if (before := self.messages.pop(self._last_of.get(subject, 0), None)) is not None:
                self._ids.discard(before.headers.get(MESSAGE_ID, ""))
            self._last_of[subject] = stored.sequence
        self.messages[stored.sequence] = stored
        return [stored]

    def expire(self, most: int) -> None:
        """Forgets all but the latest messages, and their ids."""
        while len(self.messages) > most:
            oldest = self.messages.pop(next(iter(self.messages)))
            self._ids.discard(oldest.headers.get(MESSAGE_ID, ""))
            if self._last_of.get(oldest.subject) == oldest.sequence:
                del self._last_of[oldest.subject]

    def lose(self, event_id: str) -> None:
        for sequence, stored in list(self.messages.items()):
            if stored.headers.get(MESSAGE_ID) == event_id:
                del self.messages[sequence]


class Cursor:
    """A durable reader's place in a stream; what came back comes first."""

    def __init__(self, stream: MemoryStream) -> None:
        self.attempts: dict[int, int] = {}  # deliveries so far of what is not acked
        self._stream = stream
        self._next = 1
        self._began = False
        self._returned: list[int] = []

    def begin_after(self, sequence: int) -> None:
        """Where it begins if nothing was taken yet; what was keeps its place."""
        if not self._began:
            self._next = max(self._next, sequence + 1)
        self._began = True

    def take(self, channels: frozenset[str]) -> Stored | None:
        """The next message of these channels, or None."""
        while self._returned:
            if (stored := self._stream.messages.get(self._returned.pop(0))) is not None:
                return self._given(stored)
        while self._next <= self._stream.last_sequence:
            stored = self._stream.messages.get(self._next)
            self._next += 1
            if stored is not None and (channel := channel_at(stored.subject)) and channel.name in channels:
                return self._given(stored)
        return None

    @property
    def floor(self) -> int:
        """The sequence number up to which everything is acked."""
        return min(self.attempts, default=self._next) - 1

    @property
    def ahead(self) -> int:
        """Messages that are not given out yet."""
        return self._stream.last_sequence + 1 - self._next

    @property
    def behind(self) -> int:
        """Messages that are not given out yet, or not acked."""
        return self.ahead + len(self.attempts)

    def put_back(self, sequence: int) -> None:
        if sequence in self.attempts and sequence not in self._returned:
            bisect.insort(self._returned, sequence)

    def put_everything_back(self) -> None:
        for sequence in self._stream.messages:
            if sequence < self._next:
                self.attempts.setdefault(sequence, 1)
                self.put_back(sequence)

    def _given(self, stored: Stored) -> Stored:
        self.attempts[stored.sequence] = self.attempts.get(stored.sequence, 0) + 1
        return stored


class Taken:
    """A stored message on its way to one reader, as `reading.Incoming`.

    Args:
        pending: messages of its stream that its reader has not been given yet.
        news: is called once it came back to be read again.
        cursor: None for a watch.
    """

    def __init__(self, stored: Stored, *, pending: int, news: Callable[[], None], cursor: Cursor | None = None) -> None:
        self.subject = stored.subject
        self.headers = stored.headers
        self.body = stored.body
        self.stream_sequence = stored.sequence
        self.attempt = cursor.attempts[stored.sequence] if cursor else 1
        self.pending = pending
        self._news = news
        self._cursor = cursor
        self._settled = False

    async def ack(self) -> None:
        if self._cursor is not None and not self._settled:
            self._cursor.attempts.pop(self.stream_sequence, None)
        self._settled = True

    async def give_back(self, delay_s: float) -> None:
        if self._cursor is not None and not self._settled:
            asyncio.get_running_loop().call_later(delay_s, self._come_back, self._cursor)
        self._settled = True

    async def keep(self) -> None:
        pass

    def _come_back(self, cursor: Cursor) -> None:
        cursor.put_back(self.stream_sequence)
        self._news()


class Watch:
    """What a watch has not seen yet; when it is full the oldest goes."""

    def __init__(self, channels: frozenset[str]) -> None:
        self.channels = channels
        self.held: deque[Stored] = deque(maxlen=_WATCH_HELD)
