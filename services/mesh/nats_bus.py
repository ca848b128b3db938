"""The bus on NATS: JetStream for facts that count, core NATS for heartbeats and control. Only this file imports nats.

Publishing. One task per channel takes a window of messages from the front of the outbox, publishes them in order
without waiting between them, and waits for all acknowledgements; what was not acknowledged in time is sent again, in
order, and the server drops what it already had by the message id.

Reading. `consume` pulls batches from a durable consumer and acks after the handler has returned. `watch` uses an
ordered ephemeral consumer, which the client library makes anew after a gap or a reconnect.

The connection is kept forever: a server that goes away is waited for, and meanwhile the outboxes hold.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from opentelemetry.metrics import CallbackOptions, Observation

from services.mesh import conventions as names
from services.mesh.bus import BatchHandler, ControlHandler, Delivered, EventId, Handler
from services.mesh.clock import Clock
from services.mesh.codec import decode, decode_control, encode, encode_drain
from services.mesh.errors import BusUnavailable, WorkerLost
from services.mesh.events import ControlAnswered, Drain, Event
from services.mesh.publishing import Outbox, Outgoing, headers_of, id_in
from services.mesh.settings import NatsSettings
from services.mesh.subjects import (
    CHANNELS,
    STREAMS,
    Channel,
    Delivery,
    Stream,
    channel_at,
    channel_of,
    control_subject,
    dead_subject,
    subject_of,
)
from services.mesh.telemetry import TRACEPARENT, Telemetry

log = logging.getLogger(__name__)

_WINDOW: Final = 256  # messages published before their acknowledgements are waited for
_RETRY_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_FETCH_S: Final = 5.0
_ACK_WAIT_S: Final = 30.0
_REDELIVER_S: Final = 0.5
_RECONNECT_S: Final = 0.25
_BEST_EFFORT_BOUND: Final = 64
_PENDING_MESSAGES: Final = 65_536
_PENDING_BYTES: Final = 128 << 20
_DUPLICATE_WINDOW_S: Final = 120.0
_CALL_S: Final = 5.0


class NatsBus:
    """Implements `Bus`. `service` and `instance` name the publisher in event ids."""

    def __init__(self, settings: NatsSettings, service: str, instance: str, telemetry: Telemetry, clock: Clock) -> None:
        self._settings = settings
        self._name = f"{service}.{instance}"
        self._telemetry = telemetry
        self._clock = clock
        self._epoch = secrets.token_hex(6)
        self._client = NatsClient()
        self._js: JetStreamContext
        self._outboxes: dict[str, Outbox] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._emptied = asyncio.Event()
        self._best_effort: deque[Outgoing] = deque(maxlen=_BEST_EFFORT_BOUND)
        self._best_effort_sequence: dict[str, int] = {}
        self._best_effort_wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        for channel in CHANNELS:
            if channel.delivery is not Delivery.BEST_EFFORT:
                wake = self._wakes[channel.name] = asyncio.Event()
                publisher = f"{self._name}.{channel.name}"
                self._outboxes[channel.name] = Outbox(channel, publisher, self._epoch, settings.outbox_events, wake.set)
        meter = telemetry.meter
        self._published = meter.create_counter(names.BUS_PUBLISHED, "{message}", "Messages acknowledged by the server")
        self._retried = meter.create_counter(names.BUS_RETRIED, "{message}", "Messages sent again")
        self._consumed = meter.create_counter(names.BUS_CONSUMED, "{message}", "Messages handled")
        self._dead = meter.create_counter(names.BUS_DEAD, "{message}", "Messages that could not be decoded")
        meter.create_observable_gauge(
            names.BUS_OUTBOX, [self._observe_outboxes], "{message}", "Unacknowledged messages"
        )

    async def connect(self) -> None:
        url, wait_s = self._settings.url, self._settings.connect_timeout_s
        loop = asyncio.get_running_loop()
        gives_up_s = loop.time() + wait_s
        while True:
            try:
                async with asyncio.timeout(max(0.1, gives_up_s - loop.time())):
                    await self._client.connect(
                        url,
                        name=self._name,
                        error_cb=self._on_error,
                        allow_reconnect=True,
                        max_reconnect_attempts=-1,
                        reconnect_time_wait=_RECONNECT_S,  # type: ignore[arg-type]  # it sleeps; fractions do
                        connect_timeout=2,
                        ping_interval=10,
                        pending_size=32 << 20,
                    )
                    self._js = self._client.jetstream(timeout=_CALL_S, publish_async_max_pending=_WINDOW * 8)
                    for stream in STREAMS:
                        await self._reconcile(stream)
                break
            except (TimeoutError, OSError, nats.errors.Error, nats.js.errors.Error) as error:
                if loop.time() + _RECONNECT_S >= gives_up_s:
                    raise BusUnavailable(
                        f"no NATS server with JetStream answers at {url!r} within {wait_s:g} s ({error!r}); start one, "
                        "or set nats.url"
                    ) from error
                await asyncio.sleep(_RECONNECT_S)
        for outbox in self._outboxes.values():
            self._tasks.append(asyncio.create_task(self._pump(outbox), name=f"outbox-{outbox.channel.name}"))
        self._tasks.append(asyncio.create_task(self._pump_best_effort(), name="outbox-best-effort"))

    async def _reconcile(self, stream: Stream) -> None:
        config = api.StreamConfig(
            name=stream.name,
            subjects=list(stream.subjects),
            storage=api.StorageType.FILE if stream.file else api.StorageType.MEMORY,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            max_age=stream.max_age_s,
            max_bytes=stream.max_bytes,
            max_msgs_per_subject=1 if stream.last_per_subject else -1,
            num_replicas=self._settings.replicas,
            duplicate_window=_DUPLICATE_WINDOW_S,
            allow_direct=True,
        )
        try:
            await self._js.add_stream(config)
        except nats.js.errors.BadRequestError:  # it exists with other settings
            await self._js.update_stream(config)

    def publish(self, event: Event, *, traceparent: str = "") -> EventId:
        channel = channel_of(event)
        unix_ms = self._clock.unix_ms()
        if channel.delivery is not Delivery.BEST_EFFORT:
            return self._outboxes[channel.name].add(event, traceparent, self._telemetry, unix_ms)
        body = encode(event)
        sequence = self._best_effort_sequence.get(channel.name, 0) + 1
        self._best_effort_sequence[channel.name] = sequence
        event_id = EventId(f"{self._name}.{channel.name}", self._epoch, sequence)
        headers = headers_of(event, event_id, traceparent, unix_ms)
        self._best_effort.append(Outgoing(event_id, subject_of(event), body, headers, None))
        self._best_effort_wake.set()
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

    async def _pump(self, outbox: Outbox) -> None:
        """Sends a channel's outbox for as long as the bus is open."""
        wake, attempt = self._wakes[outbox.channel.name], 0
        while True:
            if not outbox.waiting:
                self._emptied.set()
                wake.clear()
                await wake.wait()
            window = list(islice(outbox.waiting, _WINDOW))
            acknowledged = await self._send(window)
            outbox.acknowledged(acknowledged)
            self._published.add(acknowledged, {names.MESSAGING_DESTINATION_TEMPLATE: outbox.channel.template})
            if acknowledged == len(window):
                attempt = 0
                continue
            self._retried.add(
                len(window) - acknowledged, {names.MESSAGING_DESTINATION_TEMPLATE: outbox.channel.template}
            )
            if attempt == 0:
                log.warning("channel %s: the bus did not acknowledge, trying again", outbox.channel.name)
            await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
            attempt += 1

    async def _send(self, window: Sequence[Outgoing]) -> int:
        """Publishes in order; how many from the front were acknowledged in time."""
        futures: list[asyncio.Future[api.PubAck]] = []
        try:
            async with asyncio.timeout(self._settings.ack_timeout_s):
                for message in window:
                    # A copy: the client adds headers of its own.
                    headers = dict(message.headers)
                    futures.append(await self._js.publish_async(message.subject, message.body, headers=headers))
                await asyncio.gather(*futures, return_exceptions=True)
        except (TimeoutError, OSError, nats.errors.Error, nats.js.errors.Error):
            pass
        acknowledged = 0
        for future in futures:
            if not future.done() or future.cancelled() or future.exception() is not None:
                break
            acknowledged += 1
        for future in futures[acknowledged:]:
            future.cancel()  # gives its place among the client's pending publishes back
        return acknowledged

    async def _pump_best_effort(self) -> None:
        while True:
            await self._best_effort_wake.wait()
            self._best_effort_wake.clear()
            while self._best_effort:
                message = self._best_effort.popleft()
                if not self._client.is_connected:
                    continue  # a heartbeat that is late says nothing
                try:
                    await self._client.publish(message.subject, message.body, headers=message.headers)
                except (OSError, nats.errors.Error):
                    log.debug("a best-effort message on %s was lost", message.subject)

    async def consume(
        self, channels: Sequence[Channel], durable: str, handler: BatchHandler, *, batch: int = 256
    ) -> None:
        streams = {channel.stream for channel in channels}
        assert len(streams) == 1, f"one durable reads one stream, not {streams}"
        stream = streams.pop()
        assert stream is not None, "core NATS has no durable readers"
        config = api.ConsumerConfig(
            durable_name=durable,
            filter_subjects=[channel.wildcard for channel in channels],
            deliver_policy=api.DeliverPolicy.ALL,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=_ACK_WAIT_S,
            max_ack_pending=batch * 8,
            max_deliver=-1,
        )
        attempt = 0
        while True:
            subscription = None
            try:
                await self._js.add_consumer(stream, config)
                subscription = await self._js.pull_subscribe_bind(
                    durable, stream, pending_msgs_limit=_PENDING_MESSAGES, pending_bytes_limit=_PENDING_BYTES
                )
                while True:
                    await self._consume_once(subscription, durable, handler, batch)
                    attempt = 0
            except (TimeoutError, OSError, nats.errors.Error, nats.js.errors.Error) as error:
                wait_s = _RETRY_S[min(attempt, len(_RETRY_S) - 1)]
                attempt += 1
                log.warning("%s: reading %s failed (%r), again in %g s", durable, stream, error, wait_s)
                await asyncio.sleep(wait_s)
            finally:
                if subscription is not None:
                    await self._unsubscribe(subscription)

    async def _consume_once(
        self, subscription: JetStreamContext.PullSubscription, durable: str, handler: BatchHandler, batch: int
    ) -> None:
        try:
            messages = await subscription.fetch(batch, timeout=_FETCH_S)
        except (TimeoutError, nats.errors.TimeoutError):
            if not self._client.is_connected:
                raise
            return  # nothing new
        delivered: list[Delivered] = []
        good: list[Msg] = []
        for message in messages:
            try:
                delivered.append(_delivered(message))
            except ValueError as error:
                await self._bury(message, durable, error)
                continue
            good.append(message)
        if not delivered:
            return
        try:
            await handler(delivered)
        except Exception:
            log.exception("%s: %d messages are given back", durable, len(good))
            for message in good:
                await message.nak(delay=_REDELIVER_S)
            await asyncio.sleep(_REDELIVER_S)
            return
        for message in good:
            await message.ack()
        self._consumed.add(len(good), {names.MESSAGING_CONSUMER_GROUP: durable})

    async def _bury(self, message: Msg, durable: str, error: ValueError) -> None:
        """Puts what cannot be decoded aside, and acks it so that it does not come again."""
        log.error("%s: a message on %s cannot be decoded: %s", durable, message.subject, error)
        self._dead.add(1, {names.MESSAGING_CONSUMER_GROUP: durable})
        reason = " ".join(str(error).split())
        headers = {"tw-reason": reason, "tw-subject": message.subject}
        await self._js.publish(dead_subject(durable), message.data, timeout=_CALL_S, headers=headers)
        await message.ack()

    async def watch(self, channels: Sequence[Channel], handler: Handler) -> None:
        async with asyncio.TaskGroup() as tasks:
            for channel in channels:
                tasks.create_task(self._watch(channel, handler), name=f"watch-{channel.name}")

    async def _watch(self, channel: Channel, handler: Handler) -> None:
        async def take(message: Msg) -> None:
            try:
                delivered = _delivered(message)
            except ValueError as error:
                log.error("a message on %s cannot be decoded: %s", message.subject, error)
                self._dead.add(1, {names.MESSAGING_CONSUMER_GROUP: "watch"})
                return
            try:
                await handler(delivered)
            except Exception:
                log.exception("the reader of %s failed on one message", channel.name)

        attempt = 0
        while True:
            try:
                if channel.stream is None:
                    subscription: Any = await self._client.subscribe(
                        channel.wildcard,
                        cb=take,
                        pending_msgs_limit=_PENDING_MESSAGES,
                        pending_bytes_limit=_PENDING_BYTES,
                    )
                else:
                    last = channel.delivery is Delivery.LAST
                    subscription = await self._js.subscribe(
                        channel.wildcard,
                        stream=channel.stream,
                        cb=take,
                        ordered_consumer=True,
                        deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT if last else api.DeliverPolicy.NEW,
                        pending_msgs_limit=_PENDING_MESSAGES,
                        pending_bytes_limit=_PENDING_BYTES,
                    )
                break
            except (TimeoutError, OSError, nats.errors.Error, nats.js.errors.Error) as error:
                log.warning("watching %s failed (%r), trying again", channel.name, error)
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1
        try:
            await asyncio.Event().wait()  # until cancelled
        finally:
            await self._unsubscribe(subscription)

    async def request_drain(self, worker: str, drain: Drain, timeout_s: float) -> ControlAnswered:
        try:
            reply = await self._client.request(control_subject(worker), encode_drain(drain), timeout=timeout_s)
            return decode(ControlAnswered, reply.data)
        except (TimeoutError, nats.errors.Error, ValueError) as error:
            raise WorkerLost(f"worker {worker!r} did not answer within {timeout_s:g} s: {error!r}") from error

    async def serve_control(self, worker: str, handler: ControlHandler) -> None:
        async def answer(message: Msg) -> None:
            try:
                answered = await handler(decode_control(message.data))
            except ValueError as error:
                answered = ControlAnswered(accepted=False, message=str(error))
            await message.respond(encode(answered))

        subscription = await self._client.subscribe(control_subject(worker), cb=answer, pending_msgs_limit=1024)
        try:
            await asyncio.Event().wait()  # until cancelled
        finally:
            await self._unsubscribe(subscription)

    async def close(self) -> None:
        left = self._unacknowledged()
        if left:
            log.error("the bus closes with %d events unacknowledged", left)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        try:
            async with asyncio.timeout(_CALL_S):
                await self._client.close()
        except TimeoutError:
            log.warning("the connection to NATS did not close within %g s", _CALL_S)

    async def _unsubscribe(self, subscription: Any) -> None:
        if not self._client.is_connected:
            return
        try:
            await subscription.unsubscribe()
        except (OSError, nats.errors.Error, nats.js.errors.Error) as error:
            log.debug("unsubscribing failed: %r", error)

    async def _on_error(self, error: Exception) -> None:
        log.warning("NATS: %r", error)

    def _observe_outboxes(self, _: CallbackOptions) -> list[Observation]:
        return [
            Observation(len(outbox.waiting), {names.MESSAGING_DESTINATION_TEMPLATE: outbox.channel.template})
            for outbox in self._outboxes.values()
        ]


def _delivered(message: Msg) -> Delivered:
    """Raises ValueError: subject, id or body are not those of an event."""
    channel = channel_at(message.subject)
    if channel is None:
        raise ValueError(f"no channel has the subject {message.subject!r}")
    headers = message.headers or {}
    event_id = id_in(headers)
    event = decode(channel.event, message.data)
    attempt, sequence, pending = 1, 0, 0
    if channel.stream is not None:
        metadata = message.metadata
        attempt = metadata.num_delivered or 1
        sequence = metadata.sequence.stream
        pending = metadata.num_pending or 0
    return Delivered(event_id, event, message.subject, headers.get(TRACEPARENT, ""), attempt, sequence, pending)
