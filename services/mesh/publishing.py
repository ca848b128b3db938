"""What every bus does with an event before it travels: number it, bound it, head it, trace it.

In: events and the identity of their publisher. Out: `Outgoing` messages in one bounded outbox per channel, in the order
of their sequence numbers. The transports (`nats_bus.py`, `memory_bus.py`) take from the outbox and give back nothing:
what was acknowledged is dropped from its front.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from services.mesh import conventions as names
from services.mesh.bus import EventId
from services.mesh.codec import encode
from services.mesh.errors import OutboxFull
from services.mesh.events import Event, LatencyObserved, TokensGenerated
from services.mesh.subjects import Channel, subject_of
from services.mesh.telemetry import TRACEPARENT, Telemetry, context_of, current_traceparent, links_to, traceparent_of

MESSAGE_ID_HEADER: Final = "Nats-Msg-Id"
CONTENT_TYPE: Final = "application/protobuf"


@dataclass(slots=True)
class Outgoing:
    """One message on its way; `span` is open until the server has it."""

    id: EventId
    subject: str
    body: bytes
    headers: dict[str, str]
    span: Span | None


class Outbox:
    """The unacknowledged messages of one channel, oldest first.

    Args:
        capacity: most messages held.
        on_added: called after each message that was added.
    """

    def __init__(
        self, channel: Channel, publisher: str, epoch: str, capacity: int, on_added: Callable[[], None]
    ) -> None:
        self.channel = channel
        self.waiting: deque[Outgoing] = deque()
        self._publisher = publisher
        self._epoch = epoch
        self._capacity = capacity
        self._on_added = on_added
        self._sequence = 0

    @property
    def free(self) -> float:
        return 1.0 - len(self.waiting) / self._capacity

    def add(self, event: Event, traceparent: str, telemetry: Telemetry, unix_ms: int) -> EventId:
        """Numbers the event and puts it last.

        Raises:
            OutboxFull: nothing was numbered.
            ValueError: the event does not fit the wire; nothing was numbered.
        """
        if len(self.waiting) >= self._capacity:
            raise OutboxFull(
                f"{len(self.waiting)} events of channel {self.channel.name} wait for the bus, as many as "
                "nats.outbox_events allows; is the server up?"
            )
        body = encode(event)
        self._sequence += 1
        event_id = EventId(self._publisher, self._epoch, self._sequence)
        subject = subject_of(event)
        parent = traceparent or current_traceparent()
        span = _publish_span(self.channel, event, subject, event_id, parent=parent, telemetry=telemetry)
        sent_as = traceparent_of(span) if span is not None else parent
        self.waiting.append(Outgoing(event_id, subject, body, headers_of(event, event_id, sent_as, unix_ms), span))
        self._on_added()
        return event_id

    def acknowledged(self, count: int) -> None:
        """The first `count` messages are with the server."""
        for _ in range(count):
            done = self.waiting.popleft()
            if done.span is not None:
                done.span.end()


def headers_of(event: Event, event_id: EventId, traceparent: str, unix_ms: int) -> dict[str, str]:
    """The headers that every message carries: identity, CloudEvents, trace context."""
    at = datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    headers = {
        MESSAGE_ID_HEADER: str(event_id),
        "ce-specversion": "1.0",
        "ce-id": str(event_id),
        "ce-source": f"/tokenworks/{event_id.publisher}",
        "ce-type": f"tokenworks.v1.{type(event).__name__}",
        "ce-time": at,
        "content-type": CONTENT_TYPE,
    }
    if traceparent:
        headers[TRACEPARENT] = traceparent
    return headers


def id_in(headers: Mapping[str, str]) -> EventId:
    """Raises ValueError: the headers name no event."""
    return EventId.parse(headers.get(MESSAGE_ID_HEADER, ""))


def _publish_span(
    channel: Channel, event: Event, subject: str, event_id: EventId, *, parent: str, telemetry: Telemetry
) -> Span | None:
    """The PRODUCER span of a message, linked to the requests whose facts a batch carries; None when nothing exports."""
    if not telemetry.exporting:
        return None
    linked: list[str] = []
    count = 0
    if isinstance(event, TokensGenerated):
        linked, count = [entry.traceparent for entry in event.entries if entry.traceparent], len(event.entries)
    elif isinstance(event, LatencyObserved):
        linked, count = [each.traceparent for each in event.requests if each.traceparent], len(event.requests)
    attributes: dict[str, str | int] = {
        names.MESSAGING_SYSTEM: "nats",
        names.MESSAGING_OPERATION_NAME: "publish",
        names.MESSAGING_OPERATION_TYPE: "send",
        names.MESSAGING_DESTINATION: subject,
        names.MESSAGING_DESTINATION_TEMPLATE: channel.template,
        names.MESSAGING_MESSAGE_ID: str(event_id),
    }
    if count:
        attributes[names.MESSAGING_BATCH_COUNT] = count
    return telemetry.tracer.start_span(
        names.publish_span(channel.template),
        context_of(parent) if parent else Context(),
        SpanKind.PRODUCER,
        attributes,
        links_to(linked),
    )
