"""The Worker service: sessions of routers, streams of clients that hold a placement, and what this worker is.

In: calls. Out: tokens. What a call may do is decided here; the requests themselves live in `streams.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc

from services.mesh.placement import METADATA_KEY
from services.mesh.rpc import metadata_value, require_mesh_secret
from services.mesh.telemetry import current_traceparent, fresh_traceparent
from services.worker.deliveries import Deliveries
from services.worker.engine import EngineInfo, EngineStats
from services.worker.engine_life import EngineLife
from services.worker.hardware.power_meter import PowerMeter
from services.worker.identity import Identity
from services.worker.session import RouterSession
from services.worker.streams import Streams
from tokenworks.v1 import inference_pb2 as pb
from tokenworks.v1 import inference_pb2_grpc as pb_grpc

ROUTER_METADATA: Final = "x-tokenworks-router"
SESSION_METHOD: Final = "/tokenworks.v1.Worker/Session"


class WorkerService(pb_grpc.WorkerServicer):
    """One worker's gRPC face."""

    def __init__(
        self,
        identity: Identity,
        engine: EngineLife,
        streams: Streams,
        deliveries: Deliveries,
        *,
        power: PowerMeter,
        secrets: Sequence[str],
    ) -> None:
        """`secrets`: of the mesh; none lets everyone open sessions."""
        self._power = power
        self._identity = identity
        self._engine = engine
        self._streams = streams
        self._deliveries = deliveries
        self._secrets = secrets
        self._sessions: set[RouterSession] = set()
        self._no_session = asyncio.Event()
        self._no_session.set()

    async def Session(
        self,
        request_iterator: AsyncIterator[pb.SessionRequest],
        context: grpc.aio.ServicerContext[pb.SessionRequest, pb.StepFrame],
    ) -> None:
        """Raises Unauthenticated: the mesh's secret is missing. InvalidRequest: see `RouterSession`."""
        require_mesh_secret(context, self._secrets)
        session = RouterSession(metadata_value(context, ROUTER_METADATA) or context.peer(), self._streams)
        self._sessions.add(session)
        self._no_session.clear()
        try:
            await session.serve(request_iterator, context)
        finally:
            self._sessions.discard(session)
            if not self._sessions:
                self._no_session.set()

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
    ) -> None:
        """Streams straight to a client.

        Raises:
            PlacementRefused: the call has no placement that this worker accepts.
            TokenworksError: see `Deliveries.open` and `Delivery.take`.
        """
        traceparent = current_traceparent() or fresh_traceparent()
        delivery = await self._deliveries.open(metadata_value(context, METADATA_KEY), request, traceparent)
        try:
            while (message := await delivery.take()) is not None:
                await context.write(message)
                self._deliveries.delivered(delivery, message)
        finally:
            self._deliveries.close(delivery)

    async def Describe(
        self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.WorkerDescription:
        """Raises Unauthenticated: the mesh's secret is missing."""
        require_mesh_secret(context, self._secrets)
        who, engine = self._identity, self._engine
        return pb.WorkerDescription(
            worker=who.worker,
            pool=who.pool,
            accelerator=who.accelerator.key,
            vendor=who.accelerator.vendor,
            rate_nusd_per_hour=who.accelerator.rate_nusd_per_hour,
            detected_by=who.detected_by,
            telemetry=self._power.source,
            epoch=who.epoch,
            failed_because=engine.failed_because,
            restarts=engine.restarts,
            state=engine.state,
            **(_of_engine(engine.info, engine.stats()) if engine.info else {"note": "the engine is starting"}),
        )

    async def close_sessions(self) -> None:
        """Ends every session once what waits for its router is sent."""
        for session in self._sessions:
            session.close()
        await self._no_session.wait()


def _of_engine(info: EngineInfo, stats: EngineStats) -> dict[str, Any]:
    note = info.note
    if stats.complaints:
        note = f"{note}; told {stats.complaints} times what cannot be, last of {stats.complaint}".removeprefix("; ")
    return {
        "engine": info.engine,
        "simulated": info.simulated,
        "models": info.models,
        "context_tokens": info.context_tokens,
        "max_batch": info.max_batch,
        "kv_capacity_tokens": info.kv_capacity_tokens,
        "note": note,
        "features": info.features,
        "tokenizer": info.tokenizer,
    }
