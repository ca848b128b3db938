"""The bus in memory: the twin of `nats_bus.py` for tests of one process, with the same promises and the same wire.

In: events published on any bus of one `MemoryBroker`. Out: the same events, encoded and decoded as on NATS, to durable
readers and watchers of the same broker. `broker.up = False` is a server that is gone: outboxes fill until it is back.
"""

import asyncio
import logging
import secrets
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.mesh.bus import BatchHandler, ControlHandler, Delivered, EventId, Handler
from services.mesh.clock import Clock, SystemClock
from services.mesh.codec import decode, encode
from services.mesh.errors import WorkerLost
from services.mesh.events import ControlAnswered, Drain, Event
from services.mesh.publishing import Outbox, Outgoing, headers_of, id_in
from services.mesh.subjects import CHANNELS, Channel, Delivery, channel_at, channel_of, subject_of
from services.mesh.telemetry import TRACEPARENT, Telemetry, start_telemetry

log = logging.getLogger(__name__)

_STREAM_BOUND = 100_000
_REDELIVER_S = 0.02


@dataclass(slots=True)
class _Stored:
    subject: str
    body: bytes
    headers: dict[str, str]


@dataclass(slots=True)
class _Reader:
    """A durable reader's place: what was given back comes first."""

    next: int = 0
    given_back: deque[tuple[int, int]] = field(default_factory=deque)  # (position, attempts so far)


class MemoryBroker:
    """What the buses of one test share."""

    def __init__(self) -> None:
        self.up = True
        self._streams: dict[str, list[_Stored]] = defaultdict(list)
        self._ids: set[str] = set()
        self._readers: dict[str, _Reader] = defaultdict(_Reader)
        self._watchers: list[tuple[frozenset[str], asyncio.Queue[_Stored]]] = []
        self._controls: dict[str, ControlHandler] = {}
        self._news = asyncio.Condition()
        self.dead: list[tuple[str, bytes, str]] = []  # (durable, body, reason)

    def bus(
        self, service: str, instance: str, telemetry: Telemetry | None = None, clock: Clock | None = None
    ) -> "MemoryBus":
        return MemoryBus(
            self, f"{service}.{instance}", telemetry or start_telemetry(service, instance), clock or SystemClock()
        )

    async def redeliver(self, durable: str) -> None:
        """Gives a durable reader everything again, as a server does whose acks were lost."""
        self._readers[durable] = _Reader()
        async with self._news:
            self._news.notify_all()

    async def store(self, channel: Channel, message: Outgoing) -> None:
        """Takes a message; one whose id it has is dropped."""
        stored = _Stored(message.subject, message.body, message.headers)
        if channel.stream is not None:
            if str(message.id) in self._ids:
                return
            self._ids.add(str(message.id))
            stream = self._streams[channel.stream]
            assert len(stream) < _STREAM_BOUND, "a test's stream is bounded"
            stream.append(stored)
        for channels, queue in self._watchers:
            if channel.name in channels and not queue.full():
                queue.put_nowait(stored)
        async with self._news:
            self._news.notify_all()


class MemoryBus:
    """Implements `Bus`."""

    def __init__(self, broker: MemoryBroker, name: str, telemetry: Telemetry, clock: Clock) -> None:
        self._broker = broker
        self._name = name
        self._telemetry = telemetry
        self._clock = clock
        self._epoch = secrets.token_hex(6)
        self._wake = asyncio.Event()
        self._emptied = asyncio.Event()
        self._sequences: dict[str, int] = defaultdict(int)
        self._outboxes = {
            channel.name: Outbox(channel, f"{name}.{channel.name}", self._epoch, 4096, self._wake.set)
            for channel in CHANNELS
            if channel.delivery is not Delivery.BEST_EFFORT
        }
        self._loose: deque[tuple[Channel, Outgoing]] = deque(maxlen=64)
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._pump(), name=f"memory-bus-{self._name}")

    def publish(self, event: Event, *, traceparent: str = "") -> EventId:
        channel = channel_of(event)
        if channel.delivery is not Delivery.BEST_EFFORT:
            return self._outboxes[channel.name].add(event, traceparent, self._telemetry, self._clock.unix_ms())
        self._sequences[channel.name] += 1
        event_id = EventId(f"{self._name}.{channel.name}", self._epoch, self._sequences[channel.name])
        headers = headers_of(event, event_id, traceparent, self._clock.unix_ms())
        self._loose.append((channel, Outgoing(event_id, subject_of(event), encode(event), headers, None)))
        self._wake.set()
        return event_id

    @property
    def outbox_free(self) -> float:
        return min(outbox.free for outbox in self._outboxes.values())

    async def flush(self, timeout_s: float) -> int:
        try:
            async with asyncio.timeout(timeout_s):
                while self._unacknowledged():
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            pass
        return self._unacknowledged()

    def _unacknowledged(self) -> int:
        return sum(len(outbox.waiting) for outbox in self._outboxes.values())

    async def _pump(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while not self._broker.up and (self._unacknowledged() or self._loose):
                self._loose.clear()
                await asyncio.sleep(_REDELIVER_S)
            while self._loose:
                await self._broker.store(*self._loose.popleft())
            for outbox in self._outboxes.values():
                while outbox.waiting and self._broker.up:
                    await self._broker.store(outbox.channel, outbox.waiting[0])
                    outbox.acknowledged(1)
            if self._unacknowledged():
                self._wake.set()
            else:
                self._emptied.set()

    async def consume(
        self, channels: Sequence[Channel], durable: str, handler: BatchHandler, *, batch: int = 256
    ) -> None:
        stream_name = channels[0].stream
        assert stream_name is not None
        names = {channel.name for channel in channels}
        while True:
            async with self._broker._news:
                await self._broker._news.wait_for(lambda: self._taken(stream_name, durable) > 0)
            reader, stream = self._broker._readers[durable], self._broker._streams[stream_name]
            places: list[tuple[int, int]] = []
            while reader.given_back and len(places) < batch:
                places.append(reader.given_back.popleft())
            while reader.next < len(stream) and len(places) < batch:
                places.append((reader.next, 0))
                reader.next += 1
            delivered = []
            for place, attempts in places:
                stored = stream[place]
                channel = channel_at(stored.subject)
                if channel is None or channel.name not in names:
                    continue
                try:
                    delivered.append(_delivered(channel, stored, attempts + 1, place + 1, len(stream) - reader.next))
                except ValueError as error:
                    self._broker.dead.append((durable, stored.body, str(error)))
            if not delivered:
                continue
            try:
                await handler(delivered)
            except Exception:
                log.exception("%s: %d messages are given back", durable, len(delivered))
                reader.given_back.extend((place, attempts + 1) for place, attempts in places)
                await asyncio.sleep(_REDELIVER_S)
            except BaseException:  # cancelled before the ack: they come again
                reader.given_back.extend((place, attempts + 1) for place, attempts in places)
                raise

    def _taken(self, stream: str, durable: str) -> int:
        reader = self._broker._readers[durable]
        return len(reader.given_back) + len(self._broker._streams[stream]) - reader.next

    async def watch(self, channels: Sequence[Channel], handler: Handler) -> None:
        queue: asyncio.Queue[_Stored] = asyncio.Queue(65_536)
        for channel in channels:
            if channel.delivery is Delivery.LAST and channel.stream is not None:
                last = {each.subject: each for each in self._broker._streams[channel.stream]}
                for stored in last.values():
                    queue.put_nowait(stored)
        entry = (frozenset(channel.name for channel in channels), queue)
        self._broker._watchers.append(entry)
        try:
            while True:
                stored = await queue.get()
                found = channel_at(stored.subject)
                assert found is not None
                try:
                    await handler(_delivered(found, stored, 1, 0, 0))
                except Exception:
                    log.exception("the reader of %s failed on one message", found.name)
        finally:
            self._broker._watchers.remove(entry)

    async def request_drain(self, worker: str, drain: Drain, timeout_s: float) -> ControlAnswered:
        handler = self._broker._controls.get(worker)
        if handler is None:
            raise WorkerLost(f"worker {worker!r} did not answer within {timeout_s:g} s")
        async with asyncio.timeout(timeout_s):
            return await handler(drain)

    async def serve_control(self, worker: str, handler: ControlHandler) -> None:
        self._broker._controls[worker] = handler
        try:
            await asyncio.Event().wait()  # until cancelled
        finally:
            del self._broker._controls[worker]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


def _delivered(channel: Channel, stored: _Stored, attempt: int, sequence: int, pending: int) -> Delivered:
    event = decode(channel.event, stored.body)
    traceparent = stored.headers.get(TRACEPARENT, "")
    return Delivered(id_in(stored.headers), event, stored.subject, traceparent, attempt, sequence, pending)
