"""The bus as services see it: publish facts, read facts, ask a worker to do something. `nats/bus.py` is the real one,
`memory_bus.py` its twin for tests; both pass `tests/contract/test_bus.py`.

Identity. What a service publishes on one channel is numbered from 1 without gaps, by `publisher:epoch:sequence`
(`EventId`): the publisher is `<service id>.<channel>`, the epoch is new at each start of the process. A reader keeps
each publisher's sequences and so sees duplicates and gaps.

Guarantees. `publish` never waits for the server: the event goes into a bounded outbox that is sent in order and retried
until the server has acknowledged it. A full outbox raises `OutboxFull` before anything is numbered, so a service can
refuse work instead of doing work nobody will count. Best-effort channels skip the outbox.

`consume` gives a durable reader its messages in batches: when the handler returns they are acked, when it raises they
come again. `watch` gives a reader what is new (and, for last-per-subject channels, what stands), with no acks. `replay`
gives a reader what a stream holds, from its first message on, once. `ask_again` has a publisher send to its stream once
more what a reader lacks: every publisher keeps the last of what the server has acknowledged.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from services.mesh.events import (
    Control,
    ControlAnswered,
    Event,
    GapAnswered,
    LeaseAsked,
    LeaseGranted,
    SequenceRange,
)
from services.mesh.partitions import ALL
from services.mesh.subjects import Channel

_SEQUENCE: Final = re.compile(r"[0-9]{1,19}")
_LONGEST_ID: Final = 512


@dataclass(frozen=True, slots=True)
class EventId:
    """`str()` gives `publisher:epoch:sequence`; sequence starts at 1."""

    publisher: str
    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.publisher}:{self.epoch}:{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> "EventId":
        """Raises ValueError: `text` has not the form `publisher:epoch:sequence` with a sequence from 1 to 2**63 - 1, or
        is longer than 512 characters."""
        publisher, epoch, sequence = (["", "", "", *text.rsplit(":", 2)])[-3:]
        number = int(sequence) if _SEQUENCE.fullmatch(sequence) else 0
        if not publisher or not epoch or not 1 <= number < 1 << 63 or len(text) > _LONGEST_ID:
            raise ValueError(f"{text[:_LONGEST_ID]!r} is not an event id; expected publisher:epoch:sequence")
        return cls(publisher, epoch, number)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a durable reader is in its stream.

    Attributes:
        acked: the position up to which it has acked everything; 0 for a new one.
        last: the position of the stream's last message.
        left: messages that it has not acked, those included that it, or one before it, was given.
    """

    acked: int
    last: int
    left: int

    def passed(self, line: int) -> bool:
        """Whether it has acked all that was in the stream when that one's last message was at `line`."""
        return not self.left or self.acked >= line


@dataclass(frozen=True, slots=True)
class Delivered:
    """One message as it reached a reader.

    Attributes:
        traceparent: W3C context of the publish span; empty when the publisher was not traced.
        attempt: 1 on first delivery.
        stream_sequence: position in the stream; 0 on core NATS.
        pending: messages behind this one in the reader's stream, as the server told.
    """

    id: EventId
    event: Event
    subject: str
    traceparent: str = ""
    attempt: int = 1
    stream_sequence: int = 0
    pending: int = 0


BatchHandler = Callable[[Sequence[Delivered]], Awaitable[None]]
Handler = Callable[[Delivered], Awaitable[None]]
ControlHandler = Callable[[Control], Awaitable[ControlAnswered]]
LeaseHandler = Callable[[Sequence[LeaseAsked]], Awaitable[Sequence[LeaseGranted]]]


class Bus(Protocol):
    async def connect(self) -> None:
        """Connects and reconciles the streams of `subjects.STREAMS`.

        Raises:
            BusUnavailable: no server answers within the settings' `connect_timeout_s`.
        """
        ...

    def publish(self, event: Event, *, traceparent: str = "") -> EventId:
        """Numbers the event and hands it to the outbox (or, on a best-effort channel, to the socket).

        Args:
            traceparent: context that the publish span becomes a child of; the current span's when empty.

        Raises:
            OutboxFull: the channel's outbox is at its bound; nothing was numbered.
        """
        ...

    @property
    def outbox_free(self) -> float:
        """The free part of the fullest outbox, 0 to 1: a worker refuses new requests near 0."""
        ...

    async def flush(self, timeout_s: float) -> int:
        """Waits until the outboxes are empty or the time is over; the number of events still unacknowledged."""
        ...

    async def consume(
        self,
        channels: Sequence[Channel],
        durable: str,
        handler: BatchHandler,
        *,
        batch: int = 256,
        after_sequence: int = 0,
    ) -> None:
        """Runs until cancelled: feeds the handler, in stream order, up to `batch` messages at a time.

        Args:
            after_sequence: where in the stream a durable reader begins that is new.

        The handler's effects must be committed when it returns. When it raises, its messages are given back and come
        again after a delay; what cannot be decoded goes to `tw.dead.<durable>` with the reason, and is acked.
        All channels must belong to one stream.
        """
        ...

    async def watch(self, channels: Sequence[Channel], handler: Handler) -> None:
        """Runs until cancelled: what stands on last-per-subject channels, then everything new. Lossy under overload.

        An exception from the handler is logged and counted, and the watch goes on.
        """
        ...

    async def replay(
        self, channels: Sequence[Channel], handler: BatchHandler, *, batch: int = 256, after_sequence: int = 0
    ) -> int:
        """Feeds the handler, in stream order, what the channels' stream holds as this is called; how many that was.

        Args:
            after_sequence: only what is behind this position of the stream.

        Nothing is acked or changed; what cannot be decoded is passed over, as it was put aside when it was consumed.
        What the handler raises ends the replay. All channels must belong to one stream.

        Raises:
            BusUnavailable: the connection was lost before the end; start over.
        """
        ...

    async def progress(self, channels: Sequence[Channel], durable: str) -> Progress:
        """How far a durable reader is in the channels' stream; one that is new has acked nothing.

        Raises:
            BusUnavailable: the server does not say.
        """
        ...

    async def ask_again(
        self, publisher: str, epoch: str, ranges: Sequence[SequenceRange], timeout_s: float
    ) -> GapAnswered:
        """Has a publisher send these events to their stream again; readers drop those they have.

        Args:
            publisher: as in `EventId`.
            ranges: at most `publishing.MOST_RANGES`; of what is in them `publishing.MOST_AGAIN` events are sent.

        Raises:
            BusUnavailable: nobody answered in time: the publisher is gone, or there is no connection.
        """
        ...

    async def request_control(self, worker: str, asked: Control, timeout_s: float) -> ControlAnswered:
        """Raises WorkerLost: nobody answered on `tw.control.<worker>` in time."""
        ...

    async def serve_control(self, worker: str, handler: ControlHandler) -> None:
        """Runs until cancelled: answers what arrives on `tw.control.<worker>`."""
        ...

    async def ask_lease(self, asked: LeaseAsked, timeout_s: float, *, partition: int = 0) -> LeaseGranted:
        """Raises BusUnavailable: no meter answered on `tw.leases.<partition>` in time."""
        ...

    async def serve_leases(self, handler: LeaseHandler, partitions: Iterable[int] = ALL) -> None:
        """Runs until cancelled: answers what arrives on `tw.leases.<partition>`, as many at once as wait.

        What the handler raises is logged; who asked gets no answer, and asks again.
        """
        ...

    async def close(self) -> None:
        """Closes the connection; what the outboxes still hold is reported in the log with its count."""
        ...
