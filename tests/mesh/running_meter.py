"""A real meter inside a test, without a mesh around it: a bus in memory, a SQLite file, gRPC on a free port."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from services.mesh.bus import Bus, Delivered
from services.mesh.events import CreditChanged, Event, TokensGenerated
from services.mesh.lifecycle import Lifecycle
from services.mesh.memory_bus import MemoryBroker
from services.mesh.section import Section
from services.mesh.settings import MeshSettings, MeterSettings, load_settings
from services.mesh.subjects import CREDIT
from services.mesh.telemetry import Telemetry, start_telemetry
from services.meter.wiring import wire
from tests.mesh.local_mesh import eventually
from tokenworks.v1 import insight_pb2_grpc, metering_pb2_grpc, pricing_pb2_grpc
from tokenworks.v1 import metering_pb2 as metering

DEADLINE_S: Final = 60.0


@dataclass
class Meter:
    """A running meter, and publishers of events to it."""

    broker: MemoryBroker
    life: Lifecycle
    stub: metering_pb2_grpc.MeterStub
    workers: Bus
    routers: Bus
    credit: list[CreditChanged] = field(default_factory=list)
    pricing: Any = None
    insight: Any = None
    http_port: int = 0
    address: str = ""  # of its gRPC

    def publish(self, *events: Event) -> None:
        for event in events:
            (self.workers if isinstance(event, TokensGenerated) else self.routers).publish(event)

    async def usage(self, *group_by: str, **request: Any) -> metering.GetUsageResponse:
        return await self.stub.GetUsage(metering.GetUsageRequest(group_by=group_by, **request), timeout=DEADLINE_S)

    async def total(self, holds: Callable[[metering.UsageRow], bool]) -> metering.UsageRow:
        """The total as soon as it is as expected and nothing waits to be booked."""
        row = metering.UsageRow()

        async def so() -> bool:
            nonlocal row
            answer = await self.usage()
            row = answer.total
            return holds(row) and answer.lag_events == 0

        await eventually(so, "the total is as expected", DEADLINE_S)
        return row

    async def audit(self, holds: Callable[[metering.AuditResponse], bool]) -> metering.AuditResponse:
        """What the audit says as soon as it is as expected."""
        answer = metering.AuditResponse()

        async def so() -> bool:
            nonlocal answer
            answer = await self.stub.Audit(metering.AuditRequest(), timeout=DEADLINE_S)
            return holds(answer)

        await eventually(so, f"the audit is as expected: {answer}", DEADLINE_S)
        return answer

    async def credit_is(self, holds: Callable[[CreditChanged], bool]) -> CreditChanged:
        async def so() -> bool:
            return bool(self.credit) and holds(self.credit[-1])

        await eventually(so, "the announced credit is as expected", DEADLINE_S)
        return self.credit[-1]


@asynccontextmanager
async def running_meter(
    folder: Path,
    *,
    broker: MemoryBroker | None = None,
    telemetry: Telemetry | None = None,
    secret: str = "",
    through: Callable[[Bus], Bus] = lambda bus: bus,
    audit_every_s: float = 5.0,
    audit_patience_s: float = 60.0,
    end_after_s: float = 1800.0,
    database_url: str = "",
    **sections: Section,
) -> AsyncIterator[Meter]:
    """A meter with its books in `folder`; with `broker`, one that goes on with the streams of another.

    Args:
        through: what stands between the meter and its bus.
        sections: more of its settings.
    """
    async with AsyncExitStack() as stack:
        broker = broker or MemoryBroker()
        telemetry = telemetry or start_telemetry("meter", "meter-0")
        buses = [broker.bus("meter", "meter-0", telemetry)]
        buses += [broker.bus(service, f"{service}-0") for service in ("worker", "router", "reader")]
        for each in buses:
            await each.connect()
            stack.push_async_callback(each.close)
        chosen = load_settings(
            mesh=MeshSettings(data_dir=folder, drain_grace_s=2.0, secret=secret),
            meter=MeterSettings(
                port=0,
                http_port=0,
                audit_every_s=audit_every_s,
                audit_patience_s=audit_patience_s,
                end_after_s=end_after_s,
                database_url=database_url,
            ),
            **sections,
        )
        life = Lifecycle("meter")
        running = await wire(life, chosen, bus=through(buses[0]), telemetry=telemetry)
        stack.push_async_callback(_stop_once, life)
        await life.set_ready()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{running.grpc_port}"))
        meter = Meter(broker, life, metering_pb2_grpc.MeterStub(channel), buses[1], buses[2])
        meter.pricing = pricing_pb2_grpc.PricingStub(channel)
        meter.insight = insight_pb2_grpc.InsightStub(channel)
        meter.http_port = running.http_port
        meter.address = f"127.0.0.1:{running.grpc_port}"

        async def heard(message: Delivered) -> None:
            assert isinstance(message.event, CreditChanged)
            meter.credit.append(message.event)

        watching = asyncio.create_task(buses[3].watch((CREDIT,), heard))
        stack.callback(watching.cancel)
        yield meter
        assert life.failure is None, life.failure


async def _stop_once(life: Lifecycle) -> None:
    if not life.draining:
        await life.stop()
