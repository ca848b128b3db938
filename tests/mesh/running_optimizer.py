"""A real optimizer inside a test, without a mesh around it: a bus in memory, gRPC on a free port, and workers and a
router that are heard on the bus as real ones are."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import grpc

from services.mesh.bus import Bus, Delivered
from services.mesh.events import RoutingPlan, StepSample, WorkerHeartbeat
from services.mesh.lifecycle import Lifecycle
from services.mesh.memory_bus import MemoryBroker
from services.mesh.settings import ElasticSettings, MeshSettings, OptimizerSettings, load_settings
from services.mesh.subjects import PLAN
from services.mesh.telemetry import Telemetry, start_telemetry
from services.optimizer.wiring import RunningOptimizer, wire
from tests.mesh.local_mesh import eventually
from tests.unit.optimizer.facts import MODEL, admitted, finished, heartbeat, latency
from tokenworks.v1 import planning_pb2 as planning
from tokenworks.v1 import planning_pb2_grpc

DEADLINE_S: Final = 20.0
INTERVAL_S: Final = 0.1
_BEAT_S: Final = 0.1


@dataclass
class Optimizer:
    """A running optimizer, what it is told, and what it says."""

    broker: MemoryBroker
    running: RunningOptimizer
    stub: planning_pb2_grpc.OptimizerStub
    workers: Bus
    routers: Bus
    beats: dict[str, WorkerHeartbeat] = field(default_factory=dict)
    plans: list[RoutingPlan] = field(default_factory=list)

    def join(self, worker: str, accelerator: str, **fields: Any) -> None:
        """A worker that is heard from now on, as `fields` say; again to change it."""
        self.beats[worker] = heartbeat(worker, accelerator, **fields)

    def leave(self, worker: str) -> None:
        del self.beats[worker]

    def arrive(
        self, count: int, slo_class: str = "standard", prompt_tokens: int = 500, answer_tokens: int = 100
    ) -> None:
        """That many requests, admitted and done."""
        for _ in range(count):
            self.routers.publish(admitted(slo_class, prompt_tokens))
            self.routers.publish(finished(answer_tokens, slo_class, prompt_tokens))

    def step(self, worker: str, samples: Sequence[StepSample], traceparent: str = "") -> None:
        """Steps that the worker made."""
        event = latency(worker, samples, self.beats[worker].accelerator)
        self.workers.publish(event, traceparent=traceparent)

    async def plan_is(self, holds: Callable[[RoutingPlan], bool], what: str, model: str = MODEL) -> RoutingPlan:
        """The first plan from now on that is as expected."""
        seen = len(self.plans)
        found: list[RoutingPlan] = []

        async def so() -> bool:
            found.extend(plan for plan in self.plans[seen:] if plan.model == model and holds(plan))
            return bool(found)

        await eventually(so, what, DEADLINE_S)
        return found[0]

    async def beat_forever(self) -> None:
        sequence = 1
        while True:
            sequence += 1
            for worker, beat in list(self.beats.items()):
                self.workers.publish(dataclasses.replace(self.beats[worker], sequence=sequence, steps=sequence))
                assert beat.worker == worker
            await asyncio.sleep(_BEAT_S)

    async def watch_forever(self, bus: Bus) -> None:
        async def note(delivered: Delivered) -> None:
            assert isinstance(delivered.event, RoutingPlan)
            self.plans.append(delivered.event)

        await bus.watch([PLAN], note)


@asynccontextmanager
async def running_optimizer(
    folder: Path,
    *,
    broker: MemoryBroker | None = None,
    telemetry: Telemetry | None = None,
    worker_telemetry: Telemetry | None = None,
    secret: str = "",
    mode: Literal["act", "advise"] = "act",
    elastic: ElasticSettings | None = None,
    changes: Mapping[str, Any] | None = None,
) -> AsyncIterator[Optimizer]:
    """An optimizer that plans ten times a second; with `broker`, one that meets what another left on its bus.

    Args:
        changes: of its settings.
    """
    async with AsyncExitStack() as stack:
        broker = broker or MemoryBroker()

        def own_telemetry(service: str) -> Telemetry:
            made = start_telemetry(service, service)
            stack.push_async_callback(asyncio.to_thread, made.shutdown)
            return made

        workers = broker.bus("worker", "worker-0", worker_telemetry or own_telemetry("worker"))
        routers = broker.bus("router", "router-0", own_telemetry("router"))
        telemetry = telemetry or own_telemetry("optimizer")
        bus = broker.bus("optimizer", "optimizer-0", telemetry)
        for each in (workers, routers, bus):
            await each.connect()
            stack.push_async_callback(each.close)
        settings = load_settings(
            mesh=MeshSettings(data_dir=folder, secret=secret, drain_grace_s=1.0),
            optimizer=OptimizerSettings(port=0, http_port=0, mode=mode, **{"interval_s": INTERVAL_S} | (changes or {})),
            elastic=elastic or ElasticSettings(),
        )
        life = Lifecycle("optimizer")
        running = await wire(life, settings, bus=bus, telemetry=telemetry)
        await life.set_ready()
        stack.push_async_callback(life.stop)
        channel = grpc.aio.insecure_channel(f"{running.host}:{running.grpc_port}")
        stack.push_async_callback(channel.close, None)
        stub = planning_pb2_grpc.OptimizerStub(channel)
        optimizer = Optimizer(broker, running, stub, workers, routers)
        tasks = [
            asyncio.create_task(optimizer.beat_forever()),
            asyncio.create_task(optimizer.watch_forever(routers)),
        ]
        try:
            yield optimizer
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert life.failure is None, life.failure


def planned(plan: RoutingPlan) -> dict[str, float]:
    """The part of the whole demand that goes to each pool."""
    total = sum(each.demand_rps for each in plan.classes)
    parts: dict[str, float] = {pool.pool: 0.0 for pool in plan.pools}
    for share in plan.shares:
        parts[share.pool] += share.share * plan.classes[share.workload_class].demand_rps / total if total else 0.0
    return parts


def shadow(plan: RoutingPlan | planning.RoutingPlan, pool: str) -> float:
    return next(each.shadow_usd_per_device_s for each in plan.pools if each.pool == pool)
