"""A worker without an engine: `python -m bench.datapath.session_backend --port N --nats URL --name NAME`.

In: streams that routers open over `Worker.Session`; `max_tokens` and `seed` (milliseconds per step) of their requests
count. Out: one frame per step with a token of each stream of a pace, as `services/worker` sends them, and on the bus
what routers hear of a worker: heartbeats, and latencies as often as a worker reports them.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

import grpc
import uvloop

from bench.datapath.answers import TOKEN_TEXT
from bench.datapath.http_backend import CONTEXT_TOKENS, MODEL, PROMPT_TOKENS
from bench.datapath.pacing import Due, Steps
from services.mesh.bus import Bus
from services.mesh.clock import SystemClock
from services.mesh.events import LatencyObserved, RequestLatency, StepSample, WorkerHeartbeat
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.lifecycle import Lifecycle
from services.mesh.nats.bus import NatsBus
from services.mesh.settings import NatsSettings
from services.mesh.telemetry import start_telemetry
from services.mesh.timing import StepLoad
from services.worker.core.step_sampler import StepSampler
from tokenworks.v1 import inference_pb2 as wire

_BEAT_S: Final = 0.25
_REPORT_S: Final = 0.05
_FRAMES_AHEAD: Final = 4
_LARGEST_BYTES: Final = 4 << 20
_ACCELERATOR: Final = "nvidia-h100-sxm"
_KV_TOKENS: Final = 1_000_000
_MAX_BATCH: Final = 4096


class _Stream(NamedTuple):
    number: int
    request_id: str
    started_s: float


class Reports:
    """What a worker says of itself on the bus."""

    def __init__(self, bus: Bus, name: str, address: str) -> None:
        self._bus = bus
        self._name = name
        self._address = address
        self._sampler = StepSampler()
        self._steps: list[StepSample] = []
        self._finished: list[RequestLatency] = []
        self._beats = self._made = self._count = 0
        self.running = 0

    def step(self, streams: int, step_s: float) -> None:
        self._count += 1
        self._made += streams
        if self._sampler.wants(StepLoad(0, 0, streams, streams * PROMPT_TOKENS), time.monotonic()):
            self._steps.append(
                StepSample(
                    prefill_tokens=0,
                    decode_sequences=streams,
                    kv_tokens=streams * PROMPT_TOKENS,
                    step_s=step_s,
                    attended_tokens=0,
                )
            )

    def finished(self, stream: _Stream, tokens: int, step_s: float) -> None:
        self._finished.append(
            RequestLatency(
                request_id=stream.request_id,
                slo_class="standard",
                prompt_tokens=PROMPT_TOKENS,
                cached_prompt_tokens=0,
                completion_tokens=tokens,
                queue_s=0.0,
                ttft_s=step_s,
                tpot_s=step_s,
                worst_gap_s=step_s,
                batch=self.running,
                kv_cache_usage=0.0,
            )
        )

    async def beat(self) -> None:
        while True:
            self._beats += 1
            self._bus.publish(self._heartbeat())
            await asyncio.sleep(_BEAT_S)

    async def report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            if self._steps or self._finished:
                steps, self._steps = tuple(self._steps), []
                finished, self._finished = tuple(self._finished), []
                self._bus.publish(
                    LatencyObserved(
                        worker=self._name,
                        pool=_ACCELERATOR,
                        accelerator=_ACCELERATOR,
                        model=MODEL,
                        requests=finished,
                        steps=steps,
                        at_unix_ms=time.time_ns() // 1_000_000,
                    )
                )

    def _heartbeat(self) -> WorkerHeartbeat:
        return WorkerHeartbeat(
            worker=self._name,
            pool=_ACCELERATOR,
            accelerator=_ACCELERATOR,
            engine="bench",
            models=(MODEL,),
            address=self._address,
            epoch=f"{self._name}-{self._address}",
            sequence=self._beats,
            state="ready",
            running=self.running,
            waiting=0,
            waiting_prefill_tokens=0,
            kv_cache_usage=0.0,
            kv_capacity_tokens=_KV_TOKENS,
            context_tokens=CONTEXT_TOKENS,
            max_batch=_MAX_BATCH,
            max_waiting=_MAX_BATCH,
            slowdown=1.0,
            power_w=105.0,
            busy_ns=0,
            generated_tokens=self._made,
            energy_uj=0,
            simulated=True,
            rate_nusd_per_hour=2_690_000_000,
            failed_because="",
            at_unix_ms=time.time_ns() // 1_000_000,
            steps=self._count,
            prefill_chunk_tokens=2048,
        )


class Session:
    """One router's session."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._frames: asyncio.Queue[wire.StepFrame] = asyncio.Queue(_FRAMES_AHEAD)
        self._streams: dict[int, _Stream] = {}
        self._paces: dict[float, Steps[int]] = {}
        self._running: dict[float, asyncio.Task[None]] = {}
        self._new: list[tuple[int, Steps[int]]] = []
        self._starting: asyncio.Task[None] | None = None

    async def serve(self, requests: AsyncIterator[wire.SessionRequest], context: Any) -> None:
        await context.send_initial_metadata(())
        reading = asyncio.create_task(self._read(requests))
        try:
            while True:
                await context.write(await self._frames.get())
        finally:
            reading.cancel()
            for task in self._running.values():
                task.cancel()
            self._reports.running -= len(self._streams)

    async def _read(self, requests: AsyncIterator[wire.SessionRequest]) -> None:
        async for request in requests:
            if request.WhichOneof("action") == "open":
                self._open(request.open)
            elif self._streams.pop(request.cancel.stream, None) is not None:
                self._reports.running -= 1
                for steps in self._paces.values():
                    steps.remove(request.cancel.stream)

    def _open(self, order: wire.OpenStream) -> None:
        step_ms = float(order.request.sampling.seed)
        steps = self._paces.setdefault(step_ms, Steps(step_ms))
        self._streams[order.stream] = _Stream(order.stream, order.request.request_id, time.monotonic())
        self._reports.running += 1
        steps.add(order.stream, order.request.sampling.max_tokens or 16, order.request.resume_from)
        if not self._new:
            self._starting = asyncio.create_task(self._start())
        self._new.append((order.stream, steps))

    async def _start(self) -> None:
        """The first tokens of what was opened in this turn of the loop."""
        new, self._new = self._new, []
        frame = wire.StepFrame()
        for number, steps in new:
            due = steps.first(number)
            if due is not None:
                self._add(frame, due, steps.step_ms)
            if steps and steps.step_ms not in self._running:
                self._running[steps.step_ms] = asyncio.create_task(self._run(steps))
        await self._frames.put(frame)

    async def _run(self, steps: Steps[int]) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while steps:
                await asyncio.sleep(max(0.0, steps.next_step_s(clock()) - clock()))
                frame = wire.StepFrame()
                for due in steps.step():
                    self._add(frame, due, steps.step_ms)
                if frame.chunks:
                    self._reports.step(len(frame.chunks), max(steps.step_ms, 1.0) / 1000)
                    await self._frames.put(frame)
        finally:
            del self._running[steps.step_ms]

    def _add(self, frame: wire.StepFrame, due: Due[int], step_ms: float) -> None:
        stream = self._streams[due.key]
        response = wire.GenerateResponse(
            request_id=stream.request_id,
            first_index=due.at,
            token_ids=(1,),
            text=TOKEN_TEXT,
            token_count=1,
        )
        if due.last:
            tokens = due.at + 1
            usage = wire.Usage(prompt_tokens=PROMPT_TOKENS, completion_tokens=tokens)
            response.finish.CopyFrom(wire.Finish(reason="length", usage=usage))
            del self._streams[due.key]
            self._reports.running -= 1
            self._reports.finished(stream, tokens, max(step_ms, 1.0) / 1000)
        frame.chunks.add(
            stream=due.key,
            response=response.SerializeToString(),
            first_index=due.at,
            token_count=1,
            last=due.last,
        )


async def serve(name: str, port: int, nats_url: str) -> None:
    telemetry = start_telemetry("worker", name)
    bus = NatsBus(NatsSettings(url=nats_url), "worker", name, telemetry, SystemClock())
    await bus.connect()
    address = f"127.0.0.1:{port}"
    reports = Reports(bus, name, address)

    async def session(requests: AsyncIterator[wire.SessionRequest], context: Any) -> None:
        await Session(reports).serve(requests, context)

    handler = grpc.stream_stream_rpc_method_handler(
        session, wire.SessionRequest.FromString, wire.StepFrame.SerializeToString
    )
    server = FastGrpcServer(telemetry, Lifecycle("worker"), max_message_bytes=_LARGEST_BYTES)
    server.add_generic("tokenworks.v1.Worker", {"Session": handler})
    await server.start("127.0.0.1", port)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reports.beat())
            tasks.create_task(reports.report())
    finally:
        await server.drain(0)
        await bus.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--nats", required=True, help="URL of the NATS server")
    options = parser.parse_args()
    uvloop.run(serve(options.name, options.port, options.nats))


if __name__ == "__main__":
    main()
