"""The bus in memory: the twin of `nats/bus.py` for tests of one process, with the same promises and the same bytes.

In: events published on any bus of one `MemoryBroker`. Out: the same events, encoded and decoded as on NATS, to the
readers of any other. What a server can do to its clients, a test can have done: `broker.up = False` is a server that is
gone, `store_twice` a message sent again after the duplicate window, `redeliver` acks that were lost.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from services.mesh.bus import BatchHandler, ControlHandler, EventId, Handler, LeaseHandler, Progress
from services.mesh.clock import Clock, SystemClock
from services.mesh.codec import (
    decode_answer,
    decode_gap_answer,
    decode_lease_granted,
    encode_answer,
    encode_control,
    encode_gap,
    encode_lease,
)
from services.mesh.errors import BusUnavailable, WorkerLost
from services.mesh.events import (
    Control,
    ControlAnswered,
    Event,
    GapAnswered,
    GapRequested,
    LeaseAsked,
    LeaseGranted,
    SequenceRange,
)
from services.mesh.memory_streams import Cursor, MemoryStream, Stored, Taken, Watch
from services.mesh.partitions import ALL
from services.mesh.publishing import Publisher
from services.mesh.reading import (
    DurableReader,
    Incoming,
    ReaderCounts,
    Watcher,
    answer_control,
    answer_leases,
    legible,
    stream_of,
)
from services.mesh.settings import NatsSettings
from services.mesh.subjects import STREAMS, Channel, Delivery, channel_at
from services.mesh.telemetry import Telemetry, start_telemetry

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.01
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a durable reader could not decode."""

    durable: str
    subject: str
    body: bytes
    reason: str


class MemoryBroker:
    """The server that the buses of one test share.

    Attributes:
        dead: dead letters, oldest first.
        store_twice: so many of the next messages are stored twice, as after a resend that nothing recognised.
    """

    def __init__(self) -> None:
        self.dead: list[DeadLetter] = []
        self.store_twice = 0
        self.controls: dict[str, ControlHandler] = {}
        self.leases: dict[int, LeaseHandler] = {}
        self.news: set[asyncio.Event] = set()
        self.watches: set[Watch] = set()
        self._up = True
        self._streams = {stream.name: MemoryStream(stream) for stream in STREAMS}
        self._cursors: dict[tuple[str, str], Cursor] = {}
        self._buses: list[MemoryBus] = []

    @property
    def up(self) -> bool:
        """Whether the server is there; what is published while it is not waits in the outboxes."""
        return self._up

    @up.setter
    def up(self, up: bool) -> None:
        self._up = up
        for bus in self._buses:
            bus.send()
        self.notify()

    def bus(
        self,
        service: str,
        instance: str,
        telemetry: Telemetry | None = None,
        clock: Clock | None = None,
        *,
        outbox_events: int = NatsSettings().outbox_events,
    ) -> "MemoryBus":
        """A bus of this broker, for the service of this name."""
        telemetry = telemetry or start_telemetry(service, instance)
        publisher = Publisher(service, instance, telemetry, clock or SystemClock(), outbox_events)
        bus = MemoryBus(self, publisher, ReaderCounts(telemetry))
        self._buses.append(bus)
        return bus

    def publisher(self, name: str) -> "MemoryBus | None":
        """The open bus, the latest, of `<service>.<instance>`."""
        return next((bus for bus in reversed(self._buses) if bus.name == name and not bus.closed), None)

    def lose(self, stream: str, event_id: str) -> None:
        """A stream no longer has a message that it acknowledged."""
        self._streams[stream].lose(event_id)

    def expire(self, most: int) -> None:
        """Every stream keeps so many messages, the latest, and so many dead letters, as a server's limits have it."""
        for stream in self._streams.values():
            stream.expire(most)
        del self.dead[:-most]

    def redeliver(self, durable: str) -> None:
        """Gives a durable reader everything that it was given before once more."""
        for (_, name), cursor in self._cursors.items():
            if name == durable:
                cursor.put_everything_back()
        self.notify()

    def put(self, subject: str, headers: Mapping[str, str], body: bytes) -> None:
        """Stores a message as the server does, whoever sent it and whatever is in it."""
        channel = channel_at(subject)
        assert channel is not None, f"nobody reads {subject}"
        if channel.stream is None:
            stored = [Stored("", 0, subject, headers, body)]
        else:
            stream = self._streams[channel.stream]
            stored = stream.store(subject, headers, body)
            if stored and self.store_twice:
                self.store_twice -= 1
                stored += stream.store(subject, headers, body, whatever_its_id=True)
        for watch in self.watches:
            if channel.name in watch.channels:
                watch.held.extend(stored)
        self.notify()

    def standing(self, stream: str) -> list[Stored]:
        return list(self._streams[stream].messages.values())

    def taken(self, stored: Stored, cursor: Cursor | None = None) -> Taken:
        """The message on its way to a reader; see `Taken`."""
        if cursor is not None:
            pending = cursor.ahead
        else:
            pending = self._streams[stored.stream].last_sequence - stored.sequence if stored.stream else 0
        return Taken(stored, pending=pending, news=self.notify, cursor=cursor)

    def cursor(self, stream: str, durable: str) -> Cursor:
        return self._cursors.setdefault((stream, durable), Cursor(self._streams[stream]))

    def last_sequence(self, stream: str) -> int:
        """The position of a stream's last message; 0 while it has none."""
        return self._streams[stream].last_sequence

    def cursors(self) -> list[Cursor]:
        """Of every durable reader."""
        return list(self._cursors.values())

    def notify(self) -> None:
        """Whoever waits for something looks again."""
        for event in self.news:
            event.set()


def _channel_name(stored: Stored) -> str:
    channel = channel_at(stored.subject)
    return channel.name if channel else ""


class _Gone(Exception):
    """The bus that a reader reads on was closed."""


class _CursorInflow:
    """A durable reader's messages, as `reading.Inflow`."""

    def __init__(self, bus: "MemoryBus", cursor: Cursor, channels: frozenset[str]) -> None:
        self._bus = bus
        self._cursor = cursor
        self._channels = channels

    async def take(self, limit: int) -> list[Taken]:
        first = await self._bus.until(lambda: self._cursor.take(self._channels))
        taken = [self._bus.broker.taken(first, self._cursor)]
        while len(taken) < limit and (stored := self._cursor.take(self._channels)) is not None:
            taken.append(self._bus.broker.taken(stored, self._cursor))
        return taken

    async def give_back(self, delay_s: float) -> None:
        pass  # nothing is held that was not taken

    async def until_back(self, stream_sequences: Sequence[int], deadline_s: float) -> None:
        pass  # what was given back comes before what is new

    async def keep(self) -> None:
        pass


class MemoryBus:
    """Implements `Bus`."""

    def __init__(self, broker: MemoryBroker, publisher: Publisher, counts: ReaderCounts) -> None:
        self.broker = broker
        self._publisher = publisher
        self._counts = counts
        self._closed = False

    @property
    def name(self) -> str:
        """`<service>.<instance>`."""
        return self._publisher.name

    @property
    def closed(self) -> bool:
        return self._closed

    async def connect(self) -> None:
        if not self.broker.up:
            raise BusUnavailable("the broker is down; set broker.up = True")

    def publish(self, event: Event, *, traceparent: str = "") -> EventId:
        event_id = self._publisher.publish(event, traceparent)
        self.send()
        return event_id

    def send(self) -> None:
        """Hands the broker what waits, in order; best-effort messages are lost when it is down."""
        if not self.broker.up or self._closed:
            self._publisher.best_effort.clear()
            return
        while self._publisher.best_effort:
            heartbeat = self._publisher.best_effort.popleft()
            self.broker.put(heartbeat.subject, heartbeat.headers, heartbeat.body)
        for name, outbox in self._publisher.outboxes.items():
            while (message := outbox.next_to_send(len(outbox))) is not None:
                self.broker.put(message.subject, message.headers, message.body)
                self._publisher.acknowledged(name, message.id.sequence)

    @property
    def outbox_free(self) -> float:
        return self._publisher.outbox_free

    async def flush(self, timeout_s: float) -> int:
        return await self._publisher.flush(timeout_s)

    async def consume(
        self,
        channels: Sequence[Channel],
        durable: str,
        handler: BatchHandler,
        *,
        batch: int = 256,
        after_sequence: int = 0,
    ) -> None:
        cursor = self.broker.cursor(stream_of(channels, durable), durable)
        cursor.begin_after(after_sequence)

        async def bury(message: Incoming, reason: str) -> None:
            self.broker.dead.append(DeadLetter(durable, message.subject, message.body, reason))

        reader = DurableReader(durable, handler, self._counts, bury, batch=batch, retry_s=_RETRY_S)
        with suppress(_Gone):
            await reader.run(_CursorInflow(self, cursor, frozenset(channel.name for channel in channels)))

    async def watch(self, channels: Sequence[Channel], handler: Handler) -> None:
        watcher = Watcher(self._publisher.name, handler, self._counts)
        watch = Watch(frozenset(channel.name for channel in channels))
        for channel in channels:
            if channel.delivery is Delivery.LAST and channel.stream is not None:
                watch.held.extend(self.broker.standing(channel.stream))
        self.broker.watches.add(watch)
        try:
            while True:
                await self.until(lambda: watch.held or None)
                await watcher.see(self.broker.taken(watch.held.popleft()))
        except _Gone:
            pass
        finally:
            self.broker.watches.discard(watch)

    async def replay(
        self, channels: Sequence[Channel], handler: BatchHandler, *, batch: int = 256, after_sequence: int = 0
    ) -> int:
        stream, wanted = stream_of(channels, "replay"), frozenset(channel.name for channel in channels)
        if not self.broker.up or self._closed:
            raise BusUnavailable(f"the replay of {stream} broke off after 0 messages: the broker is down")
        held = [
            each
            for each in self.broker.standing(stream)
            if each.sequence > after_sequence and _channel_name(each) in wanted
        ]
        for start in range(0, len(held), batch):
            await handler(legible([self.broker.taken(each) for each in held[start : start + batch]]))
        return len(held)

    async def progress(self, channels: Sequence[Channel], durable: str) -> Progress:
        if not self.broker.up or self._closed:
            raise BusUnavailable(f"the broker does not say how far {durable} is: it is down")
        stream = stream_of(channels, durable)
        cursor = self.broker.cursor(stream, durable)
        return Progress(cursor.floor, self.broker.last_sequence(stream), cursor.behind)

    async def ask_again(
        self, publisher: str, epoch: str, ranges: Sequence[SequenceRange], timeout_s: float
    ) -> GapAnswered:
        await asyncio.sleep(0)  # as on a network, others go first
        name = publisher.rpartition(".")[0]
        asked = self.broker.publisher(name) if self.broker.up and not self._closed else None
        if asked is None:
            raise BusUnavailable(f"publisher {name!r} gave no answer within {timeout_s:g} s")
        gap = GapRequested(publisher=publisher, epoch=epoch, ranges=tuple(ranges))
        return decode_gap_answer(encode_gap(asked.send_again(encode_gap(gap))))

    def send_again(self, gap: bytes) -> GapAnswered:
        """What a publisher does when it is asked for a gap. Raises ValueError: it is not this one's."""
        found, answer = self._publisher.again(gap)
        for message in found:
            self.broker.put(message.subject, message.headers, message.body)
        return answer

    async def request_control(self, worker: str, asked: Control, timeout_s: float) -> ControlAnswered:
        await asyncio.sleep(0)  # as on a network, others go first
        handler = self.broker.controls.get(worker) if self.broker.up else None
        if handler is None:
            raise WorkerLost(f"worker {worker!r} gave no answer within {timeout_s:g} s: nobody listens")
        try:
            async with asyncio.timeout(timeout_s):
                answer = await answer_control(handler, encode_control(asked))
        except TimeoutError as error:
            raise WorkerLost(f"worker {worker!r} gave no answer within {timeout_s:g} s") from error
        return decode_answer(encode_answer(answer))

    async def serve_control(self, worker: str, handler: ControlHandler) -> None:
        self.broker.controls[worker] = handler
        try:
            with suppress(_Gone):
                await self.until(lambda: None)
        finally:
            self.broker.controls.pop(worker, None)

    async def ask_lease(self, asked: LeaseAsked, timeout_s: float, *, partition: int = 0) -> LeaseGranted:
        await asyncio.sleep(0)  # as on a network, others go first
        handler = self.broker.leases.get(partition) if self.broker.up else None
        answer = None
        if handler is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    (answer,) = await answer_leases(handler, [encode_lease(asked)])
        if answer is None:
            raise BusUnavailable(f"no meter answered {asked.holder!r} within {timeout_s:g} s")
        return decode_lease_granted(answer)

    async def serve_leases(self, handler: LeaseHandler, partitions: Iterable[int] = ALL) -> None:
        partitions = list(partitions)
        self.broker.leases.update(dict.fromkeys(partitions, handler))
        try:
            with suppress(_Gone):
                await self.until(lambda: None)
        finally:
            for each in partitions:
                if self.broker.leases.get(each) is handler:
                    del self.broker.leases[each]

    async def close(self) -> None:
        self._closed = True
        self.broker.notify()
        if left := self._publisher.abandon():
            log.error("the bus of %s closes with %d events that no broker has", self._publisher.name, left)

    async def until(self, look: Callable[[], T | None]) -> T:
        """What `look` finds, looking again on all news while the broker is up. Raises _Gone: the bus was closed."""
        news = asyncio.Event()
        self.broker.news.add(news)
        try:
            while not self._closed:
                if self.broker.up and (found := look()) is not None:
                    return found
                await news.wait()
                news.clear()
        finally:
            self.broker.news.discard(news)
        raise _Gone
