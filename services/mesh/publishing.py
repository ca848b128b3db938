"""What every bus does with an event before it travels: encode it, number it, trace it, head it, and hold it in a
bounded outbox until the server has it.

In: events and who publishes them. Out: `Outgoing` messages, in one outbox per channel and in the order of their
sequence numbers. A transport (`nats/bus.py`, `memory_bus.py`) sends what `Outbox.next_to_send` gives and tells which
sequence numbers were acknowledged; where a connection was lost it starts over from the first that was not.

What was acknowledged last is kept beside the outbox, within bounds, for readers that lack it: a server can lose what it
acknowledged (a disk put back from a backup, a limit reached). It is sent again without its message id, which the server
would take for one that it has; the readers know it by `ce-id`.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.mesh import conventions as names
from services.mesh.bus import EventId
from services.mesh.clock import Clock
from services.mesh.codec import decode_gap_request, encode
from services.mesh.errors import OutboxFull
from services.mesh.events import Event, GapAnswered, LatencyObserved, SequenceRange, TokensGenerated
from services.mesh.sequences import common, merged, ranges_of, without
from services.mesh.spool import Spool, Spooled
from services.mesh.subjects import CHANNELS, Channel, Delivery, channel_of, subject_of
from services.mesh.telemetry import TRACEPARENT, Telemetry, context_of, current_traceparent, links_to, traceparent_of

EVENT_ID: Final = "ce-id"
MESSAGE_ID: Final = "Nats-Msg-Id"  # JetStream drops a second message of the same id within its duplicate window
CE_TYPE_PREFIX: Final = "tokenworks.v1."
CONTENT_TYPE: Final = "application/protobuf"
MAX_BODY_BYTES: Final = 1_000_000  # beside the headers, within the 1 MiB that NATS takes by default
MOST_AGAIN: Final = 1024  # events that one request for a gap has sent again
MOST_RANGES: Final = 512  # in one request for a gap
_BEST_EFFORT_HELD: Final = 64
_KEPT: Final = 1024  # acknowledged messages of one channel
_KEPT_BYTES: Final = 8 << 20


@dataclass(slots=True)
class Outgoing:
    """One message on its way. `span` is open until the server has the message; None when nothing is exported."""

    id: EventId
    subject: str
    headers: dict[str, str]
    body: bytes
    span: Span | None = None
    acknowledged: bool = False


class Outbox:
    """One channel's messages that the server has not acknowledged, oldest first.

    Attributes:
        changed: set whenever something was added, acknowledged or refused; the transport clears it.
        refusal: why the server refused a message since the transport last started over; empty when it did not.
    """

    def __init__(self, channel: Channel, capacity: int) -> None:
        self.channel = channel
        self.changed = asyncio.Event()
        self.refusal = ""
        self._capacity = capacity
        self._messages: deque[Outgoing] = deque()
        self._in_flight = 0
        self._kept: deque[Outgoing] = deque()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def oldest(self) -> int:
        """Sequence number of the first message held; 0 when there is none."""
        return self._messages[0].id.sequence if self._messages else 0

    @property
    def in_flight(self) -> int:
        """Messages sent since the transport last started over, from the front, that are still held."""
        return self._in_flight

    def check_room(self) -> None:
        """Raises OutboxFull: the outbox holds as many messages as it may."""
        if len(self._messages) >= self._capacity:
            raise OutboxFull(
                f"{len(self._messages)} events of channel {self.channel.name!r} wait for the bus, as many as"
                " nats.outbox_events allows; is the NATS server up?"
            )

    def add(self, message: Outgoing) -> None:
        """Puts the message last; there must be room."""
        assert len(self._messages) < self._capacity, "checked before numbering"
        self._messages.append(message)
        self.changed.set()

    def next_to_send(self, window: int) -> Outgoing | None:
        """The oldest message not sent yet; None when there is none, or when `window` messages are in flight."""
        most = min(window, len(self._messages))
        while self._in_flight < most:
            message = self._messages[self._in_flight]
            self._in_flight += 1
            if not message.acknowledged:
                return message
        return None

    def acknowledge(self, sequence: int) -> bool:
        """The server has the message of this number; False when that was known, or the number is not held."""
        position = sequence - self._messages[0].id.sequence if self._messages else -1
        if not 0 <= position < len(self._messages) or self._messages[position].acknowledged:
            return False
        message = self._messages[position]
        message.acknowledged = True
        if message.span is not None:
            message.span.end()
        while self._messages and self._messages[0].acknowledged:
            self._keep(self._messages.popleft())
            self._in_flight = max(0, self._in_flight - 1)
        self.changed.set()
        return True

    def within(self, ranges: Sequence[SequenceRange]) -> Iterator[Outgoing]:
        """The messages of these numbers that are held or, acknowledged, still kept; oldest first."""
        position = 0
        for each in (*self._kept, *self._messages):
            while position < len(ranges) and ranges[position].last < each.id.sequence:
                position += 1
            if position == len(ranges):
                return
            if ranges[position].first <= each.id.sequence:
                yield each

    def unacknowledged(self) -> Iterator[Outgoing]:
        """What the server does not have, oldest first."""
        return (each for each in self._messages if not each.acknowledged)

    def _keep(self, message: Outgoing) -> None:
        message.span = None
        self._kept.append(message)
        self._kept_bytes += len(message.body)
        while len(self._kept) > _KEPT or self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft().body)

    def refuse(self, reason: str) -> None:
        """The server would not take a message that is in flight."""
        self.refusal = reason
        self.changed.set()

    def start_over(self) -> int:
        """Everything held is to be sent again, in order; how many messages were in flight unacknowledged."""
        again = sum(1 for position in range(self._in_flight) if not self._messages[position].acknowledged)
        self._in_flight = 0
        self.refusal = ""
        return again

    def abandon(self) -> int:
        """Nobody will send what is held: its spans end as failures; how many messages those are."""
        for message in self._messages:
            if message.span is not None:
                message.span.set_status(Status(StatusCode.ERROR, "not acknowledged when the bus closed"))
                message.span.end()
        return len(self._messages)


class Publisher:
    """The publishing side of one service's bus.

    Args:
        spools: folder that keeps what counts and is not acknowledged for the next start; None: memory alone does.

    Attributes:
        spool: None where there is no folder for it.
        outboxes: by channel name; channels that may lose messages have none.
        best_effort: what is to be sent at once or not at all; when it is full the oldest goes.
        best_effort_added: set when something was put there; the transport clears it.
    """

    def __init__(
        self,
        service: str,
        instance: str,
        telemetry: Telemetry,
        clock: Clock,
        outbox_events: int,
        *,
        spools: Path | None = None,
    ) -> None:
        self.name = f"{service}.{instance}"
        self.outboxes = {each.name: Outbox(each, outbox_events) for each in CHANNELS if each.stream is not None}
        self._outbox_events = outbox_events
        # Asked with every request how long they are.
        self._queues = [each._messages for each in self.outboxes.values()]
        self.best_effort: deque[Outgoing] = deque(maxlen=_BEST_EFFORT_HELD)
        self.best_effort_added = asyncio.Event()
        self._emptied = asyncio.Event()
        self._epoch = f"{clock.unix_ms():x}{secrets.token_hex(3)}"
        self.spool = Spool(spools, self.name, self._epoch) if spools is not None else None
        self._unspooled: list[Outgoing] = []
        self._counted = [each for each in self.outboxes.values() if _counts(each.channel)]
        self._sequences = dict.fromkeys((each.name for each in CHANNELS), 0)
        self._telemetry = telemetry
        self._clock = clock
        meter = telemetry.meter
        self._source = f"/tokenworks/{self.name.replace('.', '/', 1)}"
        self._second = (0, "")  # the last one that was written out
        self._acknowledged = dict.fromkeys((each.channel.template for each in self.outboxes.values()), 0)
        meter.create_observable_counter(
            names.BUS_PUBLISHED, [self._observe_acknowledged], "{message}", "Messages acknowledged by the server"
        )
        self._retried = meter.create_counter(names.BUS_RETRIED, "{message}", "Messages sent again")
        meter.create_observable_gauge(names.BUS_OUTBOX, [self._observe], "{message}", "Unacknowledged messages")

    def publish(self, event: Event, traceparent: str) -> EventId:
        """Numbers the event and puts it where the transport takes it from.

        Raises:
            OutboxFull: the channel's outbox is full; nothing was numbered.
            ValueError: the event does not fit the wire, or is larger than a message may be; nothing was numbered.
        """
        channel = channel_of(event)
        outbox = self.outboxes.get(channel.name)
        if outbox is not None:
            outbox.check_room()
        body = encode(event)
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"{type(event).__name__} has {len(body)} bytes; publish it in parts of {MAX_BODY_BYTES}")
        self._sequences[channel.name] += 1
        event_id = EventId(f"{self.name}.{channel.name}", self._epoch, self._sequences[channel.name])
        subject, parent = subject_of(event), traceparent or current_traceparent()
        if outbox is None:
            self.best_effort.append(Outgoing(event_id, subject, self._headers(event, event_id, parent), body))
            self.best_effort_added.set()
            return event_id
        span = self._span(channel, event, subject, event_id, parent) if self._telemetry.exporting else None
        sent_as = traceparent_of(span) if span is not None else parent
        message = Outgoing(event_id, subject, self._headers(event, event_id, sent_as), body, span)
        outbox.add(message)
        if self.spool is not None and _counts(channel):
            if not self._unspooled:
                asyncio.get_running_loop().call_soon(self._write_spool)
            self._unspooled.append(message)
        return event_id

    def acknowledged(self, channel_name: str, sequence: int) -> None:
        """The server has the message of this number of this channel."""
        outbox = self.outboxes[channel_name]
        if outbox.acknowledge(sequence):
            self._acknowledged[outbox.channel.template] += 1
            if self.spool is not None and _counts(outbox.channel):
                self.spool.acknowledged(_spooled(each) for box in self._counted for each in box.unacknowledged())
            if not len(outbox) and not self.unacknowledged:
                self._emptied.set()

    def start_over(self, outbox: Outbox) -> None:
        """See `Outbox.start_over`; counts what is sent again."""
        if again := outbox.start_over():
            self._retried.add(again, {names.MESSAGING_DESTINATION_TEMPLATE: outbox.channel.template})

    @property
    def outbox_free(self) -> float:
        return 1.0 - max(map(len, self._queues)) / self._outbox_events

    @property
    def unacknowledged(self) -> int:
        return sum(map(len, self._queues))

    async def flush(self, timeout_s: float) -> int:
        """See `Bus.flush`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.unacknowledged:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            pass
        return self.unacknowledged

    def again(self, body: bytes) -> tuple[list[Outgoing], GapAnswered]:
        """What a request for a gap asks for: what is to be stored again, and the answer once it is.

        Raises:
            ValueError: the request cannot be read, is not for this publisher, or asks for more ranges than one may.
        """
        gap = decode_gap_request(body)
        name, _, channel = gap.publisher.rpartition(".")
        outbox = self.outboxes.get(channel)
        if name != self.name or outbox is None:
            raise ValueError(f"{gap.publisher!r} is no publisher here; this is {self.name}")
        if len(gap.ranges) > MOST_RANGES:
            raise ValueError(f"{len(gap.ranges)} ranges are asked for at once; at most {MOST_RANGES} may be")
        if gap.epoch != self._epoch:
            return [], GapAnswered(sent_ranges=(), lacking=(), last=0)
        last = self._sequences[channel]
        published = (SequenceRange(1, last),) if last else ()
        one_by_one = ranges_of(gap.sequences[:MOST_AGAIN])
        asked = common(merged((*gap.ranges, *one_by_one)), published)
        had = list(outbox.within(asked))
        lacking = without(asked, ranges_of(each.id.sequence for each in had))
        # What is not acknowledged is on its way already.
        sent = [*islice((each for each in had if each.acknowledged), MOST_AGAIN)]
        found = [
            Outgoing(each.id, each.subject, {k: v for k, v in each.headers.items() if k != MESSAGE_ID}, each.body)
            for each in sent
        ]
        numbers = sorted(each.id.sequence for each in (*sent, *(each for each in had if not each.acknowledged)))
        return found, GapAnswered(
            sent_ranges=ranges_of(numbers),
            lacking=lacking,
            last=last,
            sent=tuple(numbers) if gap.sequences else (),
        )

    def abandon(self) -> int:
        """Ends the spans of what no server has acknowledged; how many events those are."""
        if self.spool is not None:
            self._write_spool()
            self.spool.close(sum(len(outbox) for outbox in self._counted))
        return sum(outbox.abandon() for outbox in self.outboxes.values())

    def _write_spool(self) -> None:
        """Once for all that a turn of the loop published."""
        unspooled, self._unspooled = self._unspooled, []
        if self.spool is not None and unspooled:
            self.spool.keep(*map(_spooled, unspooled))

    def _headers(self, event: Event, event_id: EventId, traceparent: str) -> dict[str, str]:
        seconds, ms = divmod(self._clock.unix_ms(), 1000)
        if seconds != self._second[0]:
            self._second = seconds, f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
        written = str(event_id)
        headers = {
            MESSAGE_ID: written,
            "ce-specversion": "1.0",
            EVENT_ID: written,
            "ce-source": self._source,
            "ce-type": CE_TYPE_PREFIX + type(event).__name__,
            "ce-time": f"{self._second[1]}.{ms:03d}Z",
            "content-type": CONTENT_TYPE,
        }
        if traceparent:
            headers[TRACEPARENT] = traceparent
        return headers

    def _span(self, channel: Channel, event: Event, subject: str, event_id: EventId, parent: str) -> Span:
        """The PRODUCER span, linked to the requests whose facts a batch carries."""
        attributes: dict[str, str | int] = {
            names.MESSAGING_SYSTEM: "nats",
            names.MESSAGING_OPERATION_NAME: "publish",
            names.MESSAGING_OPERATION_TYPE: "send",
            names.MESSAGING_DESTINATION: subject,
            names.MESSAGING_DESTINATION_TEMPLATE: channel.template,
            names.MESSAGING_MESSAGE_ID: str(event_id),
        }
        linked: list[str] = []
        if isinstance(event, TokensGenerated):
            linked = [entry.traceparent for entry in event.entries if entry.traceparent]
            attributes[names.MESSAGING_BATCH_COUNT] = len(event.entries)
        elif isinstance(event, LatencyObserved):
            linked = [each.traceparent for each in event.requests if each.traceparent]
            attributes[names.MESSAGING_BATCH_COUNT] = len(event.requests) + len(event.steps)
        return self._telemetry.tracer.start_span(
            names.publish_span(channel.template),
            context_of(parent),
            SpanKind.PRODUCER,
            attributes,
            links_to(linked),
        )

    def _observe_acknowledged(self, _: CallbackOptions) -> Iterator[Observation]:
        for template, count in self._acknowledged.items():
            yield Observation(count, {names.MESSAGING_DESTINATION_TEMPLATE: template})

    def _observe(self, _: CallbackOptions) -> Iterator[Observation]:
        for outbox in self.outboxes.values():
            yield Observation(len(outbox), {names.MESSAGING_DESTINATION_TEMPLATE: outbox.channel.template})


def _counts(channel: Channel) -> bool:
    """Whether what a channel carries may not be lost with its process."""
    return channel.delivery is Delivery.EXACTLY_ONCE_EFFECT


def _spooled(message: Outgoing) -> Spooled:
    return Spooled(message.subject, message.headers, message.body)
