"""The bus on NATS: JetStream for facts that count, core NATS for heartbeats and control.

Links. A `_Link` is one connection, from its opening, which reconciles the streams, to its loss; then everything starts
over on a new one, for as long as the bus is open. The client library's own reconnecting is switched off: it sends what
it had buffered before anybody can send again what was lost before that, which would reorder a channel.

What is published is numbered and held by `publishing.py`, and sent over a link by `sending.py`. `consume` and `watch`
read from pull consumers, durable and acked or ephemeral and not, through `inflow.py`; what is done with a message is in
`reading.py`.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext, api

from services.mesh.bus import BatchHandler, ControlHandler, EventId, Handler, LeaseHandler
from services.mesh.clock import Clock
from services.mesh.codec import (
    decode_answer,
    decode_gap_answer,
    decode_lease_granted,
    encode_answer,
    encode_drain,
    encode_gap,
    encode_lease,
)
from services.mesh.errors import BusUnavailable, SettingInvalid, WorkerLost
from services.mesh.events import ControlAnswered, Drain, Event, GapAnswered, GapRequested, LeaseAsked, LeaseGranted
from services.mesh.inflow import ConnectionLost, PlainInflow, PullInflow
from services.mesh.nats_streams import ephemeral, reconcile_consumer, reconcile_stream
from services.mesh.publishing import MAX_BODY_BYTES, MESSAGE_ID, Publisher
from services.mesh.reading import (
    DEAD_REASON,
    DEAD_SUBJECT,
    DurableReader,
    Incoming,
    ReaderCounts,
    Watcher,
    answer_control,
    answer_leases,
    legible,
    stream_of,
)
from services.mesh.sending import RETRY_S, Sender, causes, send_left_behind
from services.mesh.settings import NatsSettings
from services.mesh.spool import Spooled
from services.mesh.subjects import (
    LEASES_SUBJECT,
    STREAMS,
    Channel,
    Delivery,
    control_subject,
    dead_subject,
    gaps_subject,
)
from services.mesh.telemetry import Telemetry

log = logging.getLogger(__name__)

_CALL_S: Final = 5.0  # any one request to the server
_CLOSE_S: Final = 2.0
_PING_S: Final = 5
_REDELIVER_S: Final = 0.25
# Of one subscription, in the library: callbacks never wait, so that it stays near nothing.
_PENDING_MESSAGES: Final = 8192
_PENDING_BYTES: Final = 64 << 20
_WATCH_BATCH: Final = 64
_LEASES_AT_ONCE: Final = 256
# The library forces a flush when this much is buffered, and swallows a cancellation that it meets there. What is in
# flight is bounded by the sender's windows.
_NO_FORCED_FLUSH: Final = 1 << 30
_FAILURES: Final = (TimeoutError, OSError, nats.errors.Error)


@dataclass(slots=True)
class _Link:
    """One connection. When `lost` is set nothing of it is used again."""

    client: Client
    js: JetStreamContext
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    inflows: set[PlainInflow | PullInflow] = field(default_factory=set)

    async def lose(self) -> None:
        self.lost.set()
        for inflow in self.inflows:
            inflow.lose("the connection to NATS was lost")

    @asynccontextmanager
    async def subscribed(self, subject: str, inflow: PlainInflow | PullInflow) -> AsyncIterator[None]:
        """What comes on the subject goes into the inflow."""
        subscription = await self.client.subscribe(
            subject, cb=inflow.arrive, pending_msgs_limit=_PENDING_MESSAGES, pending_bytes_limit=_PENDING_BYTES
        )
        self.inflows.add(inflow)
        try:
            yield
        finally:
            self.inflows.discard(inflow)
            with suppress(*_FAILURES):
                await subscription.unsubscribe()

    @asynccontextmanager
    async def pulled(self, stream: str, consumer: str, batch: int) -> AsyncIterator[PullInflow]:
        """The messages of a consumer; what was not taken is given back at the end."""
        inbox = self.client.new_inbox()
        inflow = PullInflow(stream, consumer, inbox, batch, self.client.publish)
        try:
            async with self.subscribed(f"{inbox}.*", inflow):
                yield inflow
        finally:
            # After unsubscribing: else the server would send them to this reader once more.
            with suppress(*_FAILURES):
                await inflow.give_back(0.0)

    async def close(self) -> None:
        await self.lose()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.client.close()
        except Exception as error:  # what a broken connection raises is no more than that
            log.debug("closing the connection to NATS: %r", error)


class NatsBus:
    """Implements `Bus`. `service` and `instance` name the publisher in event ids.

    An empty `settings.url` means the server that `tokenworks up` starts on this machine; several are comma-separated.

    Args:
        spools: see `Publisher`; what earlier starts of this instance left there is sent first.
    """

    def __init__(
        self,
        settings: NatsSettings,
        service: str,
        instance: str,
        telemetry: Telemetry,
        clock: Clock,
        *,
        spools: Path | None = None,
    ) -> None:
        self._settings = settings
        self._servers = (settings.url or f"nats://127.0.0.1:{settings.port}").split(",")
        self._publisher = Publisher(service, instance, telemetry, clock, settings.outbox_events, spools=spools)
        self._counts = ReaderCounts(telemetry)
        self._link: _Link | None = None
        self._linked = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._trouble = "it did not answer"

    async def connect(self) -> None:
        assert self._keeper is None, "a bus connects once"
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                link = await self._open_link()
        except TimeoutError:
            raise BusUnavailable(
                f"no NATS server with JetStream is ready at {', '.join(self._servers)} within"
                f" {self._settings.connect_timeout_s:g} s: {self._trouble}; start one, or set nats.url"
            ) from None
        self._adopt(link)
        self._keeper = asyncio.create_task(self._keep_linked(link), name=f"bus-{self._publisher.name}")

    def publish(self, event: Event, *, traceparent: str = "") -> EventId:
        return self._publisher.publish(event, traceparent)

    @property
    def outbox_free(self) -> float:
        return self._publisher.outbox_free

    async def flush(self, timeout_s: float) -> int:
        return await self._publisher.flush(timeout_s)

    async def consume(
        self, channels: Sequence[Channel], durable: str, handler: BatchHandler, *, batch: int = 256
    ) -> None:
        stream = stream_of(channels, durable)

        async def read(link: _Link) -> None:
            await reconcile_consumer(link.js, stream, channels, durable)
            bury = partial(self._bury, link, durable)
            reader = DurableReader(durable, handler, self._counts, bury, batch=batch, retry_s=_REDELIVER_S)
            async with link.pulled(stream, durable, batch) as inflow:
                await reader.run(inflow)

        await self._on_every_link(f"reading {stream} as {durable}", read)

    async def watch(self, channels: Sequence[Channel], handler: Handler) -> None:
        watcher = Watcher(self._publisher.name, handler, self._counts)
        by_source: dict[tuple[str | None, bool], list[str]] = {}
        for channel in channels:
            source = channel.stream, channel.delivery is Delivery.LAST
            by_source.setdefault(source, []).append(channel.wildcard)
        async with asyncio.TaskGroup() as tasks:
            for (stream, last), subjects in by_source.items():
                if stream is not None:
                    read = partial(self._watch_stream, watcher, stream, subjects, last)
                    tasks.create_task(self._on_every_link(f"watching {stream}", read))
                    continue
                for subject in subjects:
                    read = partial(self._watch_subject, watcher, subject)
                    tasks.create_task(self._on_every_link(f"watching {subject}", read))

    async def replay(
        self, channels: Sequence[Channel], handler: BatchHandler, *, batch: int = 256, after_sequence: int = 0
    ) -> int:
        subjects = [channel.wildcard for channel in channels]
        name = f"replay-{secrets.token_hex(8)}"
        stream = stream_of(channels, name)
        policy = api.DeliverPolicy.BY_START_SEQUENCE if after_sequence else api.DeliverPolicy.ALL
        config = ephemeral(name, subjects, policy, after_sequence + 1 if after_sequence else 0)
        replayed = 0
        try:
            link = await self._next_link()
            left = (await link.js.add_consumer(stream, config)).num_pending or 0
            async with link.pulled(stream, name, batch) as inflow:
                while replayed < left:
                    messages = await inflow.take(min(batch, left - replayed))
                    await handler(legible(messages))
                    replayed += len(messages)
            await link.js.delete_consumer(stream, name)
        except _FAILURES as error:
            raise BusUnavailable(f"the replay of {stream} broke off after {replayed} messages: {error!r}") from error
        return replayed

    async def acked_up_to(self, channels: Sequence[Channel], durable: str) -> int:
        stream = stream_of(channels, durable)
        try:
            async with asyncio.timeout(_CALL_S):
                link = await self._next_link()
                floor = (await link.js.consumer_info(stream, durable)).ack_floor
        except nats.js.errors.NotFoundError:
            return 0
        except _FAILURES as error:
            raise BusUnavailable(f"the server does not say how far {durable} is in {stream}: {error!r}") from error
        return floor.stream_seq if floor else 0

    async def ask_again(self, publisher: str, epoch: str, sequences: Sequence[int], timeout_s: float) -> GapAnswered:
        gap = GapRequested(publisher=publisher, epoch=epoch, sequences=tuple(sequences))
        subject = gaps_subject(publisher.rpartition(".")[0])
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._next_link()
                reply = await link.client.request(subject, encode_gap(gap), timeout=timeout_s)
            return decode_gap_answer(reply.data)
        except (ValueError, *_FAILURES) as error:
            raise BusUnavailable(f"publisher {publisher!r} gave no answer within {timeout_s:g} s: {error!r}") from error

    async def request_drain(self, worker: str, drain: Drain, timeout_s: float) -> ControlAnswered:
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._next_link()
                reply = await link.client.request(control_subject(worker), encode_drain(drain), timeout=timeout_s)
            return decode_answer(reply.data)
        except (BusUnavailable, ValueError, *_FAILURES) as error:
            raise WorkerLost(f"worker {worker!r} gave no answer within {timeout_s:g} s: {error!r}") from error

    async def serve_control(self, worker: str, handler: ControlHandler) -> None:
        async def read(link: _Link) -> None:
            inflow = PlainInflow()
            async with link.subscribed(control_subject(worker), inflow):
                while True:
                    for request in await inflow.take(1):
                        answer = await answer_control(handler, request.body)
                        if request.reply:
                            await link.client.publish(request.reply, encode_answer(answer))

        await self._on_every_link(f"control of {worker}", read)

    async def ask_lease(self, asked: LeaseAsked, timeout_s: float) -> LeaseGranted:
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._next_link()
                reply = await link.client.request(LEASES_SUBJECT, encode_lease(asked), timeout=timeout_s)
            return decode_lease_granted(reply.data)
        except (ValueError, *_FAILURES) as error:
            raise BusUnavailable(f"no meter answered {asked.holder!r} within {timeout_s:g} s: {error!r}") from error

    async def serve_leases(self, handler: LeaseHandler) -> None:
        async def read(link: _Link) -> None:
            inflow = PlainInflow()
            async with link.subscribed(LEASES_SUBJECT, inflow):
                while True:
                    requests = [each for each in await inflow.take(_LEASES_AT_ONCE) if each.reply]
                    for request, answer in zip(
                        requests, await answer_leases(handler, [each.body for each in requests]), strict=True
                    ):
                        if answer is not None:
                            await link.client.publish(request.reply, answer)

        await self._on_every_link("leases", read)

    async def close(self) -> None:
        self._closed.set()
        self._linked.set()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=2 * _CLOSE_S)
        if left := self._publisher.abandon():
            log.error("the bus of %s closes with %d events that no server has", self._publisher.name, left)

    # Links

    async def _open_link(self) -> _Link:
        """Tries until it is linked; only a deadline or a cancellation ends it otherwise."""
        attempt = 0
        while True:
            client = Client()
            link = _Link(client, client.jetstream(timeout=_CALL_S))
            try:
                await client.connect(
                    self._servers,
                    name=self._publisher.name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # of one server within this attempt
                    reconnect_time_wait=0,
                    connect_timeout=int(_CALL_S),
                    ping_interval=_PING_S,
                    pending_size=_NO_FORCED_FLUSH,
                    error_cb=self._note_trouble,
                    closed_cb=link.lose,
                )
                if client.max_payload < MAX_BODY_BYTES:
                    raise SettingInvalid(
                        f"the NATS server's max_payload is {client.max_payload}; it must be >= {MAX_BODY_BYTES}"
                    )
                for stream in STREAMS:
                    await reconcile_stream(link.js, stream, self._settings)
            except BaseException as error:
                await link.close()
                # A wrong setting stops a process at its start; later the server may be put right.
                passes = _FAILURES if self._keeper is None else (SettingInvalid, *_FAILURES)
                if not isinstance(error, passes):
                    raise
                await self._note_trouble(error)
            else:
                return link
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1

    async def _note_trouble(self, error: Exception) -> None:
        if not isinstance(error, nats.errors.NoServersError):  # that comes last, and says nothing of why
            self._trouble = str(error) or repr(error)
        log.debug("%s and NATS: %r", self._publisher.name, error)

    def _adopt(self, link: _Link) -> None:
        self._link = link
        self._linked.set()

    async def _keep_linked(self, link: _Link) -> None:
        """Serves one link after the other until cancelled."""
        name = self._publisher.name
        while True:
            try:
                await self._serve(link)
            except* _FAILURES as lost:
                log.warning("%s lost NATS (%s); its outboxes hold", name, causes(lost))
            except* Exception:
                log.exception("%s: a defect in sending; on with a new connection", name)
            finally:
                self._link = None
                if not self._closed.is_set():
                    self._linked.clear()
                await link.close()
            link = await self._open_link()
            log.info("%s is back on NATS; %d events wait to be sent", name, self._publisher.unacknowledged)
            self._adopt(link)

    async def _serve(self, link: _Link) -> None:
        """Sends over the link until it is lost; raises then."""
        inbox = link.client.new_inbox()
        sender = Sender(self._publisher, inbox, link.client.publish, self._settings.ack_timeout_s)
        await link.client.subscribe(
            f"{inbox}.*.*",
            cb=sender.acknowledged,
            pending_msgs_limit=_PENDING_MESSAGES,
            pending_bytes_limit=_PENDING_BYTES,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sender.run(), name="sender")
            tasks.create_task(self._serve_gaps(link), name="gaps")
            if self._publisher.spool is not None:
                tasks.create_task(send_left_behind(self._publisher.spool, self._store_again(link)), name="left behind")
            await link.lost.wait()
            raise ConnectionLost("the connection is closed")

    def _store_again(self, link: _Link) -> Callable[[Spooled], Awaitable[None]]:
        async def store(message: Spooled) -> None:
            try:
                await link.js.publish(message.subject, message.body, timeout=_CALL_S, headers=message.headers)
            except _FAILURES as error:
                raise BusUnavailable(f"it is not stored: {error!r}") from error

        return store

    async def _serve_gaps(self, link: _Link) -> None:
        """Sends to their streams again what readers ask for. Raises ConnectionLost."""
        inflow = PlainInflow()
        async with link.subscribed(gaps_subject(self._publisher.name), inflow):
            while True:
                for request in await inflow.take(1):
                    try:
                        found, answer = self._publisher.again(request.body)
                    except ValueError as reason:
                        log.warning("%s: a request for a gap is passed over: %s", self._publisher.name, reason)
                        continue
                    try:
                        for each in found:
                            await link.js.publish(each.subject, each.body, timeout=_CALL_S, headers=each.headers)
                    except _FAILURES as error:
                        log.warning("%s cannot send again what a reader lacks: %r", self._publisher.name, error)
                        continue
                    log.info("%s sent %d events again that a reader lacked", self._publisher.name, len(found))
                    if request.reply:
                        await link.client.publish(request.reply, encode_gap(answer))

    async def _next_link(self) -> _Link:
        """The link, once there is one. Raises BusUnavailable: the bus is closed."""
        while not self._closed.is_set():
            await self._linked.wait()
            if self._link is not None:
                return self._link
        raise BusUnavailable(f"the bus of {self._publisher.name} is closed")

    async def _on_every_link(self, what: str, work: Callable[[_Link], Awaitable[None]]) -> None:
        """Does the work on one link after the other, until cancelled or until the bus is closed."""
        while not self._closed.is_set():
            try:
                await work(await self._next_link())
            except BusUnavailable:
                return
            except _FAILURES as error:
                if self._closed.is_set():
                    return
                log.info("%s: %s broke off (%r)", self._publisher.name, what, error)
                await asyncio.sleep(_REDELIVER_S)

    # Reading

    async def _watch_stream(
        self, watcher: Watcher, stream: str, subjects: Sequence[str], last: bool, link: _Link
    ) -> None:
        name = f"watch-{secrets.token_hex(8)}"
        policy = api.DeliverPolicy.LAST_PER_SUBJECT if last else api.DeliverPolicy.NEW
        await link.js.add_consumer(stream, ephemeral(name, subjects, policy))
        async with link.pulled(stream, name, _WATCH_BATCH) as inflow:
            while True:
                for message in await inflow.take(_WATCH_BATCH):
                    await watcher.see(message)

    async def _watch_subject(self, watcher: Watcher, subject: str, link: _Link) -> None:
        inflow = PlainInflow()
        async with link.subscribed(subject, inflow):
            while True:
                for message in await inflow.take(_WATCH_BATCH):
                    await watcher.see(message)

    async def _bury(self, link: _Link, durable: str, message: Incoming, reason: str) -> None:
        headers = {DEAD_REASON: " ".join(reason.split()), DEAD_SUBJECT: message.subject}
        # The server's message ids are per stream, so that a burial which is tried again is kept once.
        headers[MESSAGE_ID] = f"{durable}:{message.subject}:{message.stream_sequence}"
        await link.js.publish(dead_subject(durable), message.body, timeout=_CALL_S, headers=headers)
