"""A worker alone, over real gRPC: what its routers and the mesh can rely on."""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.mesh import conventions as names
from services.mesh.bus import Bus
from services.mesh.clock import SystemClock
from services.mesh.errors import OutboxFull
from services.mesh.events import Drain, Event, TokenEntry, TokensGenerated, WorkerState
from services.mesh.placement import LEEWAY_MS, METADATA_KEY, PlacementClaims, PlacementSigner
from services.mesh.pricing import Rates
from services.mesh.rpc import error_of
from services.mesh.settings import WorkerSettings
from services.mesh.subjects import TOKENS
from services.mesh.telemetry import start_telemetry
from services.worker.engine import EngineRequest
from services.worker.engines.simulated import SimulatedEngine
from tests.mesh.local_mesh import DEADLINE_S, MODEL
from tests.mesh.running_worker import Received, Session, Worker, running_worker
from tokenworks.v1 import inference_pb2 as pb

pytestmark = pytest.mark.mesh

SLOW = 0.05  # of the modelled speed: steps last about 120 ms


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    async with running_worker(tmp_path) as worker:
        yield worker


@pytest.fixture
async def session(worker: Worker) -> Session:
    return await worker.session()


def by_request(entries: Sequence[TokenEntry]) -> dict[str, list[TokenEntry]]:
    found: dict[str, list[TokenEntry]] = defaultdict(list)
    for entry in entries:
        found[entry.request_id].append(entry)
    return found


async def test_a_stream_ends_with_its_usage_and_this_workers_segment(worker: Worker, session: Session) -> None:
    received = await session.answer("r-1", max_tokens=20, ignore_eos=True)
    assert len(received.token_ids) == 20
    assert received.text.startswith(("The ", "A", "E", "O", "T", "N", "S"))
    finish = received.finish
    assert finish is not None
    assert (finish.reason, finish.usage.completion_tokens, finish.price_nusd) == ("length", 20, 0)
    assert finish.usage.prompt_tokens > 0
    assert list(finish.segments) == [pb.Segment(worker="h100-0", accelerator="nvidia-h100-sxm", from_index=0, count=20)]


async def test_many_streams_are_contiguous_and_accounted_for_to_the_last_token(worker: Worker) -> None:
    routers = [await worker.session(f"router-{index}") for index in range(3)]
    opened = {
        f"r-{index}": await routers[index % 3].open(f"r-{index}", max_tokens=5 + index % 40, ignore_eos=True)
        for index in range(300)
    }
    received = {request_id: await stream.end() for request_id, (_, stream) in opened.items()}
    await worker.reported(*received)
    entries = by_request(worker.entries)
    for request_id, stream in received.items():
        assert len(stream.token_ids) == 5 + int(request_id[2:]) % 40
        mine = entries[request_id]
        assert [entry.from_index for entry in mine] == [sum(e.count for e in mine[:at]) for at in range(len(mine))]
        assert sum(entry.count for entry in mine) == len(stream.token_ids)
        assert [entry.last for entry in mine] == [False] * (len(mine) - 1) + [True]
        assert {entry.tenant for entry in mine} == {"acme"}
    stats = worker.running.engine.stats()
    assert sum(entry.device_ns for entry in worker.entries) == stats.busy_ns
    assert sum(entry.count for entry in worker.entries) == worker.running.streams.generated_tokens
    assert all(len(event.entries) <= 256 for event in worker.of_kind(TokensGenerated))


async def test_one_frame_carries_a_steps_tokens_of_all_streams(worker: Worker, session: Session) -> None:
    await worker.break_engine(pb.InjectFaultRequest.KIND_SLOW, 50.0)
    opened = [await session.open(f"r-{index}", max_tokens=10, ignore_eos=True) for index in range(50)]
    for _, stream in opened:
        await stream.end()
    assert session.frames <= worker.running.engine.stats().steps
    assert session.frames < sum(stream.chunks for _, stream in opened) / 5


async def test_a_resumed_stream_is_the_undisturbed_one(session: Session) -> None:
    whole = await session.answer("r-1", max_tokens=60, seed=5, ignore_eos=True)
    rest = await session.answer("r-2", max_tokens=60, seed=5, ignore_eos=True, resume_from=25)
    assert rest.token_ids == whole.token_ids[25:]
    assert rest.finish is not None
    assert rest.finish.usage.completion_tokens == 60
    assert rest.finish.segments[0].from_index == 25


async def test_a_cancelled_stream_frees_its_slot_within_one_step(tmp_path: Path) -> None:
    async with running_worker(tmp_path, max_batch=1, speed=SLOW) as worker:
        session = await worker.session()
        number, running = await session.open("r-1", max_tokens=1000, ignore_eos=True)
        _, waiting = await session.open("r-2", max_tokens=1, ignore_eos=True)
        await worker.until(lambda: len(running.token_ids) > 0, "the first runs")
        steps = worker.running.engine.stats().steps
        await session.cancel(number, "budget")
        await waiting.end()
        await running.end()
        assert running.finish is not None
        assert running.finish.reason == "budget"
        # One step was under way, one more may have begun before the cancellation came; then the second has its own.
        assert worker.running.engine.stats().steps <= steps + 3
        await worker.reported("r-1", "r-2")


async def test_a_stream_cancelled_before_its_first_token_has_a_last_entry(tmp_path: Path) -> None:
    async with running_worker(tmp_path, max_batch=1, speed=SLOW) as worker:
        session = await worker.session()
        first, _ = await session.open("r-1", max_tokens=1000, ignore_eos=True)
        number, waiting = await session.open("r-2", max_tokens=10)
        await worker.until(lambda: worker.running.engine.stats().waiting == 1, "the second waits")
        await session.cancel(number)
        await session.cancel(first)
        await waiting.end()
        await worker.reported("r-1", "r-2")
        (entry,) = by_request(worker.entries)["r-2"]
        assert (entry.count, entry.last, entry.device_ns) == (0, True, 0)
        assert entry.prompt_tokens > 0


async def test_a_broken_session_cancels_its_streams_at_once_and_leaves_others_alone(tmp_path: Path) -> None:
    async with running_worker(tmp_path, speed=1.0) as worker:
        dying, living = await worker.session("router-0"), await worker.session("router-1")
        for index in range(20):
            await dying.open(f"dying-{index}", max_tokens=5000, ignore_eos=True)
        _, stream = await living.open("living", max_tokens=40, ignore_eos=True)
        await worker.until(lambda: worker.running.engine.stats().running == 21, "all run")
        await dying.hang_up()
        await worker.until(lambda: worker.running.engine.stats().running <= 1, "the dead router's streams are gone")
        assert len((await stream.end()).token_ids) == 40
        await worker.reported("living", *(f"dying-{index}" for index in range(20)))
        again = await worker.session("router-0")
        assert len((await again.answer("dying-3", max_tokens=3, ignore_eos=True)).token_ids) == 3


async def test_what_runs_or_waits_past_its_callers_deadline_is_ended_by_name_and_counted(tmp_path: Path) -> None:
    async with running_worker(tmp_path, max_batch=1, speed=SLOW) as worker:
        session = await worker.session()
        _, running = await session.open("runs", max_tokens=5000, ignore_eos=True, deadline_ms=1500)
        await worker.until(lambda: len(running.token_ids) > 0, "the first runs")
        _, waiting = await session.open("waits", max_tokens=10, deadline_ms=200)
        for stream in (running, waiting):
            await stream.end()
            assert stream.error is not None
            assert stream.error.reason == "DeadlinePassed"
        await worker.reported("runs", "waits")
        found = by_request(worker.entries)
        assert sum(entry.count for entry in found["runs"]) >= len(running.token_ids) > 0
        assert sum(entry.count for entry in found["waits"]) == 0
        assert len((await session.answer("in time", max_tokens=3, ignore_eos=True, deadline_ms=60_000)).token_ids) == 3


async def test_a_stream_whose_engine_has_ended_and_that_waits_for_credit_ends_with_its_router(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as worker:
        session = await worker.session()
        _, stream = await session.open(
            "r-1", max_tokens=40, ignore_eos=True, funds=pb.Funds(prompt_tokens=100, completion_tokens=10)
        )
        stats = worker.running.engine.stats
        await worker.until(lambda: bool(stream.token_ids) and not stats().running, "the engine has made all of it")
        await session.hang_up()
        await worker.reported("r-1")
        assert sum(entry.count for entry in by_request(worker.entries)["r-1"]) == len(stream.token_ids) <= 10


async def test_a_router_that_asks_for_no_more_gets_the_rest_of_what_it_asked_for(session: Session) -> None:
    _, stream = await session.open("r-1", max_tokens=50, ignore_eos=True)
    await session.ask_no_more()
    assert len((await stream.end()).token_ids) == 50
    async with asyncio.timeout(DEADLINE_S):
        await session.over.wait()


async def test_a_router_that_does_not_read_gets_larger_chunks_later(worker: Worker) -> None:
    call = worker.stub.Session(metadata=(("x-tokenworks-router", "lazy"),))
    await call.wait_for_connection()
    # Enough text to fill what the transport holds for a reader that does not read.
    for number in range(1, 101):
        sampling = pb.Sampling(max_tokens=1000, ignore_eos=True)
        request = pb.GenerateRequest(request_id=f"r-{number}", model=MODEL, text="hello", sampling=sampling)
        await call.write(pb.SessionRequest(open=pb.OpenStream(stream=number, request=request)))
    await worker.reported(*(f"r-{number}" for number in range(1, 101)))
    received: dict[int, Received] = defaultdict(Received)
    while not (len(received) == 100 and all(stream.ended.is_set() for stream in received.values())):
        async with asyncio.timeout(DEADLINE_S):
            frame = await call.read()
        for chunk in frame.chunks:
            received[chunk.stream].add(chunk)
    assert all(len(stream.token_ids) == 1000 for stream in received.values())
    assert sum(stream.chunks for stream in received.values()) < 100 * 1000
    call.cancel()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "parrot"}, "UnknownModel"),
        ({"max_tokens": 0}, "InvalidSampling"),
        ({"text": "word " * 9000}, "PromptTooLong"),
        ({"request_id": ""}, "InvalidRequest"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name_and_not_counted(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    async with running_worker(tmp_path, context_tokens=8192) as worker:
        session = await worker.session()
        refused = await session.answer(changes.pop("request_id", "r-1"), **changes)
        assert refused.error is not None
        assert refused.error.reason == reason
        assert len((await session.answer("r-2", max_tokens=3, ignore_eos=True)).token_ids) == 3
        await worker.reported("r-2")
        assert {entry.request_id for entry in worker.entries} == {"r-2"}


async def test_a_request_that_runs_already_is_refused(tmp_path: Path) -> None:
    async with running_worker(tmp_path, speed=SLOW) as worker:
        session = await worker.session()
        await session.open("r-1", max_tokens=1000)
        refused = await session.answer("r-1", max_tokens=10)
        assert refused.error is not None
        assert refused.error.reason == "DuplicateRequest"


async def test_a_request_that_is_gone_on_with_replaces_what_runs_of_it_and_only_its_own_tenants(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as worker:
        session, another = await worker.session(), await worker.session()
        whole = await session.answer("r-0", max_tokens=40, seed=5, ignore_eos=True)
        await worker.break_engine(pb.InjectFaultRequest.KIND_HANG)
        left = asyncio.create_task(session.answer("r-1", max_tokens=40, seed=5, ignore_eos=True))
        await worker.until(lambda: len(worker.running.streams) == 1, "it runs")
        others = await another.answer("r-1", max_tokens=40, seed=5, ignore_eos=True, resume_from=25, tenant="other")
        assert others.error is not None
        assert others.error.reason == "DuplicateRequest"
        rest = asyncio.create_task(another.answer("r-1", max_tokens=40, seed=5, ignore_eos=True, resume_from=25))
        replaced = await left
        assert replaced.error is not None
        assert "goes on in another call" in replaced.error.message
        await worker.break_engine(pb.InjectFaultRequest.KIND_NONE)
        assert (await rest).token_ids == whole.token_ids[25:]


async def test_an_overfull_queue_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    async with running_worker(tmp_path, max_batch=1, max_waiting=2, speed=SLOW) as worker:
        session = await worker.session()
        await session.open("r-0", max_tokens=1000)
        await worker.until(lambda: worker.running.engine.stats().running == 1, "the first runs")
        for index in range(1, 3):
            await session.open(f"r-{index}", max_tokens=1000)
        refused = await session.answer("r-3")
        assert refused.error is not None
        assert (refused.error.reason, refused.error.retry_after_ms) == ("QueueFull", 1000)


class FullBus:
    """A bus that takes nothing while `full`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.full = False

    @property
    def outbox_free(self) -> float:
        return 0.0 if self.full else self._bus.outbox_free

    def publish(self, event: Event, *, traceparent: str = "") -> Any:
        if self.full and isinstance(event, TokensGenerated):
            raise OutboxFull("it is full")
        return self._bus.publish(event, traceparent=traceparent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


async def test_while_the_bus_takes_no_more_no_request_is_taken_and_nothing_is_lost(tmp_path: Path) -> None:
    buses: list[FullBus] = []

    def full(bus: Bus) -> Any:
        buses.append(FullBus(bus))
        return buses[0]

    async with running_worker(tmp_path, through=full, speed=1.0) as worker:
        session = await worker.session()
        _, running = await session.open("r-1", max_tokens=50, ignore_eos=True)
        await worker.until(lambda: len(running.token_ids) > 0, "it runs")
        buses[0].full = True
        refused = await session.answer("r-2")
        assert refused.error is not None
        assert refused.error.reason == "OutboxFull"
        await running.end()
        assert not any(entry.last for entry in worker.entries)
        buses[0].full = False
        await worker.reported("r-1")
        assert sum(entry.count for entry in worker.entries) == 50
        assert sum(entry.device_ns for entry in worker.entries) == worker.running.engine.stats().busy_ns


async def test_a_slowed_worker_shows_it_in_its_samples_and_a_hanging_one_in_its_steps(worker: Worker) -> None:
    session = await worker.session()
    await session.answer("r-0", max_tokens=200, ignore_eos=True)
    await worker.until(lambda: bool(worker.steps), "a step was told of")
    healthy = max(step.step_s for step in worker.steps)
    assert await worker.break_engine(pb.InjectFaultRequest.KIND_SLOW, 100.0) == "steps take 100 times as long"
    number, _ = await session.open("r-1", max_tokens=10_000, ignore_eos=True)
    await worker.until(lambda: any(step.step_s > 5 * healthy for step in worker.steps), "the samples are slow")
    await worker.until(lambda: worker.beat.slowdown > 1.0, "the heartbeat says so")
    assert await worker.break_engine(pb.InjectFaultRequest.KIND_HANG) == "hanging"
    beats = len(worker.of_kind(type(worker.beat)))
    steps = worker.running.engine.stats().steps
    await worker.until(lambda: len(worker.of_kind(type(worker.beat))) > beats + 1, "it still beats")
    assert worker.beat.running == 1
    assert worker.beat.steps <= steps + 1
    assert await worker.break_engine(pb.InjectFaultRequest.KIND_NONE) == "healthy"
    await worker.until(lambda: worker.beat.steps > steps + 1, "it goes on")
    await session.cancel(number)


async def test_faults_exist_only_where_the_settings_allow_them(tmp_path: Path) -> None:
    async with running_worker(tmp_path, faults=False) as worker:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.break_engine(pb.InjectFaultRequest.KIND_SLOW, 2.0)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(("kind", "factor"), [(0, 1.0), (2, 0.0), (2, -1.0), (2, float("nan"))])
async def test_a_fault_that_makes_no_sense_is_refused(worker: Worker, kind: int, factor: float) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker.break_engine(kind, factor)
    assert error_of(caught.value).reason == "InvalidRequest"


async def test_heartbeats_tell_what_the_worker_is_and_does(worker: Worker, session: Session) -> None:
    await worker.until(lambda: worker.beat.state == WorkerState.READY, "it is ready")
    await session.answer("r-1", max_tokens=20, ignore_eos=True)
    await worker.until(lambda: worker.beat.generated_tokens == 20, "the heartbeat has the tokens")
    beat = worker.beat
    assert (beat.worker, beat.pool, beat.accelerator) == ("h100-0", "nvidia-h100-sxm", "nvidia-h100-sxm")
    assert beat.address == f"127.0.0.1:{worker.running.grpc_port}"
    assert (beat.models, beat.simulated, beat.engine) == ((MODEL,), True, "simulated")
    assert (beat.max_batch, beat.max_waiting, beat.context_tokens) == (256, 1024, 131_072)
    assert beat.rate_nusd_per_hour == 2_690_000_000
    assert beat.busy_ns == worker.running.engine.stats().busy_ns > 0
    assert (beat.running, beat.waiting, beat.kv_cache_usage) == (0, 0, 0.0)
    sequences = [each.sequence for each in worker.of_kind(type(beat))]
    assert sequences == list(range(1, len(sequences) + 1))


async def test_latencies_are_told_of_every_request_that_made_a_token(worker: Worker, session: Session) -> None:
    for index in range(5):
        await session.answer(f"r-{index}", max_tokens=10, ignore_eos=True)
    await worker.until(lambda: len(worker.latencies) == 5, "all are told of")
    for latency in worker.latencies:
        assert latency.completion_tokens == 10
        assert latency.ttft_s > 0
        assert 0 < latency.tpot_s <= latency.worst_gap_s
        assert latency.batch >= 1
    assert all(step.step_s > 0 for step in worker.steps)


async def test_a_worker_says_what_it_is(worker: Worker) -> None:
    described = await worker.stub.Describe(pb.DescribeRequest(), timeout=DEADLINE_S)
    assert (described.worker, described.vendor, described.engine) == ("h100-0", "NVIDIA", "simulated")
    assert described.kv_capacity_tokens > described.context_tokens


async def test_without_the_meshs_secret_nobody_gets_in(tmp_path: Path) -> None:
    async with running_worker(tmp_path, secret="hush") as worker:
        with pytest.raises(grpc.aio.AioRpcError) as described:
            await worker.stub.Describe(pb.DescribeRequest(), timeout=DEADLINE_S)
        call = worker.stub.Session(metadata=(("x-tokenworks-mesh", "guess"),))
        with pytest.raises(grpc.aio.AioRpcError) as opened:
            await call.read()
        codes = {caught.value.code() for caught in (described, opened)}
        assert codes == {grpc.StatusCode.UNAUTHENTICATED}
        known = await worker.session(secret="hush")
        assert len((await known.answer("r-1", max_tokens=2, ignore_eos=True)).token_ids) == 2


def placement(at: Worker, **changes: Any) -> str:
    claims = {
        "id": secrets.token_hex(8),
        "request_id": "r-1",
        "router": "router-0",
        "worker": "h100-0",
        "epoch": at.beat.epoch,
        "tenant": "umbra",
        "model": MODEL,
        "slo_class": "interactive",
        "workload": "support",
        "plan": "",
        "price_book": "list@1",
        "rates": Rates(50_000_000, 25_000_000, 100_000_000),
        "admitted_unix_ms": SystemClock().unix_ms(),
        "resume_from": 0,
        "ttft_promise_s": 2.0,
        "ttft_promise_s_per_prompt_token": 0.001,
        "tpot_promise_s": 0.1,
        "priority": 1,
        "funded_tokens": 12,
        "prompt_tokens": 3,
        "expires_unix_ms": SystemClock().unix_ms() + 10_000,
        **changes,
    }
    return PlacementSigner(["hush"]).sign(PlacementClaims(**claims))


async def test_a_client_with_a_placement_streams_what_is_funded_and_once(tmp_path: Path) -> None:
    async with running_worker(tmp_path, secret="hush") as worker:
        request = pb.GenerateRequest(text="hello", sampling=pb.Sampling(max_tokens=500, ignore_eos=True))
        metadata = ((METADATA_KEY, placement(worker)),)
        received = Received()
        async for response in worker.stub.Generate(request, metadata=metadata, timeout=DEADLINE_S):
            assert response.first_index == len(received.token_ids)
            received.token_ids += response.token_ids
        assert len(received.token_ids) == 12
        assert (response.request_id, response.finish.reason) == ("r-1", "length")
        await worker.reported("r-1")
        assert {(entry.tenant, entry.slo_class) for entry in worker.entries} == {("umbra", "interactive")}
        for again in (metadata, ((METADATA_KEY, placement(worker, worker="other")),), ()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await worker.stub.Generate(request, metadata=again, timeout=DEADLINE_S).read()
            assert error_of(caught.value).reason == "PlacementRefused"


async def test_a_placement_s_deadline_holds_whatever_its_client_says(tmp_path: Path) -> None:
    async with running_worker(tmp_path, secret="hush", speed=1.0) as worker:
        request = pb.GenerateRequest(text="hello", sampling=pb.Sampling(ignore_eos=True))
        for soon_ms in (1000, -1):
            token = placement(
                worker,
                request_id=f"r{soon_ms}",
                funded_tokens=100_000,
                deadline_unix_ms=SystemClock().unix_ms() - LEEWAY_MS + soon_ms,
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in worker.stub.Generate(request, metadata=((METADATA_KEY, token),)):
                    pass
            assert error_of(caught.value).reason == "DeadlinePassed"
        await worker.until(lambda: worker.running.engine.stats().running == 0, "the engine has it no more")


async def test_where_the_mesh_has_no_secret_no_placement_is_taken(worker: Worker) -> None:
    metadata = ((METADATA_KEY, placement(worker)),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker.stub.Generate(pb.GenerateRequest(text="hello"), metadata=metadata, timeout=DEADLINE_S).read()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "mesh.secret" in (caught.value.details() or "")


async def test_a_client_that_hangs_up_ends_its_stream(tmp_path: Path) -> None:
    async with running_worker(tmp_path, secret="hush", speed=1.0) as worker:
        request = pb.GenerateRequest(text="hello", sampling=pb.Sampling(ignore_eos=True))
        metadata = ((METADATA_KEY, placement(worker, funded_tokens=100_000)),)
        call = worker.stub.Generate(request, metadata=metadata, timeout=DEADLINE_S)
        await call.read()
        call.cancel()
        await worker.until(lambda: worker.running.engine.stats().running == 0, "its slot is free")
        await worker.reported("r-1")


async def test_draining_lets_streams_finish_takes_no_more_and_reports_everything(tmp_path: Path) -> None:
    async with running_worker(tmp_path, speed=1.0) as worker:
        session = await worker.session()
        _, running = await session.open("r-1", max_tokens=30, ignore_eos=True)
        await worker.until(lambda: len(running.token_ids) > 0, "it runs")
        stopping = asyncio.create_task(worker.life.stop())
        await worker.until(lambda: worker.beat.state == WorkerState.DRAINING, "it drains")
        refused = await session.answer("r-2")
        assert refused.error is not None
        assert refused.error.reason == "NoWorker"
        assert len((await running.end()).token_ids) == 30
        await stopping
        await worker.until(session.over.is_set, "the session ended")
        await worker.reported("r-1")
        assert sum(entry.count for entry in worker.entries) == 30
        assert sum(entry.device_ns for entry in worker.entries) == worker.running.engine.stats().busy_ns


async def test_what_does_not_finish_in_the_grace_period_is_handed_back(tmp_path: Path) -> None:
    async with running_worker(tmp_path, speed=1.0, grace_s=0.1) as worker:
        session = await worker.session()
        _, running = await session.open("r-1", max_tokens=100_000, ignore_eos=True)
        await worker.until(lambda: len(running.token_ids) > 0, "it runs")
        await worker.life.stop()
        await running.end()
        assert running.error is not None
        assert running.error.reason == "WorkerLost"
        await worker.reported("r-1")
        made = sum(entry.count for entry in worker.entries)
        assert made >= len(running.token_ids)
        assert sum(entry.device_ns for entry in worker.entries) == worker.running.engine.stats().busy_ns


async def test_a_hanging_worker_can_be_drained_and_reports_what_it_made(tmp_path: Path) -> None:
    async with running_worker(tmp_path, speed=1.0, grace_s=0.1) as worker:
        session = await worker.session()
        _, running = await session.open("r-1", max_tokens=100_000, ignore_eos=True)
        await worker.until(lambda: len(running.token_ids) > 0, "it runs")
        await worker.break_engine(pb.InjectFaultRequest.KIND_HANG)
        await worker.life.stop()
        await running.end()
        assert running.error is not None
        assert running.error.reason == "WorkerLost"
        await worker.reported("r-1")


async def test_a_worker_that_is_told_to_drain_ends_its_process(worker: Worker) -> None:
    session = await worker.session()
    _, running = await session.open("r-1", max_tokens=500, ignore_eos=True)
    await worker.until(lambda: bool(running.token_ids), "it runs")
    assert worker.life.ready
    answered = await worker.bus.request_control("h100-0", Drain(grace_ms=5000), DEADLINE_S)
    assert answered.accepted
    await worker.until(lambda: not worker.life.ready, "it says that it is not ready, while the stream runs")
    await running.end()
    async with asyncio.timeout(DEADLINE_S):
        await worker.life.wait_until_ending()
    await worker.until(lambda: worker.beat.state == WorkerState.DRAINING, "the heartbeat says so")


class BrokenEngine(SimulatedEngine):
    """An engine that raises what no engine should."""

    async def submit(self, request: EngineRequest) -> None:
        raise ZeroDivisionError(request.request_id)


async def test_a_defect_of_the_engine_ends_the_session_but_not_the_worker(tmp_path: Path) -> None:
    async with running_worker(tmp_path, make_engine=lambda: BrokenEngine(WorkerSettings(), SystemClock())) as worker:
        session = await worker.session()
        await session.open("r-1")
        async with asyncio.timeout(DEADLINE_S):
            await session.over.wait()
        assert (await worker.stub.Describe(pb.DescribeRequest(), timeout=DEADLINE_S)).worker == "h100-0"
        assert len(worker.running.streams) == 0


async def test_one_span_per_request_under_the_routers_and_one_for_its_messages(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    telemetry = start_telemetry("worker", "h100-0", exporter=exporter)
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with running_worker(tmp_path, telemetry=telemetry) as worker:
        session = await worker.session()
        await session.answer("r-1", max_tokens=20, ignore_eos=True, traceparent=traceparent, plan="m:3")
        refused = await session.answer("r-2", text="", traceparent=traceparent)
        assert refused.error is not None
        await worker.reported("r-1")
        entries = worker.entries
    spans = {span.name: span for span in exporter.get_finished_spans()}
    served, created = spans[names.WORKER_SPAN.format(model=MODEL)], spans[names.create_span(TOKENS.template)]
    assert parent_of(served) == "b7ad6b7169203331"
    assert parent_of(created) == f"{context_of(served):016x}"
    assert {entry.traceparent.split("-")[2] for entry in entries} == {f"{context_of(created):016x}"}
    attributes = dict(served.attributes or {})
    assert attributes[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 20
    assert attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",)
    assert attributes[names.PLAN] == "m:3"
    assert attributes[names.ENGINE_TTFT_S] > 0  # type: ignore[operator]
    links = [link.context.span_id for link in spans[names.publish_span(TOKENS.template)].links]
    assert links == [context_of(created)]


def context_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"
