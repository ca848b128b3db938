"""A real mesh inside a test: NATS from its wheel, meter, optimizer, router and simulated workers, each wired by its own
`wiring.py`, on free ports of 127.0.0.1, all in the test's event loop.

In: workers' settings and, by name, sections of the others'. Out: addresses, a tenant's key, clients, and the meter's
books. What is stopped is stopped as its process would be: readiness off, drained, in reverse order.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import grpc
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import Tracer

from services.mesh.clock import Clock
from services.mesh.keys import KeyStore
from services.mesh.lifecycle import Lifecycle
from services.mesh.nats.server import NatsServer
from services.mesh.rpc import MESH_SECRET
from services.mesh.settings import (
    MeshSettings,
    MeterSettings,
    NatsSettings,
    OptimizerSettings,
    RouterSettings,
    Section,
    Settings,
    WorkerSettings,
    load_settings,
)
from services.mesh.telemetry import Telemetry, start_telemetry
from services.meter import wiring as meter_wiring
from services.optimizer import wiring as optimizer_wiring
from services.router import wiring as router_wiring
from services.worker import wiring as worker_wiring
from tokenworks import Client
from tokenworks.v1 import inference_pb2, inference_pb2_grpc, metering_pb2, metering_pb2_grpc

DEADLINE_S: Final = 30.0
_SETTLED_S: Final = 80.0
MODEL: Final = "llama-3.1-8b"


@dataclass(frozen=True, slots=True)
class Part:
    """One running service: its life, and what its `wire` gave."""

    life: Lifecycle
    running: Any
    telemetry: Telemetry

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.running.grpc_port}"


async def eventually(holds: Callable[[], Awaitable[bool]], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Waits until `holds` answers True; fails naming `what` when it does not in time."""
    ends_s = time.monotonic() + deadline_s
    while not await holds():
        assert time.monotonic() < ends_s, f"after {deadline_s:g} s still not so: {what}"
        await asyncio.sleep(0.02)


def simulated(worker: str, accelerator: str = "nvidia-h100-sxm", **settings: Any) -> WorkerSettings:
    """Settings of a simulated worker that is quick and lets itself be broken."""
    return WorkerSettings(
        id=worker, accelerator=accelerator, engine="simulated", port=0, http_port=0, faults=True, **settings
    )


class LocalMesh:
    """Started by `start`; everything it started, `stop` stops."""

    def __init__(
        self,
        data_dir: Path,
        make_exporter: Callable[[], SpanExporter] | None = None,
        *,
        clocks: Mapping[str, Clock] = MappingProxyType({}),
    ) -> None:
        """`clocks`: by part's name, where a part's is not the machine's."""
        self._data_dir = data_dir
        self._clocks = clocks
        self._make_exporter = make_exporter
        self._stack = AsyncExitStack()
        self._sections: dict[str, Section] = {}
        self.parts: dict[str, Part] = {}
        self.key = KeyStore(data_dir / "keys.json").create("local", "test", 0)

    async def start(self, workers: Sequence[WorkerSettings], **sections: Section) -> None:
        """Starts everything and waits until the router knows each worker.

        Args:
            sections: settings that replace those of this module, by section name.
        """
        server = await self._stack.enter_async_context(NatsServer(self._data_dir / "nats"))
        self._sections = {
            "mesh": MeshSettings(drain_grace_s=5.0),
            "nats": NatsSettings(url=server.url),
            "router": RouterSettings(port=0, http_port=0),
            "meter": MeterSettings(port=0, http_port=0),
            "optimizer": OptimizerSettings(port=0, http_port=0, interval_s=0.25),
            **sections,
        }
        # Whatever else a test sets of the mesh, its files stay here.
        self._sections["mesh"] = self._sections["mesh"].model_copy(update={"data_dir": self._data_dir})
        await self._start("meter", "meter", meter_wiring.wire, self._settings())
        await self._start("optimizer", "optimizer", optimizer_wiring.wire, self._settings())
        await self._start("router", "router", router_wiring.wire, self._settings())
        await asyncio.gather(*[self.start_worker(each) for each in workers])
        await self.wait_for_workers(len(workers))

    async def start_worker(self, worker: WorkerSettings, **sections: Section) -> Part:
        """Starts a worker, under the mesh's settings but for `sections`."""
        return await self._start(worker.id, "worker", worker_wiring.wire, self._settings(worker=worker, **sections))

    async def stop_part(self, name: str) -> None:
        """Drains and stops one service, as SIGTERM does; it is forgotten here."""
        part = self.parts.pop(name)
        await part.life.stop()
        await asyncio.to_thread(part.telemetry.shutdown)

    async def stop(self) -> None:
        await self._stack.aclose()

    def client(self, tracer: Tracer | None = None, key: str | None = None, *, direct: bool = False) -> Client:
        """A client of the router with the tenant's key; closed with the mesh.

        Args:
            direct: stream from the workers; for that the mesh needs a secret.
        """
        client = Client(
            self.parts["router"].address,
            self.key if key is None else key,
            direct=direct,
            deadline_s=DEADLINE_S,
            max_attempts=1,
            tracer=tracer,
        )
        self._stack.push_async_callback(client.close)
        return client

    def channel(self, name: str) -> grpc.aio.Channel:
        """A channel to a part's gRPC; closed with the mesh."""
        channel = grpc.aio.insecure_channel(self.parts[name].address)
        self._stack.push_async_callback(channel.close, None)
        return channel

    def telemetry(self, service: str) -> Telemetry:
        """Telemetry that exports where the mesh's does."""
        telemetry = start_telemetry(service, service, exporter=self._make_exporter() if self._make_exporter else None)
        self._stack.push_async_callback(asyncio.to_thread, telemetry.shutdown)
        return telemetry

    async def wait_for_workers(self, count: int) -> None:
        """Waits until the router serves the model from `count` workers."""
        client = self.client()

        async def serves() -> bool:
            return sum(model.workers for model in await client.models()) == count

        await eventually(serves, f"the router knows {count} workers")

    async def usage(self, *group_by: str) -> metering_pb2.GetUsageResponse:
        return await metering_pb2_grpc.MeterStub(self.channel("meter")).GetUsage(
            metering_pb2.GetUsageRequest(group_by=group_by), timeout=DEADLINE_S, metadata=self.operator
        )

    async def bill(self, request_id: str) -> metering_pb2.RequestBill:
        return await metering_pb2_grpc.MeterStub(self.channel("meter")).GetRequest(
            metering_pb2.GetRequestRequest(request_id=request_id), timeout=DEADLINE_S, metadata=self.operator
        )

    async def settled(self, finished_requests: int) -> metering_pb2.UsageRow:
        """The meter's total, once it has booked the end of that many requests, from both of its witnesses."""
        meter = metering_pb2_grpc.MeterStub(self.channel("meter"))
        total = metering_pb2.UsageRow()

        async def booked() -> bool:
            nonlocal total
            answer = await meter.GetUsage(metering_pb2.GetUsageRequest(), timeout=DEADLINE_S, metadata=self.operator)
            total = answer.total
            # A worker's report may follow its router's: what was delivered was generated.
            both = total.generated_tokens >= total.delivered_tokens
            return total.finished_requests >= finished_requests and both and answer.lag_events == 0

        # What a dead worker made is booked by the audit, once nothing else waits to be.
        await eventually(booked, f"the meter has booked the end of {finished_requests} requests", _SETTLED_S)
        return total

    async def inject(self, worker: str, kind: "inference_pb2.InjectFaultRequest.Kind", factor: float = 0.0) -> None:
        """Breaks or mends a worker through its FaultControl."""
        await inference_pb2_grpc.FaultControlStub(self.channel(worker)).InjectFault(
            inference_pb2.InjectFaultRequest(kind=kind, factor=factor), timeout=DEADLINE_S, metadata=self.operator
        )

    def environment(self, worker: WorkerSettings) -> dict[str, str]:
        """What makes a process of its own a worker of this mesh."""
        settings = self._settings(worker=worker)
        return {
            "TOKENWORKS_CONFIG": str(self._data_dir / "none.toml"),
            "TOKENWORKS_MESH_DATA_DIR": str(self._data_dir),
            "TOKENWORKS_MESH_SECRET": settings.mesh.secret,
            "TOKENWORKS_NATS_URL": settings.nats.url,
            "TOKENWORKS_WORKER_ID": worker.id,
            "TOKENWORKS_WORKER_ACCELERATOR": worker.accelerator,
            "TOKENWORKS_WORKER_ENGINE": worker.engine,
            "TOKENWORKS_WORKER_SPEED": str(worker.speed),
            "TOKENWORKS_WORKER_PORT": "0",
            "TOKENWORKS_WORKER_HTTP_PORT": "0",
        }

    @property
    def operator(self) -> tuple[tuple[str, str], ...]:
        """Metadata that shows the mesh's secret, where it has one."""
        secret = self._settings().mesh.secret
        return ((MESH_SECRET, secret),) if secret else ()

    def _settings(self, **sections: Section) -> Settings:
        return load_settings(**(self._sections | sections))

    async def _start(self, name: str, service: str, wire: Callable[..., Awaitable[Any]], settings: Settings) -> Part:
        life = Lifecycle(name)
        exporter = self._make_exporter() if self._make_exporter else None
        telemetry = start_telemetry(service, name, exporter=exporter)
        part = Part(life, await wire(life, settings, telemetry=telemetry, clock=self._clocks.get(name)), telemetry)
        self.parts[name] = part
        self._stack.push_async_callback(self._stop_if_running, name, part)
        await life.set_ready()
        return part

    async def _stop_if_running(self, name: str, part: Part) -> None:
        if self.parts.get(name) is part:
            await self.stop_part(name)
        assert part.life.failure is None, f"{name} failed: {part.life.failure}"
