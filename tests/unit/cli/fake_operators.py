"""A meter and an optimizer that answer by script over real gRPC, for commands that ask them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from services.mesh.errors import UnknownModel, UnknownRequest
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.lifecycle import Lifecycle
from services.mesh.rpc import require_mesh_secret
from services.mesh.telemetry import start_telemetry
from tests.unit.client.fake_router import FakeRouter
from tokenworks.v1 import (
    events_pb2,
    inference_pb2_grpc,
    insight_pb2_grpc,
    metering_pb2_grpc,
    planning_pb2_grpc,
)
from tokenworks.v1 import insight_pb2 as insight
from tokenworks.v1 import metering_pb2 as metering
from tokenworks.v1 import planning_pb2 as planning

SECRET = "mesh-secret"


@dataclass
class FakeMeter(metering_pb2_grpc.MeterServicer):
    """Holds rows by (tenant, workload, accelerator, slo_class) and groups them as asked; bills by request."""

    rows: list[metering.UsageRow] = field(default_factory=list)
    bills: dict[str, metering.RequestBill] = field(default_factory=dict)
    budgets: dict[str, int] = field(default_factory=dict)
    states: list[metering.BudgetState] = field(default_factory=list)
    set_budgets: list[metering.SetBudgetRequest] = field(default_factory=list)
    lag_events: list[int] = field(default_factory=list)  # one per answer, then 0
    asked: list[metering.GetUsageRequest] = field(default_factory=list)
    answered: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))  # released by each usage asked

    async def GetUsage(self, request: metering.GetUsageRequest, context: Any) -> metering.GetUsageResponse:
        require_mesh_secret(context, [SECRET])
        self.asked.append(request)
        self.answered.release()
        chosen = [
            row for row in self.rows if all(getattr(row.key, each.field) in each.values for each in request.filters)
        ]
        grouped: dict[tuple[str, ...], metering.UsageRow] = {}
        total = metering.UsageRow()
        for row in chosen:
            key = tuple(getattr(row.key, name) for name in request.group_by)
            if key not in grouped:
                labels = dict(zip(request.group_by, key, strict=True))
                grouped[key] = metering.UsageRow(key=metering.UsageKey(**labels))
            for made in (grouped[key], total):
                for name in row.DESCRIPTOR.fields_by_name:
                    if name != "key":
                        setattr(made, name, getattr(made, name) + getattr(row, name))
        lag_events = self.lag_events.pop(0) if self.lag_events else 0
        return metering.GetUsageResponse(rows=grouped.values(), total=total, lag_events=lag_events)

    async def GetRequest(self, request: metering.GetRequestRequest, context: Any) -> metering.RequestBill:
        require_mesh_secret(context, [SECRET])
        if request.request_id not in self.bills:
            raise UnknownRequest(f"request {request.request_id!r} has no bookings")
        return self.bills[request.request_id]

    async def GetBudget(self, request: metering.GetBudgetRequest, context: Any) -> metering.Budget:
        require_mesh_secret(context, [SECRET])
        return self._budget(request.tenant)

    async def SetBudget(self, request: metering.SetBudgetRequest, context: Any) -> metering.Budget:
        require_mesh_secret(context, [SECRET])
        self.budgets.pop(request.tenant, None)
        self.set_budgets.append(request)
        if not request.unlimited:
            self.budgets[request.tenant] = request.limit or request.limit_nusd
        return self._budget(request.tenant)

    async def ListBudgets(self, request: metering.ListBudgetsRequest, context: Any) -> metering.ListBudgetsResponse:
        require_mesh_secret(context, [SECRET])
        return metering.ListBudgetsResponse(budgets=[each for each in self.states if each.tenant == request.tenant])

    def _budget(self, tenant: str) -> metering.Budget:
        limit_nusd = self.budgets.get(tenant)
        return metering.Budget(
            tenant=tenant,
            limit_nusd=limit_nusd or 0,
            unlimited=limit_nusd is None,
            spent_nusd=7,
            remaining_nusd=(limit_nusd or 7) - 7,
        )


class FakeInsight(insight_pb2_grpc.InsightServicer):
    """A budget that lasts three days and a half, one anomaly, one class whose promises are kept by half."""

    async def GetForecast(self, request: insight.GetForecastRequest, context: Any) -> insight.Forecast:
        require_mesh_secret(context, [SECRET])
        total = insight.ForecastTotal(to_unix_ms=1, expected_nusd=12e9, low_nusd=10e9, high_nusd=14e9)
        return insight.Forecast(
            method="seasonal",
            because="pip install it",
            level=request.level,
            step_hours=1,
            history_steps=48,
            points=[insight.ForecastPoint(from_unix_ms=3_600_000, expected_nusd=1e9)],
            horizon=total,
            budgets=[insight.BudgetOutlook(scope="tenant", unit="nusd", period="once", limit=50 * 10**9, days=3.5)],
        )

    async def ListAnomalies(self, request: insight.ListAnomaliesRequest, context: Any) -> insight.ListAnomaliesResponse:
        require_mesh_secret(context, [SECRET])
        found = events_pb2.SpendAnomalyFound(
            tenant=request.tenant, spent_nusd=900, usual_nusd=100, evidence="much more than usual"
        )
        return insight.ListAnomaliesResponse(found=[found] if request.tenant else [], watched=3, learning=1)

    async def GetPromises(self, request: insight.GetPromisesRequest, context: Any) -> insight.Promises:
        require_mesh_secret(context, [SECRET])
        one = insight.PromiseOutlook(slo_class="batch", finished_requests=4, slo_met_requests=2, attainment=0.5)
        return insight.Promises(classes=[one], total=one)


class FakeOptimizer(planning_pb2_grpc.OptimizerServicer):
    async def GetPlan(self, request: planning.GetPlanRequest, context: Any) -> planning.RoutingPlan:
        require_mesh_secret(context, [SECRET])
        if request.model != "llama-3.1-8b":
            raise UnknownModel(f"there is no plan for {request.model!r}")
        return planning.RoutingPlan(
            model=request.model,
            version=4,
            made_unix_ms=1_700_000_000_000,
            classes=[planning.WorkloadClass(slo_class="batch", prompt_tokens_to=256, demand_rps=2.5)],
            shares=[planning.Share(workload_class=0, pool="nvidia-l4", share=1.0, feasible=True)],
            pools=[planning.PoolPlan(pool="nvidia-l4", accelerator="nvidia-l4", workers=1)],
            status="optimal",
        )


@asynccontextmanager
async def serving(router: FakeRouter | None = None, meter: FakeMeter | None = None) -> AsyncIterator[str]:
    """Serves all of them on one port of 127.0.0.1 and gives the address."""
    telemetry = start_telemetry("fake", "test")
    server = FastGrpcServer(telemetry, Lifecycle("fake"), max_message_bytes=4 << 20)
    server.add(inference_pb2_grpc.add_RouterServicer_to_server, router or FakeRouter(), "tokenworks.v1.Router")
    server.add(metering_pb2_grpc.add_MeterServicer_to_server, meter or FakeMeter(), "tokenworks.v1.Meter")
    server.add(insight_pb2_grpc.add_InsightServicer_to_server, FakeInsight(), "tokenworks.v1.Insight")
    server.add(planning_pb2_grpc.add_OptimizerServicer_to_server, FakeOptimizer(), "tokenworks.v1.Optimizer")
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.drain(0)
        telemetry.shutdown()
