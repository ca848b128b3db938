"""A worker for the router's tests: real gRPC, a session that answers what the test tells it to, no engine.

Its answer to a request is known in advance: token i has id i and the text `t<i> `. It reports itself on the bus given.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from services.mesh.bus import Bus
from services.mesh.errors import TokenworksError
from services.mesh.events import LatencyObserved, StepSample, WorkerHeartbeat
from tokenworks.v1 import inference_pb2 as wire

MODEL: Final = "llama-3.1-8b"
UNIX_MS: Final = 1_700_000_000_000


def text_of(first: int, count: int) -> str:
    return "".join(f"t{index} " for index in range(first, first + count))


def beat(worker: str, sequence: int, **changes: Any) -> WorkerHeartbeat:
    """A heartbeat of an idle H100 that is ready; `changes` replace fields."""
    return WorkerHeartbeat(
        **{
            "worker": worker,
            "pool": "nvidia-h100-sxm",
            "accelerator": "nvidia-h100-sxm",
            "engine": "simulated",
            "models": (MODEL,),
            "address": "127.0.0.1:1",
            "epoch": "e1",
            "sequence": sequence,
            "state": "ready",
            "running": 0,
            "waiting": 0,
            "waiting_prefill_tokens": 0,
            "kv_cache_usage": 0.0,
            "kv_capacity_tokens": 400_000,
            "context_tokens": 8192,
            "max_batch": 256,
            "max_waiting": 1024,
            "slowdown": 1.0,
            "power_w": 105.0,
            "busy_ns": 0,
            "generated_tokens": 0,
            "energy_uj": 0,
            "simulated": True,
            "rate_nusd_per_hour": 2_690_000_000,
            "failed_because": "",
            "at_unix_ms": UNIX_MS + sequence,
            "steps": sequence,
            "prefill_chunk_tokens": 2048,
            **changes,
        }
    )


@dataclass
class Opened:
    """A stream that a router opened here; `sent` counts its tokens."""

    order: wire.OpenStream
    session: "asyncio.Queue[wire.StepFrame | None]"
    sent: int
    cancelled: str = ""

    @property
    def request_id(self) -> str:
        return self.order.request.request_id

    def tokens(self, count: int, *, first: int | None = None) -> wire.StreamChunk:
        """The next `count` tokens as a chunk."""
        first = self.sent if first is None else first
        self.sent = first + count
        response = wire.GenerateResponse(
            request_id=self.request_id,
            first_index=first,
            token_ids=range(first, first + count),
            text=text_of(first, count),
            token_count=count,
        )
        return wire.StreamChunk(
            stream=self.order.stream,
            response=response.SerializeToString(),
            first_index=first,
            token_count=count,
        )

    def finish(self, reason: str = "length", *, prompt_tokens: int = 7, cached: int = 0) -> wire.StreamChunk:
        """The last chunk, without a token."""
        usage = wire.Usage(prompt_tokens=prompt_tokens, cached_prompt_tokens=cached, completion_tokens=self.sent)
        response = wire.GenerateResponse(
            request_id=self.request_id, first_index=self.sent, finish=wire.Finish(reason=reason, usage=usage)
        )
        return wire.StreamChunk(
            stream=self.order.stream, response=response.SerializeToString(), first_index=self.sent, last=True
        )

    def error(self, error: TokenworksError) -> wire.StreamChunk:
        return wire.StreamChunk(
            stream=self.order.stream,
            first_index=self.sent,
            last=True,
            error=wire.StreamError(
                reason=error.reason, message=str(error), retry_after_ms=int((error.retry_after_s or 0) * 1000)
            ),
        )

    def send(self, *chunks: wire.StreamChunk) -> None:
        self.session.put_nowait(wire.StepFrame(chunks=chunks))


Behaviour = Callable[[Opened], None]


def answer_at_once(opened: Opened) -> None:
    """All tokens in one frame per token, then the end."""
    most = opened.order.request.sampling.max_tokens or 4
    while opened.sent < most:
        opened.send(opened.tokens(1))
    opened.send(opened.finish())


def say_nothing(opened: Opened) -> None:
    """The test sends what it wants by itself."""


def breaking(after: int, how: Behaviour) -> Behaviour:
    """`after` tokens, then what `how` does."""

    def behave(opened: Opened) -> None:
        while opened.sent < after:
            opened.send(opened.tokens(1))
        how(opened)

    return behave


@dataclass(eq=False)
class FakeWorker:
    """Started by `start`; `behaviour` is what it does with each stream that is opened."""

    name: str
    bus: Bus
    behaviour: Behaviour = answer_at_once
    accelerator: str = "nvidia-h100-sxm"
    epoch: str = "e1"
    facts: dict[str, Any] = field(default_factory=dict)
    opened: list[Opened] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    address: str = ""
    _sequence: int = 0
    _server: Any = None
    _sessions: "list[asyncio.Queue[wire.StepFrame | None]]" = field(default_factory=list)

    async def start(self) -> None:
        await self.bus.connect()
        self._server = grpc.aio.server()
        session = grpc.stream_stream_rpc_method_handler(
            self._session, wire.SessionRequest.FromString, wire.StepFrame.SerializeToString
        )
        handlers = grpc.method_handlers_generic_handler("tokenworks.v1.Worker", {"Session": session})
        self._server.add_generic_rpc_handlers((handlers,))
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()
        self.beat()

    async def stop(self) -> None:
        """Dies: every session breaks at once."""
        await self._server.stop(None)
        await self.bus.close()

    def break_sessions(self) -> None:
        """Every session ends, the worker lives on."""
        for session in self._sessions:
            session.put_nowait(None)

    def beat(self, **changes: Any) -> None:
        self._sequence += 1
        self.facts.update(changes)
        defaults = {"accelerator": self.accelerator, "pool": self.accelerator, "epoch": self.epoch}
        self.bus.publish(beat(self.name, self._sequence, **{**defaults, "address": self.address, **self.facts}))

    def observe_step(self, step_s: float) -> None:
        """Reports one decode step of one sequence that took `step_s`."""
        step = StepSample(prefill_tokens=0, decode_sequences=1, kv_tokens=0, step_s=step_s, attended_tokens=0)
        self.bus.publish(
            LatencyObserved(
                worker=self.name,
                pool=self.accelerator,
                accelerator=self.accelerator,
                model=MODEL,
                requests=(),
                steps=(step,),
                at_unix_ms=UNIX_MS,
            )
        )

    async def _session(
        self, requests: AsyncIterator[wire.SessionRequest], context: Any
    ) -> AsyncIterator[wire.StepFrame]:
        self.metadata.append(dict(context.invocation_metadata()))
        await context.send_initial_metadata(())  # at once, as a worker does: the router takes it for the session
        frames: asyncio.Queue[wire.StepFrame | None] = asyncio.Queue()
        self._sessions.append(frames)
        reading = asyncio.create_task(self._read(requests, frames))
        try:
            while (frame := await frames.get()) is not None:
                yield frame
        finally:
            reading.cancel()

    async def _read(
        self, requests: AsyncIterator[wire.SessionRequest], frames: "asyncio.Queue[wire.StepFrame | None]"
    ) -> None:
        here: dict[int, Opened] = {}
        async for request in requests:
            if request.WhichOneof("action") == "open":
                stream = Opened(request.open, frames, request.open.request.resume_from)
                here[request.open.stream] = stream
                self.opened.append(stream)
                self.behaviour(stream)
            elif (cancelled := here.get(request.cancel.stream)) is not None:
                cancelled.cancelled = request.cancel.reason
