"""The mesh's services as the command line asks them: meter and optimizer, in the operator's name.

In: an `Access`. Out: answers as they are on the wire. Every call has a deadline; a failure is a `CallError` that says
which service did not answer, where, and what would do.
"""

from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc

from services.cli.access import Access
from services.mesh.rpc import MESH_SECRET, open_channel
from tokenworks.errors import CallError, error_of
from tokenworks.v1 import exports_pb2 as exports
from tokenworks.v1 import exports_pb2_grpc, insight_pb2_grpc, metering_pb2_grpc, planning_pb2_grpc, pricing_pb2_grpc
from tokenworks.v1 import insight_pb2 as insight
from tokenworks.v1 import metering_pb2 as metering
from tokenworks.v1 import planning_pb2 as planning
from tokenworks.v1 import pricing_pb2 as pricing

DEADLINE_S: Final = 10.0
FORECAST_S: Final = 60.0  # it is fitted anew, in a queue of its own
RERATE_S: Final = 600.0  # it goes through all requests
EXPORT_S: Final = 6 * 3600.0  # of a whole stream
_Answer = TypeVar("_Answer")


class Peers:
    """Meter and optimizer. Use `async with`; a channel opens at the first call to its service."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._metadata = ((MESH_SECRET, access.secret),) if access.secret else ()
        self._channels = {name: open_channel(getattr(access, name)) for name in ("meter", "optimizer")}
        self._meter: Any = metering_pb2_grpc.MeterStub(self._channels["meter"])  # type: ignore[no-untyped-call]  # generated
        self._pricing: Any = pricing_pb2_grpc.PricingStub(self._channels["meter"])  # type: ignore[no-untyped-call]  # generated
        self._insight: Any = insight_pb2_grpc.InsightStub(self._channels["meter"])  # type: ignore[no-untyped-call]  # generated
        self._exports: Any = exports_pb2_grpc.ExportsStub(self._channels["meter"])  # type: ignore[no-untyped-call]  # generated
        self._optimizer: Any = planning_pb2_grpc.OptimizerStub(self._channels["optimizer"])  # type: ignore[no-untyped-call]  # generated

    async def usage(self, request: metering.GetUsageRequest) -> metering.GetUsageResponse:
        return await self._ask("meter", self._meter.GetUsage(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def bill(self, request_id: str) -> metering.RequestBill:
        """One request's bill. Raises CallError: `reason` "UnknownRequest" until the meter has booked something."""
        request = metering.GetRequestRequest(request_id=request_id)
        return await self._ask("meter", self._meter.GetRequest(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def budget(self, tenant: str) -> metering.Budget:
        request = metering.GetBudgetRequest(tenant=tenant)
        return await self._ask("meter", self._meter.GetBudget(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def set_budget(self, request: metering.SetBudgetRequest) -> metering.Budget:
        return await self._ask("meter", self._meter.SetBudget(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def budgets(self, tenant: str) -> metering.ListBudgetsResponse:
        """Every budget of a tenant; of all tenants where `tenant` is empty."""
        request = metering.ListBudgetsRequest(tenant=tenant)
        return await self._ask("meter", self._meter.ListBudgets(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def audit(self) -> metering.AuditResponse:
        request = metering.AuditRequest()
        return await self._ask("meter", self._meter.Audit(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def runaways(self, tenant: str) -> metering.ListRunawaysResponse:
        """What runs away; of all tenants where `tenant` is empty."""
        request = metering.ListRunawaysRequest(tenant=tenant)
        return await self._ask("meter", self._meter.ListRunaways(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def lift_runaway(self, request: metering.LiftRunawayRequest) -> metering.ListRunawaysResponse:
        return await self._ask("meter", self._meter.LiftRunaway(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def prices(self) -> pricing.ListPricesResponse:
        request = pricing.ListPricesRequest()
        return await self._ask("meter", self._pricing.ListPrices(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def open_prices(self, request: pricing.OpenPricesRequest) -> pricing.OpenedPrices:
        return await self._ask("meter", self._pricing.OpenPrices(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def rerate(self, request: pricing.RerateRequest) -> pricing.Rerated:
        return await self._ask("meter", self._pricing.Rerate(request, timeout=RERATE_S, metadata=self._metadata))

    async def fleet_bill(self, request: pricing.GetFleetBillRequest) -> pricing.FleetBill:
        return await self._ask("meter", self._pricing.GetFleetBill(request, timeout=RERATE_S, metadata=self._metadata))

    def charges(self, request: exports.StreamChargesRequest) -> AsyncIterator[exports.ChargeBatch]:
        return self._stream(self._exports.StreamCharges(request, timeout=EXPORT_S, metadata=self._metadata))

    def usage_records(self, request: exports.StreamRequest) -> AsyncIterator[exports.UsageBatch]:
        return self._stream(self._exports.StreamUsage(request, timeout=EXPORT_S, metadata=self._metadata))

    def bookings(self, request: exports.StreamRequest) -> AsyncIterator[exports.BookingBatch]:
        return self._stream(self._exports.StreamBookings(request, timeout=EXPORT_S, metadata=self._metadata))

    async def invoice(self, tenant: str, month: str, *, issue: bool = False) -> exports.Invoice:
        """A month's invoice as it was issued, or would be now; with `issue` it is issued where it was not."""
        request = exports.GetInvoiceRequest(tenant=tenant, month=month)
        call = self._exports.IssueInvoice if issue else self._exports.GetInvoice
        return await self._ask("meter", call(request, timeout=RERATE_S, metadata=self._metadata))

    async def invoices(self, tenant: str) -> exports.ListInvoicesResponse:
        """Issued invoices without their lines, the newest first; of all tenants where `tenant` is empty."""
        request = exports.ListInvoicesRequest(tenant=tenant)
        return await self._ask(
            "meter", self._exports.ListInvoices(request, timeout=DEADLINE_S, metadata=self._metadata)
        )

    async def forecast(self, request: insight.GetForecastRequest) -> insight.Forecast:
        return await self._ask("meter", self._insight.GetForecast(request, timeout=FORECAST_S, metadata=self._metadata))

    async def anomalies(self, request: insight.ListAnomaliesRequest) -> insight.ListAnomaliesResponse:
        call = self._insight.ListAnomalies(request, timeout=FORECAST_S, metadata=self._metadata)
        return await self._ask("meter", call)

    async def promises(self, tenant: str) -> insight.Promises:
        """What promises cost this month; of all tenants together where `tenant` is empty."""
        request = insight.GetPromisesRequest(tenant=tenant)
        return await self._ask("meter", self._insight.GetPromises(request, timeout=FORECAST_S, metadata=self._metadata))

    async def plan(self, model: str) -> planning.RoutingPlan:
        request = planning.GetPlanRequest(model=model)
        return await self._ask(
            "optimizer", self._optimizer.GetPlan(request, timeout=DEADLINE_S, metadata=self._metadata)
        )

    async def why(self, model: str, pool: str) -> planning.PoolReason:
        request = planning.WhyRequest(model=model, pool=pool)
        return await self._ask("optimizer", self._optimizer.Why(request, timeout=DEADLINE_S, metadata=self._metadata))

    async def decisions(self, model: str, most: int) -> planning.ListDecisionsResponse:
        request = planning.ListDecisionsRequest(model=model, most=most)
        return await self._ask(
            "optimizer", self._optimizer.ListDecisions(request, timeout=DEADLINE_S, metadata=self._metadata)
        )

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, service: str, call: Awaitable[_Answer]) -> _Answer:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise self._named(service, failure) from failure

    async def _stream(self, call: AsyncIterator[_Answer]) -> AsyncIterator[_Answer]:
        try:
            async for each in call:
                yield each
        except grpc.aio.AioRpcError as failure:
            raise self._named("meter", failure) from failure

    def _named(self, service: str, failure: grpc.aio.AioRpcError) -> CallError:
        error = error_of(failure)
        if error.reason not in ("Unreachable", "RequestTimedOut"):
            return error
        address = getattr(self._access, service)
        return CallError(
            error.reason,
            f"no {service} answers at {address}; start the mesh with `tokenworks up`, or give --{service} host:port",
            code=error.code,
            retry_after_s=error.retry_after_s,
        )
