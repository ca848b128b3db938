"""The two buses that test_bus.py holds to the same promises, each with what a test needs of its server.

`NatsWorld`: `NatsBus` on a real server. `MemoryWorld`: the twin. In both, `down` takes the server away and `up` brings
it back with what it had stored.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

import nats
import nats.js.errors
from opentelemetry.sdk.trace.export import SpanExporter

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import SystemClock
from services.mesh.events import (
    CreditChanged,
    LatencyObserved,
    RequestAdmitted,
    RequestFinished,
    TokenEntry,
    TokensGenerated,
    WorkerHeartbeat,
)
from services.mesh.memory_bus import MemoryBroker
from services.mesh.nats.bus import NatsBus
from services.mesh.nats.server import NatsServer
from services.mesh.settings import NatsSettings
from services.mesh.subjects import Channel, dead_subject
from services.mesh.telemetry import Telemetry, start_telemetry

DEADLINE_S = 60.0
Dead = tuple[str, bytes, str]  # subject, body, reason


async def eventually(holds: Callable[[], bool], what: str) -> None:
    """Waits until the condition holds; fails saying what did not."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if holds():
                    return
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None


async def eventually_so(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    """`eventually`, of something that must be asked for."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if await holds():
                    return
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None


class World(Protocol):
    async def start(self, folder: Path) -> None: ...
    async def bus(
        self, service: str, instance: str = "0", *, outbox_events: int = 4096, exporter: SpanExporter | None = None
    ) -> Bus:
        """A connected bus; closed at the end of the test."""
        ...

    async def down(self) -> None: ...
    async def up(self) -> None: ...
    async def put(self, subject: str, headers: Mapping[str, str], body: bytes) -> None:
        """A message from nobody of ours."""
        ...

    async def headers_on(self, channel: Channel) -> Sequence[Mapping[str, str]]:
        """Of each stored message, oldest first."""
        ...

    async def dead(self, durable: str) -> Sequence[Dead]: ...
    async def lose(self, channel: Channel, event_id: str) -> None:
        """The stream no longer has a message that it acknowledged."""
        ...

    async def close(self) -> None: ...


class _Buses:
    def __init__(self) -> None:
        self._open: list[tuple[Bus, Telemetry]] = []

    async def adopt(self, bus: Bus, telemetry: Telemetry) -> Bus:
        self._open.append((bus, telemetry))
        await bus.connect()
        return bus

    async def close(self) -> None:
        while self._open:
            bus, telemetry = self._open.pop()
            await bus.close()
            telemetry.shutdown()


class MemoryWorld:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self._buses = _Buses()

    async def start(self, folder: Path) -> None:
        pass

    async def bus(
        self, service: str, instance: str = "0", *, outbox_events: int = 4096, exporter: SpanExporter | None = None
    ) -> Bus:
        telemetry = start_telemetry(service, instance, exporter=exporter)
        return await self._buses.adopt(
            self.broker.bus(service, instance, telemetry, outbox_events=outbox_events), telemetry
        )

    async def down(self) -> None:
        self.broker.up = False

    async def up(self) -> None:
        self.broker.up = True

    async def put(self, subject: str, headers: Mapping[str, str], body: bytes) -> None:
        self.broker.put(subject, headers, body)

    async def headers_on(self, channel: Channel) -> Sequence[Mapping[str, str]]:
        assert channel.stream is not None
        return [stored.headers for stored in self.broker.standing(channel.stream)]

    async def dead(self, durable: str) -> Sequence[Dead]:
        return [(each.subject, each.body, each.reason) for each in self.broker.dead if each.durable == durable]

    async def lose(self, channel: Channel, event_id: str) -> None:
        assert channel.stream is not None
        self.broker.lose(channel.stream, event_id)

    async def close(self) -> None:
        await self._buses.close()


class NatsWorld:
    server: NatsServer

    def __init__(self) -> None:
        self._buses = _Buses()
        self._is_up = True

    async def start(self, folder: Path) -> None:
        self.server = NatsServer(folder / "nats")
        await self.server.start()

    async def bus(
        self, service: str, instance: str = "0", *, outbox_events: int = 4096, exporter: SpanExporter | None = None
    ) -> Bus:
        telemetry = start_telemetry(service, instance, exporter=exporter)
        settings = NatsSettings(
            url=self.server.url,
            outbox_events=outbox_events,
            ack_timeout_s=2.0,
            connect_timeout_s=10.0 if self._is_up else 0.5,
        )
        return await self._buses.adopt(NatsBus(settings, service, instance, telemetry, SystemClock()), telemetry)

    async def down(self) -> None:
        self._is_up = False
        await self.server.kill()

    async def up(self) -> None:
        await self.server.start()
        self._is_up = True

    async def put(self, subject: str, headers: Mapping[str, str], body: bytes) -> None:
        async with await nats.connect(self.server.url) as client:
            await client.jetstream().publish(subject, body, headers=dict(headers))

    async def headers_on(self, channel: Channel) -> Sequence[Mapping[str, str]]:
        return [message.headers or {} for message in await self._stored(channel.stream or "", channel.wildcard)]

    async def dead(self, durable: str) -> Sequence[Dead]:
        found = []
        for message in await self._stored("TW_DEAD", dead_subject(durable)):
            assert message.headers is not None
            found.append((message.headers["tw-subject"], message.data, message.headers["tw-reason"]))
        return found

    async def lose(self, channel: Channel, event_id: str) -> None:
        assert channel.stream is not None
        async with await nats.connect(self.server.url) as client:
            js = client.jetstream()
            last = (await js.stream_info(channel.stream)).state.last_seq
            for sequence in range(1, last + 1):
                with suppress(nats.js.errors.NotFoundError):
                    found = await js.get_msg(channel.stream, sequence)
                    if (found.headers or {}).get("Nats-Msg-Id") == event_id:
                        await js.delete_msg(channel.stream, sequence)

    async def close(self) -> None:
        await self._buses.close()
        await self.server.stop()

    async def _stored(self, stream: str, subject: str) -> list[Any]:
        async with await nats.connect(self.server.url) as client:
            js = client.jetstream()
            count = (await js.stream_info(stream)).state.messages
            reader = await js.pull_subscribe(subject, stream=stream)
            return await reader.fetch(count + 1, timeout=0.5) if count else []


class Reading:
    """A durable reader or a watch in the background, and what it has received.

    Args:
        failing: raises in the handler as often as it says for a batch; consulted before anything is noted.
    """

    def __init__(self, failing: Callable[[Sequence[Delivered]], bool] = lambda _: False) -> None:
        self.received: list[Delivered] = []
        self.batches: list[int] = []
        self._failing = failing
        self._task: asyncio.Task[None] | None = None

    def consume(
        self, bus: Bus, channels: Sequence[Channel], durable: str, *, batch: int = 256, after_sequence: int = 0
    ) -> Self:
        reading = bus.consume(channels, durable, self._take, batch=batch, after_sequence=after_sequence)
        self._task = asyncio.create_task(reading)
        return self

    def watch(self, bus: Bus, channels: Sequence[Channel]) -> Self:
        self._task = asyncio.create_task(bus.watch(channels, self._see))
        return self

    @property
    def sequences(self) -> list[int]:
        return [each.id.sequence for each in self.received]

    async def until(self, count: int) -> list[Delivered]:
        await eventually(lambda: len(self.received) >= count, f"{count} messages; there are {len(self.received)}")
        return self.received

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            async with asyncio.timeout(DEADLINE_S):  # whatever the reader is doing
                await self._task

    async def end(self) -> None:
        """Waits until the reading has ended by itself; raises what it raised."""
        assert self._task is not None
        async with asyncio.timeout(DEADLINE_S):
            await self._task

    async def _take(self, messages: Sequence[Delivered]) -> None:
        if self._failing(messages):
            raise RuntimeError("the reader's database is gone")
        self.received += messages
        self.batches.append(len(messages))

    async def _see(self, message: Delivered) -> None:
        if self._failing([message]):
            raise RuntimeError("the reader has a defect")
        self.received.append(message)


def tokens(request: str = "r", *, traceparent: str = "", worker: str = "h100-0") -> TokensGenerated:
    entry = TokenEntry(
        request_id=request,
        tenant="acme",
        workload="",
        model="m",
        slo_class="standard",
        from_index=0,
        count=1,
        prompt_tokens=3,
        cached_prompt_tokens=0,
        device_ns=10,
        energy_uj=20,
        last=bool(traceparent),
        traceparent=traceparent,
    )
    return TokensGenerated(worker=worker, pool="nvidia-h100", accelerator="h100", entries=(entry,), at_unix_ms=1)


def credit(tenant: str, remaining_nusd: int) -> CreditChanged:
    return CreditChanged(
        tenant=tenant,
        limit_nusd=100,
        spent_nusd=100 - remaining_nusd,
        remaining_nusd=remaining_nusd,
        unlimited=False,
        exhausted=remaining_nusd <= 0,
        suspended=False,
        at_unix_ms=1,
    )


def latency() -> LatencyObserved:
    return LatencyObserved(
        worker="h100-0", pool="nvidia-h100", accelerator="h100", model="m", requests=(), steps=(), at_unix_ms=1
    )


def admitted(request: str) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=request,
        router="router-0",
        tenant="acme",
        workload="",
        model="m",
        slo_class="standard",
        prompt_tokens=3,
        max_tokens=5,
        worker="h100-0",
        pool="nvidia-h100",
        plan="m:1",
        at_unix_ms=1,
        price_book="list@1",
    )


def finished(request: str) -> RequestFinished:
    return RequestFinished(
        request_id=request,
        router="router-0",
        tenant="acme",
        workload="",
        model="m",
        slo_class="standard",
        worker="h100-0",
        pool="nvidia-h100",
        accelerator="h100",
        delivered_from=0,
        delivered_count=5,
        prompt_tokens=3,
        cached_prompt_tokens=0,
        outcome="stop",
        ttft_s=0.1,
        tpot_s=0.01,
        e2e_s=0.2,
        slo_met=True,
        trace_id="",
        at_unix_ms=2,
        admitted_unix_ms=1,
        price_book="list@1",
        plan="m:1",
    )


def heartbeat(worker: str, sequence: int) -> WorkerHeartbeat:
    return WorkerHeartbeat(
        worker=worker,
        pool="nvidia-h100",
        accelerator="h100",
        engine="simulated",
        models=("m",),
        address="127.0.0.1:1",
        epoch="e",
        sequence=sequence,
        state="ready",
        running=0,
        waiting=0,
        waiting_prefill_tokens=0,
        kv_cache_usage=0.0,
        kv_capacity_tokens=1,
        context_tokens=1,
        max_batch=1,
        max_waiting=1,
        slowdown=1.0,
        power_w=1.0,
        busy_ns=0,
        generated_tokens=0,
        energy_uj=0,
        simulated=True,
        rate_nusd_per_hour=1,
        failed_because="",
        at_unix_ms=1,
        steps=0,
        prefill_chunk_tokens=1,
    )
