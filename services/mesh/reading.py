"""What every bus does with a message that reaches a reader: decode it, hand it over, and settle it.

In: raw messages from a transport (`Incoming`, `Inflow`). Out: `Delivered` to the reader's handler; then an ack, or the
message given back, or put aside as a dead letter.

A batch whose handler raised is given back whole and comes again after a delay that doubles, one message at a time, so
that the one at fault fails alone. Up to `_PATIENCE` attempts its successors wait for it, which keeps the order through
a short outage of what the handler depends on; after that they pass it, unless they fail as well. A message that has
failed alone `Consumer.most_attempts` times, while others were handled, is at fault itself: it is put aside as a dead
letter. While nothing is handled at all, nothing is put aside, however long that lasts.
"""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

from opentelemetry.metrics import CallbackOptions, Observation

from services.mesh import conventions as names
from services.mesh.bus import BatchHandler, ControlHandler, Delivered, EventId, Handler, LeaseHandler
from services.mesh.codec import decode, decode_control, decode_lease_asked, encode_lease
from services.mesh.errors import QueueFull
from services.mesh.events import ControlAnswered
from services.mesh.publishing import EVENT_ID, MESSAGE_ID
from services.mesh.subjects import Channel, channel_at, consumer_of, subject_of
from services.mesh.telemetry import TRACEPARENT, Telemetry

log = logging.getLogger(__name__)

DEAD_REASON: Final = "tw-reason"
DEAD_SUBJECT: Final = "tw-subject"
RETRY_MOST_S: Final = 10.0
_PATIENCE: Final = 3
_SAY_EVERY_S: Final = 1.0
_SHOWN: Final = 200  # characters of what a message says, in the log
_FAILING_KEPT: Final = 4096
_BACK_S: Final = 1.0  # a message that is not back so long after its delay is not waited for
_KEEP_EVERY_S: Final = 3.0  # a transport's patience with an unsettled message must be some times this


class Incoming(Protocol):
    """One raw message; settled by the first `ack` or `give_back`, later ones do nothing."""

    @property
    def subject(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...
    @property
    def attempt(self) -> int: ...
    @property
    def stream_sequence(self) -> int: ...
    @property
    def pending(self) -> int: ...

    async def ack(self) -> None: ...
    async def give_back(self, delay_s: float) -> None: ...
    async def keep(self) -> None:
        """Tells the transport that this message is still being worked on."""
        ...


class Inflow(Protocol):
    """Where a reader's messages come from."""

    async def take(self, limit: int) -> Sequence[Incoming]:
        """The next messages, 1 to `limit`, in stream order; waits until there is one."""
        ...

    async def give_back(self, delay_s: float) -> None:
        """Gives back what was received and not taken yet."""
        ...

    async def until_back(self, stream_sequences: Sequence[int], deadline_s: float) -> None:
        """Waits until these messages, and those of `give_back`, have come again, so that none is taken before them."""
        ...

    async def keep(self) -> None:
        """See `Incoming.keep`, for what was received and not taken yet."""
        ...


def delivered(message: Incoming) -> Delivered:
    """The event in a message.

    Raises:
        ValueError: subject, id, type or body are not those of an event, or do not go together.
    """
    channel = channel_at(message.subject)
    if channel is None:
        raise ValueError(f"subject {message.subject!r} belongs to no channel")
    event_id = EventId.parse(message.headers.get(EVENT_ID) or message.headers.get(MESSAGE_ID, ""))
    event = decode(channel.event, message.body)
    if (named := subject_of(event)) != message.subject:
        # Protobuf reads many wrong bytes as some message; what it names must be where it came from.
        raise ValueError(f"{channel.event.__name__} in the body belongs on {named!r}, it came on {message.subject!r}")
    return Delivered(
        id=event_id,
        event=event,
        subject=message.subject,
        traceparent=message.headers.get(TRACEPARENT, ""),
        attempt=message.attempt,
        stream_sequence=message.stream_sequence,
        pending=message.pending,
    )


class ReaderCounts:
    """The metrics of one service's readers."""

    def __init__(self, telemetry: Telemetry) -> None:
        meter = telemetry.meter
        self._consumed: dict[str, int] = {}  # by reader; added up here, since the SDK takes its time for each
        meter.create_observable_counter(names.BUS_CONSUMED, [self._observe], "{message}", "Messages handled")
        self.failed = meter.create_counter(names.BUS_FAILED, "{message}", "Messages whose reader failed")
        self.dead = meter.create_counter(names.BUS_DEAD, "{message}", "Messages that could not be decoded")

    def consumed(self, reader: str, messages: int) -> None:
        self._consumed[reader] = self._consumed.get(reader, 0) + messages

    def _observe(self, _: CallbackOptions) -> Iterator[Observation]:
        for reader, count in list(self._consumed.items()):
            yield Observation(count, {names.MESSAGING_CONSUMER_GROUP: reader})


class DurableReader:
    """One durable reader's handling of its messages, whatever brings them.

    Args:
        bury: puts a message aside with the reason; the message is acked when it returns.
        retry_s: the first delay after a failure.
    """

    def __init__(
        self,
        durable: str,
        handler: BatchHandler,
        counts: ReaderCounts,
        bury: Callable[[Incoming, str], Awaitable[None]],
        *,
        batch: int,
        retry_s: float,
    ) -> None:
        self._durable = durable
        self._handler = handler
        self._counts = counts
        self._bury = bury
        self._batch = batch
        self._retry_s = retry_s
        self._one_by_one = 0  # messages still to be handed over singly
        self._failed_last = 0  # stream sequence of what failed since anything succeeded
        self._most_attempts = consumer_of(durable).most_attempts
        self._handled = 0  # messages
        self._handled_at_failure: OrderedDict[int, int] = OrderedDict()  # by stream sequence: `_handled` as it failed
        self._labels = {names.MESSAGING_CONSUMER_GROUP: durable}

    async def run(self, inflow: Inflow) -> None:
        """Reads until cancelled, or until the inflow or the settling of a message raises."""
        while True:
            messages = await inflow.take(1 if self._one_by_one else self._batch)
            await self._process(messages, inflow)

    async def _process(self, messages: Sequence[Incoming], inflow: Inflow) -> None:
        try:
            good, events = await self._decoded(messages)
            if not good:
                return
            keeper = asyncio.create_task(_keep(good, inflow), name=f"keep-{self._durable}")
            try:
                await self._handler(events)
            except Exception as error:
                if len(good) == 1 and self._at_fault(good[0]):
                    await self._put_aside(good[0], f"its reader failed {good[0].attempt} times: {error!r}")
                else:
                    await self._failed(good, inflow)
                return
            finally:
                keeper.cancel()
            for message in good:
                await message.ack()
        except BaseException:
            # Cancelled, or the transport broke: whatever is not settled comes again at once.
            for message in messages:
                with suppress(Exception):  # of a broken transport, which must not hide what broke off
                    await message.give_back(0.0)
            raise
        self._failed_last = 0
        self._handled += len(good)
        for message in good:
            self._handled_at_failure.pop(message.stream_sequence, None)
        self._one_by_one = max(0, self._one_by_one - len(good))
        self._counts.consumed(self._durable, len(good))

    async def _decoded(self, messages: Sequence[Incoming]) -> tuple[list[Incoming], list[Delivered]]:
        """The messages that could be decoded, and their events; the others are dead."""
        good: list[Incoming] = []
        events: list[Delivered] = []
        for message in messages:
            try:
                events.append(delivered(message))
            except ValueError as reason:
                await self._put_aside(message, str(reason))
            else:
                good.append(message)
        return good, events

    async def _put_aside(self, message: Incoming, reason: str) -> None:
        log.error("%s: a message on %s is dead: %s", self._durable, message.subject[:_SHOWN], reason[:_SHOWN])
        await self._bury(message, reason)
        await message.ack()
        self._counts.dead.add(1, self._labels)

    def _at_fault(self, message: Incoming) -> bool:
        """Whether a message that has just failed alone has done so often, while others were handled."""
        failed_when = self._handled_at_failure.setdefault(message.stream_sequence, self._handled)
        while len(self._handled_at_failure) > _FAILING_KEPT:
            self._handled_at_failure.popitem(last=False)
        return message.attempt >= self._most_attempts and self._handled > failed_when

    async def _failed(self, messages: Sequence[Incoming], inflow: Inflow) -> None:
        attempt = max(message.attempt for message in messages)
        delay_s = min(RETRY_MOST_S, self._retry_s * 2.0 ** min(attempt - 1, 10))
        log.exception(
            "%s: handling %d messages failed (attempt %d); they come again in %g s",
            self._durable,
            len(messages),
            attempt,
            delay_s,
        )
        self._counts.failed.add(len(messages), self._labels)
        for message in messages:
            await message.give_back(delay_s)
        self._one_by_one = max(self._one_by_one, len(messages))
        before, self._failed_last = self._failed_last, messages[0].stream_sequence
        passable = len(messages) == 1 and attempt >= _PATIENCE and before in {0, self._failed_last}
        if not passable:
            await inflow.give_back(delay_s)
            await asyncio.sleep(delay_s)
            await inflow.until_back([message.stream_sequence for message in messages], _BACK_S)


async def _keep(messages: Sequence[Incoming], inflow: Inflow) -> None:
    while True:
        await asyncio.sleep(_KEEP_EVERY_S)
        await inflow.keep()
        for message in messages:
            await message.keep()


def stream_of(channels: Sequence[Channel], durable: str) -> str:
    """The stream that a durable reader of these channels reads.

    Raises:
        ValueError: the channels have no stream, or not one and the same; or the durable's name has characters that
            names on the server may not have.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", durable):
        raise ValueError(f"durable {durable!r} must have 1 to 64 letters, digits, '-' or '_'")
    streams = {channel.stream for channel in channels}
    stream = next(iter(streams), None)
    if len(streams) != 1 or stream is None:
        named = ", ".join(channel.name for channel in channels)
        raise ValueError(f"a durable reader reads the channels of one stream, not [{named}]")
    return stream


async def answer_control(handler: ControlHandler, body: bytes) -> ControlAnswered:
    """The handler's answer to a control request; what is wrong is an answer too."""
    try:
        asked = decode_control(body)
    except ValueError as reason:
        return ControlAnswered(accepted=False, message=str(reason))
    try:
        return await handler(asked)
    except Exception as error:
        log.exception("a control request failed")
        return ControlAnswered(accepted=False, message=f"{type(error).__name__}: {error}")


async def answer_leases(handler: LeaseHandler, bodies: Sequence[bytes]) -> list[bytes | None]:
    """The handler's answer to each request for credit; None where there is none: who asked asks again."""
    asked = {}
    for position, body in enumerate(bodies):
        try:
            asked[position] = decode_lease_asked(body)
        except ValueError as reason:
            log.warning("a request for credit is passed over: %s", reason)
    answers: list[bytes | None] = [None] * len(bodies)
    if asked:
        try:
            granted = await handler(list(asked.values()))
        except QueueFull as error:  # who asked asks again
            log.warning("%d requests for credit are passed over: %s", len(asked), error)
        except Exception:
            log.exception("%d requests for credit failed", len(asked))
        else:
            for position, answer in zip(asked, granted, strict=True):
                answers[position] = encode_lease(answer)
    return answers


def legible(messages: Sequence[Incoming]) -> list[Delivered]:
    """The events in the messages; one that cannot be decoded is logged and passed over."""
    events = []
    for message in messages:
        try:
            events.append(delivered(message))
        except ValueError as reason:
            log.warning("a message on %s is passed over: %s", message.subject, reason)
    return events


class Watcher:
    """Hands over what is new, without settling anything; calls its handler for one message at a time."""

    def __init__(self, name: str, handler: Handler, counts: ReaderCounts) -> None:
        self._name = name
        self._handler = handler
        self._counts = counts
        self._labels = {names.MESSAGING_CONSUMER_GROUP: name}
        self._turn = asyncio.Lock()
        self._unsaid = 0  # messages passed over since the log said so
        self._say_again_s = float("-inf")

    async def see(self, message: Incoming) -> None:
        """Neither a message that cannot be decoded nor a handler that raises ends the watch."""
        try:
            event = delivered(message)
        except ValueError as reason:
            self._pass_over(message, reason)
            return
        async with self._turn:
            try:
                await self._handler(event)
            except Exception:
                log.exception("%s: watching failed on %s from %s", self._name, event.subject, event.id)
                self._counts.failed.add(1, self._labels)
            else:
                self._counts.consumed(self._name, 1)

    def _pass_over(self, message: Incoming, reason: ValueError) -> None:
        """Counts each, and says so once in a while: who sends one such message sends many."""
        self._counts.dead.add(1, self._labels)
        self._unsaid += 1
        if (now_s := time.monotonic()) >= self._say_again_s:
            shown = f"{message.subject[:_SHOWN]}: {str(reason)[:_SHOWN]}"
            log.warning("%s: %d messages are passed over, the last on %s", self._name, self._unsaid, shown)
            self._unsaid, self._say_again_s = 0, now_s + _SAY_EVERY_S
