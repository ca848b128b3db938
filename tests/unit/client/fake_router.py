"""A router that answers by script over real gRPC, with the mesh's own server, errors and authentication metadata; and
a worker for the placements it hands out."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from services.mesh.errors import TokenworksError, Unauthenticated, UnknownRequest, Unsupported
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.lifecycle import Lifecycle
from services.mesh.rpc import metadata_value
from services.mesh.telemetry import TRACEPARENT, start_telemetry
from tokenworks.v1 import inference_pb2 as wire
from tokenworks.v1 import inference_pb2_grpc as rpc

KEY = "tw-test"


@dataclass
class Script:
    """Streams `max_tokens` tokens "w0 w1 …" per request, from `resume_from` on; what it saw is kept."""

    requests: list[wire.GenerateRequest] = field(default_factory=list)
    traceparents: list[str] = field(default_factory=list)
    refusals: deque[TokenworksError] = field(default_factory=deque)  # one per call, in order, before the first token
    break_at: dict[int, TokenworksError] = field(default_factory=dict)  # token index -> error instead of it
    skip: set[int] = field(default_factory=set)  # token indexes that are left out
    hold_at: int | None = None  # the token before which streams wait for ever
    price_nusd: int = 1234
    worker: str = "h100-0"
    reached_hold: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))  # released by each request
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    on_finish: Callable[[wire.GenerateRequest, wire.Finish], None] = lambda request, finish: None

    async def stream(self, request: wire.GenerateRequest, context: Any) -> AsyncIterator[wire.GenerateResponse]:
        self.requests.append(request)
        self.arrived.release()
        self.traceparents.append(metadata_value(context, TRACEPARENT))
        if self.refusals:
            raise self.refusals.popleft()
        count = request.sampling.max_tokens
        try:
            for index in range(request.resume_from, count):
                if index in self.break_at:
                    raise self.break_at.pop(index)
                if index == self.hold_at:
                    self.reached_hold.set()
                    await asyncio.Event().wait()
                if index not in self.skip:
                    message = wire.GenerateResponse(
                        request_id=request.request_id,
                        first_index=index,
                        token_ids=[index],
                        text=f"w{index} ",
                        token_count=1,
                    )
                    if request.sampling.HasField("logprobs"):
                        likely = message.logprobs.add(text=f"w{index} ", logprob=-0.5)
                        likely.top.add(text="x ", logprob=-1.5)
                    if request.tools_json:
                        message.tool_calls_json = '[{"index": 0, "function": {"arguments": "{}"}}]'
                    yield message
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finish = wire.Finish(
            reason="length",
            usage=wire.Usage(
                prompt_tokens=len(request.token_ids.ids) or 5, cached_prompt_tokens=2, completion_tokens=count
            ),
            price_nusd=self.price_nusd,
            segments=[
                wire.Segment(
                    worker=self.worker,
                    accelerator="nvidia-h100-sxm",
                    from_index=request.resume_from,
                    count=count - request.resume_from,
                )
            ],
        )
        self.on_finish(request, finish)
        yield wire.GenerateResponse(request_id=request.request_id, first_index=count, finish=finish)


@dataclass
class FakeRouter(Script, rpc.RouterServicer):
    """Relays by its script; hands out `placements` one after the other, the last one again and again."""

    placements: list[wire.Placement] = field(default_factory=list)  # none: this router hands out no placements
    no_places: deque[TokenworksError] = field(default_factory=deque)  # one per Place, in order
    placed: list[wire.GenerateRequest] = field(default_factory=list)
    place_calls: int = 0
    on_place: Callable[[], None] = lambda: None
    frozen: bool = False  # it places nothing before `thaw`
    thaw: asyncio.Event = field(default_factory=asyncio.Event)

    async def Generate(self, request: wire.GenerateRequest, context: Any) -> AsyncIterator[wire.GenerateResponse]:
        self._authenticate(context)
        async for message in self.stream(request, context):
            yield message

    async def Place(self, request: wire.GenerateRequest, context: Any) -> wire.Placement:
        self._authenticate(context)
        self.place_calls += 1
        if self.frozen:
            self.on_place()
            await self._thawed()
        if self.no_places:
            raise self.no_places.popleft()
        if not self.placements:
            raise Unsupported("this router hands out no placements")
        self.placed.append(request)
        self.on_place()
        return self.placements.pop(0) if len(self.placements) > 1 else self.placements[0]

    async def _thawed(self) -> None:
        try:
            await self.thaw.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Explain(self, request: wire.ExplainRequest, context: Any) -> wire.Explanation:
        self._authenticate(context)
        if request.request_id != "known":
            raise UnknownRequest(f"request {request.request_id!r} is not remembered here")
        return wire.Explanation(
            request_id="known",
            tenant="local",
            model="llama-3.1-8b",
            picked_worker="h100-0",
            candidates=[
                wire.Candidate(worker="h100-0", accelerator="nvidia-h100-sxm", feasible=True, score_usd=1e-5),
                wire.Candidate(worker="l4-0", accelerator="nvidia-l4", rejected_because="too slow"),
            ],
        )

    async def ListModels(self, request: wire.ListModelsRequest, context: Any) -> wire.ListModelsResponse:
        self._authenticate(context)
        return wire.ListModelsResponse(models=[wire.Model(name="llama-3.1-8b", workers=6, context_tokens=131072)])

    def _authenticate(self, context: Any) -> None:
        if metadata_value(context, "authorization") != f"Bearer {KEY}":
            raise Unauthenticated("no such key; make one with `tokenworks keys create`")


@dataclass
class FakeWorker(Script, rpc.WorkerServicer):
    """Streams by its script to those who show a placement."""

    tokens: list[str] = field(default_factory=list)  # of the placements shown

    async def Generate(self, request: wire.GenerateRequest, context: Any) -> AsyncIterator[wire.GenerateResponse]:
        self.tokens.append(metadata_value(context, "x-tokenworks-placement"))
        async for message in self.stream(request, context):
            yield message


@asynccontextmanager
async def serving(servicer: FakeRouter | FakeWorker) -> AsyncIterator[str]:
    """Serves on 127.0.0.1 and gives the address."""
    life = Lifecycle("fake")
    telemetry = start_telemetry("fake", "test")
    server = FastGrpcServer(telemetry, life, max_message_bytes=4 << 20)
    if isinstance(servicer, FakeRouter):
        server.add(rpc.add_RouterServicer_to_server, servicer, "tokenworks.v1.Router")
    else:
        server.add(rpc.add_WorkerServicer_to_server, servicer, "tokenworks.v1.Worker")
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.drain(0)
        telemetry.shutdown()


def placement(worker: str, address: str) -> wire.Placement:
    return wire.Placement(worker=worker, accelerator="nvidia-l4", address=address, token=f"for {worker}")
