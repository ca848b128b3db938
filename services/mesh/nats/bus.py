"""The bus on NATS: JetStream for facts that count, core NATS for heartbeats and control.

What is published is numbered and held by `publishing.py`, and sent by `sending.py` over the connection that `links.py`
keeps. `consume` and `watch` read from pull consumers, durable and acked or ephemeral and not, through `inflow.py`; what
is done with a message is in `reading.py`.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import nats.js.errors
from nats.js import api

from services.mesh.bus import BatchHandler, ControlHandler, EventId, Handler, LeaseHandler, Progress
from services.mesh.clock import Clock
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
from services.mesh.nats.inflow import ConnectionLost, PlainInflow
from services.mesh.nats.links import CALL_S, FAILURES, PENDING_BYTES, PENDING_MESSAGES, Link, Links
from services.mesh.nats.sending import Sender, send_left_behind
from services.mesh.nats.streams import ephemeral, reconcile_consumer
from services.mesh.partitions import ALL
from services.mesh.publishing import MESSAGE_ID, Publisher
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
from services.mesh.settings import NatsSettings
from services.mesh.spool import Spooled
from services.mesh.subjects import (
    Channel,
    Delivery,
    control_subject,
    dead_subject,
    gaps_subject,
    leases_subject,
)
from services.mesh.telemetry import Telemetry

log = logging.getLogger(__name__)

_REDELIVER_S: Final = 0.25
_WATCH_BATCH: Final = 64
_LEASES_AT_ONCE: Final = 256
_AGAIN_AT_ONCE: Final = 64  # messages that are stored again


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
        self._ack_timeout_s = settings.ack_timeout_s
        self._publisher = Publisher(service, instance, telemetry, clock, settings.outbox_events, spools=spools)
        self._counts = ReaderCounts(telemetry)
        self._links = Links(settings, self._publisher, self._serve)

    async def connect(self) -> None:
        await self._links.connect()

    def publish(self, event: Event, *, traceparent: str = "") -> EventId:
        return self._publisher.publish(event, traceparent)

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
        stream = stream_of(channels, durable)

        async def read(link: Link) -> None:
            await reconcile_consumer(link.js, stream, channels, durable, after_sequence)
            bury = partial(self._bury, link, durable)
            reader = DurableReader(durable, handler, self._counts, bury, batch=batch, retry_s=_REDELIVER_S)
            async with link.pulled(stream, durable, batch) as inflow:
                await reader.run(inflow)

        await self._links.on_every(f"reading {stream} as {durable}", read)

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
                    tasks.create_task(self._links.on_every(f"watching {stream}", read))
                    continue
                for subject in subjects:
                    read = partial(self._watch_subject, watcher, subject)
                    tasks.create_task(self._links.on_every(f"watching {subject}", read))

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
            link = await self._links.next()
            left = (await link.js.add_consumer(stream, config)).num_pending or 0
            async with link.pulled(stream, name, batch) as inflow:
                while replayed < left:
                    messages = await inflow.take(min(batch, left - replayed))
                    await handler(legible(messages))
                    replayed += len(messages)
            await link.js.delete_consumer(stream, name)
        except FAILURES as error:
            raise BusUnavailable(f"the replay of {stream} broke off after {replayed} messages: {error!r}") from error
        return replayed

    async def progress(self, channels: Sequence[Channel], durable: str) -> Progress:
        stream = stream_of(channels, durable)
        try:
            async with asyncio.timeout(CALL_S):
                link = await self._links.next()
                state = (await link.js.stream_info(stream)).state
                try:
                    reader = await link.js.consumer_info(stream, durable)
                except nats.js.errors.NotFoundError:
                    return Progress(0, state.last_seq, state.messages)
        except FAILURES as error:
            raise BusUnavailable(f"the server does not say how far {durable} is in {stream}: {error!r}") from error
        acked = reader.ack_floor.stream_seq if reader.ack_floor else 0
        return Progress(acked, state.last_seq, (reader.num_pending or 0) + (reader.num_ack_pending or 0))

    async def ask_again(
        self, publisher: str, epoch: str, ranges: Sequence[SequenceRange], timeout_s: float
    ) -> GapAnswered:
        gap = GapRequested(publisher=publisher, epoch=epoch, ranges=tuple(ranges))
        subject = gaps_subject(publisher.rpartition(".")[0])
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._links.next()
                reply = await link.client.request(subject, encode_gap(gap), timeout=timeout_s)
            return decode_gap_answer(reply.data)
        except (ValueError, *FAILURES) as error:
            raise BusUnavailable(f"publisher {publisher!r} gave no answer within {timeout_s:g} s: {error!r}") from error

    async def request_control(self, worker: str, asked: Control, timeout_s: float) -> ControlAnswered:
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._links.next()
                reply = await link.client.request(control_subject(worker), encode_control(asked), timeout=timeout_s)
            return decode_answer(reply.data)
        except (BusUnavailable, ValueError, *FAILURES) as error:
            raise WorkerLost(f"worker {worker!r} gave no answer within {timeout_s:g} s: {error!r}") from error

    async def serve_control(self, worker: str, handler: ControlHandler) -> None:
        async def read(link: Link) -> None:
            inflow = PlainInflow()
            async with link.subscribed(control_subject(worker), inflow):
                while True:
                    for request in await inflow.take(1):
                        answer = await answer_control(handler, request.body)
                        if request.reply:
                            await link.client.publish(request.reply, encode_answer(answer))

        await self._links.on_every(f"control of {worker}", read)

    async def ask_lease(self, asked: LeaseAsked, timeout_s: float, *, partition: int = 0) -> LeaseGranted:
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._links.next()
                reply = await link.client.request(leases_subject(partition), encode_lease(asked), timeout=timeout_s)
            return decode_lease_granted(reply.data)
        except (ValueError, *FAILURES) as error:
            raise BusUnavailable(f"no meter answered {asked.holder!r} within {timeout_s:g} s: {error!r}") from error

    async def serve_leases(self, handler: LeaseHandler, partitions: Iterable[int] = ALL) -> None:
        subjects = [leases_subject(each) for each in sorted(partitions)]

        async def read(link: Link) -> None:
            inflow = PlainInflow()
            async with AsyncExitStack() as stack:
                for subject in subjects:
                    await stack.enter_async_context(link.subscribed(subject, inflow))
                while True:
                    requests = [each for each in await inflow.take(_LEASES_AT_ONCE) if each.reply]
                    for request, answer in zip(
                        requests, await answer_leases(handler, [each.body for each in requests]), strict=True
                    ):
                        if answer is not None:
                            await link.client.publish(request.reply, answer)

        await self._links.on_every("leases", read)

    async def close(self) -> None:
        await self._links.close()
        if left := self._publisher.abandon():
            log.error("the bus of %s closes with %d events that no server has", self._publisher.name, left)

    # On one link

    async def _serve(self, link: Link) -> None:
        """Sends over the link until it is lost; raises then."""
        inbox = link.client.new_inbox()
        sender = Sender(self._publisher, inbox, link.client.publish, self._ack_timeout_s)
        link.client.take_at_once(f"{inbox}.", sender.stored)
        await link.client.subscribe(
            f"{inbox}.*.*",
            cb=sender.acknowledged,
            pending_msgs_limit=PENDING_MESSAGES,
            pending_bytes_limit=PENDING_BYTES,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sender.run(), name="sender")
            tasks.create_task(self._serve_gaps(link), name="gaps")
            if self._publisher.spool is not None:
                tasks.create_task(send_left_behind(self._publisher.spool, self._store_again(link)), name="left behind")
            await link.lost.wait()
            raise ConnectionLost("the connection is closed")

    def _store_again(self, link: Link) -> Callable[[Spooled], Awaitable[None]]:
        async def store(message: Spooled) -> None:
            try:
                await link.js.publish(message.subject, message.body, timeout=CALL_S, headers=message.headers)
            except FAILURES as error:
                raise BusUnavailable(f"it is not stored: {error!r}") from error

        return store

    async def _serve_gaps(self, link: Link) -> None:
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
                        for start in range(0, len(found), _AGAIN_AT_ONCE):
                            await asyncio.gather(
                                *(
                                    link.js.publish(each.subject, each.body, timeout=CALL_S, headers=each.headers)
                                    for each in found[start : start + _AGAIN_AT_ONCE]
                                )
                            )
                    except FAILURES as error:
                        log.warning("%s cannot send again what a reader lacks: %r", self._publisher.name, error)
                        continue
                    log.info("%s sent %d events again that a reader lacked", self._publisher.name, len(found))
                    if request.reply:
                        await link.client.publish(request.reply, encode_gap(answer))

    async def _watch_stream(
        self, watcher: Watcher, stream: str, subjects: Sequence[str], last: bool, link: Link
    ) -> None:
        name = f"watch-{secrets.token_hex(8)}"
        policy = api.DeliverPolicy.LAST_PER_SUBJECT if last else api.DeliverPolicy.NEW
        await link.js.add_consumer(stream, ephemeral(name, subjects, policy))
        async with link.pulled(stream, name, _WATCH_BATCH) as inflow:
            while True:
                for message in await inflow.take(_WATCH_BATCH):
                    await watcher.see(message)

    async def _watch_subject(self, watcher: Watcher, subject: str, link: Link) -> None:
        inflow = PlainInflow()
        async with link.subscribed(subject, inflow):
            while True:
                for message in await inflow.take(_WATCH_BATCH):
                    await watcher.see(message)

    async def _bury(self, link: Link, durable: str, message: Incoming, reason: str) -> None:
        headers = {DEAD_REASON: " ".join(reason.split()), DEAD_SUBJECT: message.subject}
        # The server's message ids are per stream, so that a burial which is tried again is kept once.
        headers[MESSAGE_ID] = f"{durable}:{message.subject}:{message.stream_sequence}"
        await link.js.publish(dead_subject(durable), message.body, timeout=CALL_S, headers=headers)
