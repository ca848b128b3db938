"""The Worker service: sessions of routers, streams of clients that hold a placement, and what this worker is.

In: calls. Out: tokens. What a call may do is decided here; the requests themselves live in `streams.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import grpc

from services.mesh.clock import Clock
from services.mesh.errors import PlacementRefused
from services.mesh.placement import METADATA_KEY, PlacementClaims
from services.mesh.rpc import metadata_value, require_mesh_secret
from services.mesh.telemetry import current_traceparent
from services.worker.engine import EngineInfo
from services.worker.engine_life import EngineLife
from services.worker.identity import Identity
from services.worker.outgoing import Outgoing
from services.worker.requests import direct
from services.worker.session import RouterSession
from services.worker.streams import Streams
from tokenworks.v1 import inference_pb2 as pb
from tokenworks.v1 import inference_pb2_grpc as pb_grpc

ROUTER_METADATA: Final = "x-tokenworks-router"
SESSION_METHOD: Final = "/tokenworks.v1.Worker/Session"
_DIRECT: Final = 1  # number of the one stream of a direct call


class Verifier(Protocol):
    """Checks placements; `services.mesh.placement.PlacementVerifier` is one."""

    def verify(self, token: str, now_unix_ms: int) -> PlacementClaims:
        """Raises PlacementRefused: the token is not genuine, not ours, expired or used."""
        ...


class WorkerService(pb_grpc.WorkerServicer):
    """One worker's gRPC face."""

    def __init__(
        self,
        identity: Identity,
        engine: EngineLife,
        streams: Streams,
        clock: Clock,
        *,
        secret: str,
        verifier: Verifier | None,
    ) -> None:
        """`verifier`: None refuses every placement. `secret`: of the mesh; empty lets everyone open sessions."""
        self._identity = identity
        self._engine = engine
        self._streams = streams
        self._clock = clock
        self._secret = secret
        self._verifier = verifier
        self._sessions: set[RouterSession] = set()
        self._no_session = asyncio.Event()
        self._no_session.set()

    async def Session(
        self,
        request_iterator: AsyncIterator[pb.SessionRequest],
        context: grpc.aio.ServicerContext[pb.SessionRequest, pb.StepFrame],
    ) -> None:
        """Raises Unauthenticated: the mesh's secret is missing. InvalidRequest: see `RouterSession`."""
        require_mesh_secret(context, self._secret)
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
            TokenworksError: see `requests.direct` and `Streams.open`; or what ended the stream.
        """
        claims = self._verify(metadata_value(context, METADATA_KEY))
        outgoing = Outgoing()
        order = direct(
            request, claims, current_traceparent(), self._streams.new_sequence(), self._streams.context_tokens
        )
        stream = await self._streams.open(order, outgoing, _DIRECT)
        try:
            while await outgoing.wait():
                for _, chunk in outgoing.take():
                    if chunk.token_count or chunk.finish is not None:
                        await context.write(outgoing.response(chunk))
                    if chunk.error is not None:
                        raise chunk.error
                    if chunk.last:
                        return
        finally:
            self._streams.abandon(stream)

    async def Describe(
        self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.WorkerDescription:
        """Raises Unauthenticated: the mesh's secret is missing."""
        require_mesh_secret(context, self._secret)
        who, engine = self._identity, self._engine
        return pb.WorkerDescription(
            worker=who.worker,
            pool=who.pool,
            accelerator=who.accelerator.key,
            vendor=who.accelerator.vendor,
            rate_nusd_per_hour=who.accelerator.rate_nusd_per_hour,
            epoch=who.epoch,
            failed_because=engine.failed_because,
            restarts=engine.restarts,
            state=engine.state,
            **(_of_engine(engine.info) if engine.info else {"note": "the engine is starting"}),
        )

    async def close_sessions(self) -> None:
        """Ends every session once what waits for its router is sent."""
        for session in self._sessions:
            session.close()
        await self._no_session.wait()

    def _verify(self, token: str) -> PlacementClaims:
        if not token:
            raise PlacementRefused(
                f"the call has no {METADATA_KEY}; ask the router to place the request, or to relay it"
            )
        if self._verifier is None:
            raise PlacementRefused(f"worker {self._identity.worker!r} takes no placements; ask the router to relay")
        return self._verifier.verify(token, self._clock.unix_ms())


def _of_engine(info: EngineInfo) -> dict[str, Any]:
    return {
        "engine": info.engine,
        "simulated": info.simulated,
        "models": info.models,
        "context_tokens": info.context_tokens,
        "max_batch": info.max_batch,
        "kv_capacity_tokens": info.kv_capacity_tokens,
        "note": info.note,
        "features": info.features,
        "tokenizer": info.tokenizer,
    }
