"""A real worker inside a test, without a mesh around it: a bus in memory, and a router's session over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import grpc

from services.mesh.bus import Bus, Delivered
from services.mesh.events import (
    Event,
    LatencyObserved,
    RequestLatency,
    StepSample,
    TokenEntry,
    TokensGenerated,
    WorkerHeartbeat,
)
from services.mesh.lifecycle import Lifecycle
from services.mesh.memory_bus import MemoryBroker
from services.mesh.rpc import MESH_SECRET
from services.mesh.settings import MeshSettings, NatsSettings, RunawaySettings, WorkerSettings, load_settings
from services.mesh.subjects import FLEET, LATENCY, RUNAWAY, TOKENS
from services.mesh.telemetry import Telemetry, start_telemetry
from services.worker.engine import Engine
from services.worker.service import ROUTER_METADATA
from services.worker.wiring import RunningWorker, wire
from tests.mesh.local_mesh import DEADLINE_S, eventually
from tokenworks.v1 import inference_pb2 as pb
from tokenworks.v1 import inference_pb2_grpc as pb_grpc

MODEL: Final = "llama-3.1-8b"


@dataclass(eq=False)
class Received:
    """One stream as its router sees it; a gap or a repeat fails the test."""

    first: int = 0
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    chunks: int = 0
    finish: pb.Finish | None = None
    error: pb.StreamError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, chunk: pb.StreamChunk) -> None:
        assert not self.ended.is_set(), "a chunk after the last"
        self.chunks += 1
        if chunk.response:
            response = pb.GenerateResponse.FromString(chunk.response)
            assert response.first_index == chunk.first_index == self.first + len(self.token_ids), "a gap or a repeat"
            assert response.token_count == chunk.token_count == len(response.token_ids)
            self.token_ids += response.token_ids
            self.text += response.text
            if response.HasField("finish"):
                self.finish = response.finish
        if chunk.HasField("error"):
            self.error = chunk.error
        if chunk.last:
            assert (self.finish is None) != (self.error is None), "an end is a finish or an error"
            self.ended.set()

    async def end(self) -> "Received":
        async with asyncio.timeout(DEADLINE_S):
            await self.ended.wait()
        return self


class Session:
    """A router's session: what it opened, and what came."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._numbers = count(1)
        self.streams: dict[int, Received] = {}
        self.frames = 0
        self.over = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def open(self, request_id: str, *, tenant: str = "acme", **changes: Any) -> tuple[int, Received]:
        """Opens a stream; `changes` are fields of GenerateRequest, of its Sampling or of OpenStream."""
        number = next(self._numbers)
        sampling = {each: changes.pop(each) for each in ("max_tokens", "seed", "stop", "ignore_eos") if each in changes}
        opening = {
            each: changes.pop(each)
            for each in ("traceparent", "priority", "plan", "funds", "deadline_ms")
            if each in changes
        }
        request = {"request_id": request_id, "model": MODEL, "text": "hello", "slo_class": "standard", **changes}
        received = self.streams[number] = Received(first=request.get("resume_from", 0))
        await self._call.write(
            pb.SessionRequest(
                open=pb.OpenStream(
                    stream=number,
                    tenant=tenant,
                    request=pb.GenerateRequest(**request, sampling=pb.Sampling(**sampling)),
                    **opening,
                )
            )
        )
        return number, received

    async def answer(self, request_id: str, **changes: Any) -> Received:
        """A stream from its opening to its end."""
        _, received = await self.open(request_id, **changes)
        return await received.end()

    async def cancel(self, number: int, reason: str = "cancelled") -> None:
        await self._call.write(pb.SessionRequest(cancel=pb.CancelStream(stream=number, reason=reason)))

    async def ask_no_more(self) -> None:
        """Closes the router's direction of the session."""
        await self._call.done_writing()

    async def hang_up(self) -> None:
        """Breaks the session, as a router that dies does."""
        self._call.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while (frame := await self._call.read()) is not grpc.aio.EOF:
                self.frames += 1
                for chunk in frame.chunks:
                    self.streams[chunk.stream].add(chunk)
        finally:
            self.over.set()


class Worker:
    """A worker under test, and what it has published."""

    def __init__(self, running: RunningWorker, life: Lifecycle, events: list[Event], bus: Bus) -> None:
        self.running = running
        self.life = life
        self.bus = bus
        self._events = events
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.grpc_port}")
        self.stub: Any = pb_grpc.WorkerStub(self.channel)  # type: ignore[no-untyped-call]
        self._sessions: list[Session] = []

    async def session(self, router: str = "router-0", secret: str = "") -> Session:
        metadata = ((ROUTER_METADATA, router), *(((MESH_SECRET, secret),) if secret else ()))
        call = self.stub.Session(metadata=metadata)
        async with asyncio.timeout(DEADLINE_S):
            await call.wait_for_connection()
        self._sessions.append(Session(call))
        return self._sessions[-1]

    async def break_engine(self, kind: Any, factor: float = 0.0) -> str:
        control: Any = pb_grpc.FaultControlStub(self.channel)  # type: ignore[no-untyped-call]
        answer = await control.InjectFault(pb.InjectFaultRequest(kind=kind, factor=factor), timeout=DEADLINE_S)
        return str(answer.state)

    def of_kind(self, kind: type[Any]) -> list[Any]:
        return [event for event in self._events if isinstance(event, kind)]

    @property
    def entries(self) -> list[TokenEntry]:
        return [entry for event in self.of_kind(TokensGenerated) for entry in event.entries]

    @property
    def latencies(self) -> list[RequestLatency]:
        return [each for event in self.of_kind(LatencyObserved) for each in event.requests]

    @property
    def steps(self) -> list[StepSample]:
        return [each for event in self.of_kind(LatencyObserved) for each in event.steps]

    @property
    def beat(self) -> WorkerHeartbeat:
        """The latest heartbeat."""
        beats: list[WorkerHeartbeat] = self.of_kind(WorkerHeartbeat)
        return beats[-1]

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        async def so() -> bool:
            return holds()

        await eventually(so, what)

    async def reported(self, *request_ids: str) -> None:
        """Waits until the last entry of each request is published, and checks that it is one."""

        def lasts() -> list[str]:
            return [entry.request_id for entry in self.entries if entry.last]

        await self.until(lambda: set(request_ids) <= set(lasts()), "every request has its last entry")
        assert sorted(lasts()) == sorted(set(lasts())), "more than one last entry"

    async def close(self) -> None:
        for session in self._sessions:
            await session.hang_up()
        await self.channel.close()
        if not self.life.draining:
            await self.life.stop()
        assert self.life.failure is None, self.life.failure


@asynccontextmanager
async def running_worker(
    folder: Path,
    *,
    telemetry: Telemetry | None = None,
    make_engine: Callable[[], Engine] | None = None,
    secret: str = "",
    grace_s: float = 5.0,
    through: Callable[[Bus], Bus] = lambda bus: bus,
    runaway: RunawaySettings | None = None,
    **settings: Any,
) -> AsyncIterator[Worker]:
    """A worker on free ports; `settings` are the worker's.

    Args:
        through: what stands between the worker and its bus.
    """
    loaded = load_settings(
        mesh=MeshSettings(data_dir=folder, secret=secret, drain_grace_s=grace_s),
        nats=NatsSettings(outbox_events=64),
        runaway=runaway or RunawaySettings(),
        worker=WorkerSettings(
            **{
                "id": "h100-0",
                "engine": "simulated",
                "port": 0,
                "http_port": 0,
                "faults": True,
                "speed": 20.0,
                **settings,
            }
        ),
    )
    broker, life, events = MemoryBroker(), Lifecycle("worker"), list[Event]()
    buses = [broker.bus("worker", "h100-0", telemetry), broker.bus("test", "reader")]
    for bus in buses:
        await bus.connect()

    async def keep(message: Delivered) -> None:
        events.append(message.event)

    watching = asyncio.create_task(buses[1].watch((TOKENS, LATENCY, FLEET, RUNAWAY), keep))
    telemetry = telemetry or start_telemetry("worker", "h100-0")
    running = await wire(life, loaded, bus=through(buses[0]), telemetry=telemetry, make_engine=make_engine)
    await life.set_ready()
    worker = Worker(running, life, events, buses[1])
    try:
        await worker.until(lambda: bool(worker.of_kind(WorkerHeartbeat)), "it beats")
        yield worker
    finally:
        await worker.close()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        for bus in buses:
            await bus.close()
        await asyncio.to_thread(telemetry.shutdown)
