"""A mesh to be fuzzed: router, worker, meter and optimizer, wired as they are in their processes, in this one, over one
bus in memory. Every port is a free one of 127.0.0.1.

Out: where each service listens, what a caller needs to be let in, and whether each still serves who asks rightly.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import aiohttp
import grpc

from services.mesh.keys import KeyStore
from services.mesh.lifecycle import Lifecycle
from services.mesh.memory_bus import MemoryBroker
from services.mesh.placement import PlacementClaims, PlacementSigner
from services.mesh.pricing import Rates
from services.mesh.rpc import MESH_SECRET
from services.mesh.settings import (
    MeshSettings,
    MeterSettings,
    OptimizerSettings,
    RouterSettings,
    WorkerSettings,
    load_settings,
)
from services.mesh.telemetry import start_telemetry
from services.meter import wiring as meter_wiring
from services.optimizer import wiring as optimizer_wiring
from services.router import wiring as router_wiring
from services.worker import wiring as worker_wiring
from tests.fuzz.samples import MODEL, POOL, ROUTER, TENANT, WORKER
from tests.fuzz.target import Wrong
from tokenworks.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    metering_pb2,
    metering_pb2_grpc,
    planning_pb2,
    planning_pb2_grpc,
)

SECRET: Final = "a secret for the fuzzer"
MAX_MESSAGE_BYTES: Final = 128 << 10
DEADLINE_S: Final = 20.0
READ_WITHIN_S: Final = 90.0  # the meter also bills the hours of all workers that were made up
_SETTLING_S: Final = 60.0
_SERVING_S: Final = 60.0
SPARE: Final = "spare-0"  # a worker that may be drained


@dataclass
class Service:
    """One running service."""

    name: str
    life: Lifecycle
    running: Any

    def __post_init__(self) -> None:
        self.channel = self.open_channel()

    def open_channel(self) -> grpc.aio.Channel:
        """One more connection to it; who asks closes it."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=options)

    @property
    def grpc_port(self) -> int:
        return int(self.running.grpc_port)

    @property
    def http_port(self) -> int:
        return int(self.running.http_port)


@dataclass
class World:
    """The mesh. `services` by name: router, worker, meter, optimizer."""

    broker: MemoryBroker
    key: str
    good_key: str
    services: dict[str, Service] = field(default_factory=dict)
    _signer: PlacementSigner = field(default_factory=lambda: PlacementSigner((SECRET,)))

    @property
    def operator(self) -> tuple[tuple[str, str], ...]:
        """Metadata of who may do everything."""
        return ((MESH_SECRET, SECRET), ("authorization", f"Bearer {self.key}"))

    def placement(self, rng: Random, request_id: str = "") -> str:
        """A genuine placement for the worker, of a request of its own."""
        beat = self.services["router"].running.fleet.worker(WORKER)
        claims = PlacementClaims(
            id=f"{rng.getrandbits(96):024x}",
            request_id=request_id or f"p-{rng.getrandbits(64):x}",
            router=ROUTER,
            worker=WORKER,
            epoch=beat.beat.epoch if beat else "",
            tenant=TENANT,
            model=MODEL,
            slo_class="standard",
            workload="",
            plan="",
            price_book="list@1",
            rates=Rates(50_000_000, 25_000_000, 100_000_000),
            admitted_unix_ms=time.time_ns() // 10**6,
            resume_from=0,
            funded_tokens=8,
            prompt_tokens=4,
            ttft_promise_s=2.0,
            ttft_promise_s_per_prompt_token=0.0,
            tpot_promise_s=0.1,
            priority=1,
            expires_unix_ms=time.time_ns() // 10**6 + 10_000,
        )
        return self._signer.sign(claims)

    async def until_serving(self) -> None:
        """Waits until every service answers who asks rightly. Raises what it raises instead after some seconds: who
        takes a worker's name is believed until that worker is heard again."""
        ends_s = time.monotonic() + _SERVING_S
        while True:
            try:
                await self.check_serving()
            except (grpc.aio.AioRpcError, AssertionError):
                if time.monotonic() > ends_s:
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    async def check_serving(self) -> None:
        """Each service answers who asks rightly. Raises what it raises instead."""
        router, meter = self.services["router"], self.services["meter"]
        asked = inference_pb2.GenerateRequest(
            model=MODEL, text="river", sampling=inference_pb2.Sampling(max_tokens=3, ignore_eos=True)
        )
        metadata = (("authorization", f"Bearer {self.good_key}"),)
        call = inference_pb2_grpc.RouterStub(router.channel).Generate(asked, metadata=metadata, timeout=DEADLINE_S)
        tokens = sum([message.token_count async for message in call])
        assert tokens == 3, f"the router streamed {tokens} tokens, 3 were asked for"
        await metering_pb2_grpc.MeterStub(meter.channel).GetUsage(
            metering_pb2.GetUsageRequest(), metadata=self.operator, timeout=DEADLINE_S
        )
        plan = await planning_pb2_grpc.OptimizerStub(self.services["optimizer"].channel).GetPlan(
            planning_pb2.GetPlanRequest(model=MODEL), metadata=self.operator, timeout=DEADLINE_S
        )
        assert plan.model == MODEL
        worker = await inference_pb2_grpc.WorkerStub(self.services["worker"].channel).Describe(
            inference_pb2.DescribeRequest(), metadata=self.operator, timeout=DEADLINE_S
        )
        assert worker.state == "ready", worker
        async with aiohttp.ClientSession() as http:
            for each in self.services.values():
                async with http.get(f"http://127.0.0.1:{each.http_port}/readyz") as ready:
                    assert ready.status == 200, f"{each.name}: {await ready.text()}"
            body = json.dumps({"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]})
            url = f"http://127.0.0.1:{router.http_port}/v1/chat/completions"
            async with http.post(url, data=body, headers={"Authorization": f"Bearer {self.good_key}"}) as answer:
                assert answer.status == 200, await answer.text()

    async def taken(self) -> None:
        """Waits until whoever reads the bus has read what is on it."""
        ends_s = time.monotonic() + READ_WITHIN_S
        while any(watch.held for watch in self.broker.watches) or self._lag():
            if time.monotonic() > ends_s:
                raise Wrong(f"{self._lag()} messages are not read within {READ_WITHIN_S:g} s")
            await asyncio.sleep(0)

    def _lag(self) -> int:
        """Messages of the durable readers' streams that they have not acked."""
        return sum(cursor.behind for cursor in self.broker.cursors())

    async def settled(self) -> list[str]:
        """Waits until nothing runs any more; what still does after a while, and which services have failed."""
        ends_s = time.monotonic() + _SETTLING_S
        while left := self._held():
            if time.monotonic() > ends_s:
                break
            await asyncio.sleep(0.05)
        lives = [(each.name, each.life) for each in self.services.values()]
        failed = [f"the {name} has failed: {life.failure!r}" for name, life in lives if life.failure is not None]
        return [f"{count} {what} are still held" for what, count in left.items()] + failed

    def _held(self) -> dict[str, int]:
        router, worker = self.services["router"].running, self.services["worker"].running
        optimizer = self.services["optimizer"].running
        held = {
            "requests of the router": len(router.dispatcher),
            "placements": len(router.direct),
            "streams of the worker": len(worker.streams),
            "watchers of plans": optimizer.board.watchers,
            "messages of durable readers": self._lag(),
        }
        return {what: count for what, count in held.items() if count}


@asynccontextmanager
async def running_world(folder: Path) -> AsyncIterator[World]:
    """The mesh, from its start to its end."""
    broker = MemoryBroker()
    keys = KeyStore(folder / "keys.json")
    world = World(broker, keys.create(TENANT, "fuzz", 0), keys.create("a tenant that nobody fuzzes", "good", 0))
    settings = load_settings(
        mesh=MeshSettings(data_dir=folder, secret=SECRET, drain_grace_s=1.0, max_message_bytes=MAX_MESSAGE_BYTES),
        router=RouterSettings(port=0, http_port=0, placement_ttl_s=0.5, decision_records=1000),
        worker=WorkerSettings(
            id=WORKER, accelerator=POOL, engine="simulated", port=0, http_port=0, speed=1000.0, faults=True
        ),
        meter=MeterSettings(port=0, http_port=0, audit_every_s=1.0),
        optimizer=OptimizerSettings(port=0, http_port=0, interval_s=0.5),
    )
    spare = load_settings(**{**settings.model_dump(), "worker": settings.worker.model_copy(update={"id": SPARE})})
    async with AsyncExitStack() as stack:
        for name, instance, wire, chosen in (
            ("meter", "meter-0", meter_wiring.wire, settings),
            ("optimizer", "optimizer-0", optimizer_wiring.wire, settings),
            ("router", ROUTER, router_wiring.wire, settings),
            ("worker", WORKER, worker_wiring.wire, settings),
            ("worker", SPARE, worker_wiring.wire, spare),
        ):
            telemetry = start_telemetry(name, instance)
            stack.push_async_callback(asyncio.to_thread, telemetry.shutdown)
            bus = broker.bus(name, instance, telemetry)
            stack.push_async_callback(bus.close)
            life = Lifecycle(name)
            running = await wire(life, chosen, bus=bus, telemetry=telemetry)
            stack.push_async_callback(life.stop)
            await life.set_ready()
            if instance == SPARE:
                continue
            service = world.services[name] = Service(name, life, running)
            stack.push_async_callback(service.channel.close, None)
        await world.until_serving()
        yield world
