"""Direct streams through a real mesh: the router places, the worker delivers, the meter's books agree."""

import asyncio
import signal
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from services.mesh.bus import EventId
from services.mesh.errors import OutboxFull
from services.mesh.events import Event, Outcome, RequestFinished
from services.mesh.nats.bus import NatsBus
from services.mesh.settings import MeshSettings
from services.router.core import open_placements
from services.router.dispatch import Dispatcher
from services.worker import deliveries
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import DEADLINE_S, MODEL, LocalMesh, eventually, simulated
from tests.mesh.worker_process import worker_process
from tokenworks import Client, GenerateError, Generation, pulse
from tokenworks.errors import error_of
from tokenworks.v1 import inference_pb2, inference_pb2_grpc, metering_pb2, metering_pb2_grpc

pytestmark = pytest.mark.mesh

SECRET: Final = "hush"
SETTINGS: Final = MeshSettings(secret=SECRET, drain_grace_s=5.0)


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> LocalMesh:
    return await start_mesh(simulated("h100-0"), simulated("h100-1"), mesh=SETTINGS)


@pytest.fixture
def no_relaying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a request that the router relays: what still streams costs it nothing per token."""

    def relays(*_: object) -> None:
        raise AssertionError("the router relays")

    monkeypatch.setattr(Dispatcher, "admit", relays)


def asked(client: Client, text: str = "river", max_tokens: int = 16, **changes: Any) -> Generation:
    return client.generate(text=text, model=MODEL, max_tokens=max_tokens, ignore_eos=True, **changes)


async def undisturbed(mesh: LocalMesh, text: str, max_tokens: int) -> str:
    """What an answer is when nothing happens to it."""
    return await asked(mesh.client(), text, max_tokens).text()


@pytest.mark.usefixtures("no_relaying")
async def test_direct_streams_take_no_part_of_the_router_and_are_metered_to_the_token(mesh: LocalMesh) -> None:
    client = mesh.client(direct=True)
    streams = [asked(client, f"river {each}", 24) for each in range(60)]
    await asyncio.gather(*[stream.text() for stream in streams])
    results = [stream.result for stream in streams if stream.result is not None]
    total = await mesh.settled(60)
    assert total.delivered_tokens == total.generated_tokens == 60 * 24
    assert total.prompt_tokens == sum(each.prompt_tokens for each in results)
    assert total.price_nusd == sum(each.price_nusd for each in results) > 0
    assert total.requests == total.finished_requests == 60
    assert {each.segments[0].worker for each in results} == {"h100-0", "h100-1"}


async def test_direct_and_relayed_streams_say_and_cost_the_same(mesh: LocalMesh) -> None:
    streams = [asked(mesh.client(direct=each), "river", 40, slo_class="interactive") for each in (False, True)]
    relayed, straight = [await stream.text() for stream in streams]
    assert relayed == straight
    first, second = [stream.result for stream in streams]
    assert first is not None
    assert second is not None
    assert (first.completion_tokens, first.reason) == (second.completion_tokens, second.reason) == (40, "length")
    await mesh.settled(2)
    bills = [await mesh.bill(each.request_id) for each in (first, second)]
    assert [each.price_nusd for each in bills] == [first.price_nusd, second.price_nusd]
    for bill, result in zip(bills, (first, second), strict=True):
        assert (bill.outcome, bill.trace_id, bill.delivered_tokens) == ("length", result.trace_id, 40)
        assert bill.price_book == "list@1"
        assert [each.worker for each in bill.segments] == [each.worker for each in result.segments]


async def test_direct_request_is_explained_and_its_end_is_told(mesh: LocalMesh) -> None:
    client = mesh.client(direct=True)
    stream = asked(client)
    await stream.text()
    assert stream.result is not None

    async def ended() -> bool:
        return (await client.explain(stream.request_id)).outcome == "length"

    await eventually(ended, "the router knows how the stream ended")
    explained = await client.explain(stream.request_id)
    assert explained.picked_worker == stream.result.segments[0].worker
    assert (explained.tenant, explained.trace_id) == ("local", stream.trace_id)
    assert len(mesh.parts["router"].running.direct) == 0


async def test_killed_worker_leaves_no_gap_and_no_token_unbilled(start_mesh: StartMesh) -> None:
    # By its catalogue the L4 is the slower one, so the stream begins at the H100.
    mesh = await start_mesh(simulated("l4-0", "nvidia-l4", speed=10.0), mesh=SETTINGS)
    async with worker_process(mesh, simulated("h100-9")) as process:
        await mesh.wait_for_workers(2)
        stream = asked(mesh.client(direct=True), "river", 120)
        pieces = [await anext(stream) for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        pieces += [piece async for piece in stream]
    whole = asked(mesh.client(), "river", 120)
    assert "".join(piece.text for piece in pieces) == await whole.text()
    assert whole.result is not None
    result = stream.result
    assert result is not None
    assert [each.worker for each in result.segments] == ["h100-9", "l4-0"]
    assert sum(each.count for each in result.segments) == result.completion_tokens == 120
    assert (result.prompt_tokens, result.price_nusd) == (whole.result.prompt_tokens, whole.result.price_nusd)

    async def billed() -> bool:
        bill = await mesh.bill(stream.request_id)
        told = (bill.delivered_tokens, bill.outcome, bill.price_nusd) == (120, "length", result.price_nusd)
        return told and (await mesh.usage()).total.delivered_tokens == 240

    await eventually(billed, "each token is billed once")


async def test_a_client_leaves_a_worker_that_is_frozen_with_its_connections_open(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "LOOK_EVERY_S", 0.1)
    mesh = await start_mesh(simulated("l4-0", "nvidia-l4", speed=10.0), mesh=SETTINGS)
    async with worker_process(mesh, simulated("h100-9")) as process:
        await mesh.wait_for_workers(2)
        stream = asked(mesh.client(direct=True), "river", 400)
        text = (await anext(stream)).text
        process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(2 * DEADLINE_S):
            text += await stream.text()
        assert stream.result is not None
        assert [each.worker for each in stream.result.segments] == ["h100-9", "l4-0"]
        assert text == await undisturbed(mesh, "river", 400)
        process.send_signal(signal.SIGCONT)  # what it made meanwhile is nobody's, and is told

        async def billed() -> bool:
            bill = await mesh.bill(stream.request_id)
            return (bill.delivered_tokens, bill.outcome) == (400, "length") and bill.generated_tokens >= 400

        await eventually(billed, "each token is billed once")


async def test_a_worker_whose_engine_hangs_hands_its_direct_streams_on(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "STILL_S", 0.4)
    mesh = await start_mesh(simulated("h100-0"), simulated("h100-1"), mesh=SETTINGS)
    wanted = await undisturbed(mesh, "river", 150)
    stream = asked(mesh.client(direct=True), "river", 150)
    text = (await anext(stream)).text
    hung = next(each for each in ("h100-0", "h100-1") if len(mesh.parts[each].running.streams))
    await mesh.inject(hung, inference_pb2.InjectFaultRequest.KIND_HANG)
    async with asyncio.timeout(DEADLINE_S):
        text += await stream.text()
    assert text == wanted
    assert stream.result is not None
    assert stream.result.segments[0].worker == hung
    assert len(stream.result.segments) == 2
    await mesh.inject(hung, inference_pb2.InjectFaultRequest.KIND_NONE)

    async def billed() -> bool:
        return (await mesh.bill(stream.request_id)).delivered_tokens == 150

    await eventually(billed, "each token is billed once")


async def test_drained_worker_hands_its_direct_streams_on(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(
        simulated("h100-0"), simulated("h100-1"), mesh=SETTINGS.model_copy(update={"drain_grace_s": 0.1})
    )
    wanted = await undisturbed(mesh, "river", 150)
    stream = asked(mesh.client(direct=True), "river", 150)
    text = (await anext(stream)).text
    serving = next(each for each in ("h100-0", "h100-1") if len(mesh.parts[each].running.streams))
    stopping = asyncio.create_task(mesh.stop_part(serving))
    text += await stream.text()
    await stopping
    assert text == wanted
    assert stream.result is not None
    assert stream.result.segments[0].worker == serving
    assert len(stream.result.segments) == 2

    async def billed() -> bool:  # each leg's end is told by its own worker
        return (await mesh.usage()).total.delivered_tokens == 300

    await eventually(billed, "both legs are booked")
    bill = await mesh.bill(stream.request_id)
    assert (bill.price_nusd, bill.outcome) == (stream.result.price_nusd, "length")


async def test_leaving_early_stops_the_engine_and_bills_what_was_delivered(mesh: LocalMesh) -> None:
    delivered = 0
    async with asked(mesh.client(direct=True), max_tokens=100_000) as stream:
        async for piece in stream:
            delivered += piece.token_count
            if delivered >= 5:
                break
    total = await mesh.settled(1)
    assert delivered <= total.delivered_tokens <= total.generated_tokens < 1_000
    assert (await mesh.bill(stream.request_id)).outcome == "cancelled"

    async def idle() -> bool:
        return not any(mesh.parts[each].running.engine.stats().running for each in ("h100-0", "h100-1"))

    await eventually(idle, "the engine has dropped the sequence")


async def test_router_that_dies_is_not_noticed_by_a_direct_stream(mesh: LocalMesh) -> None:
    stream = asked(mesh.client(direct=True), max_tokens=60)
    await anext(stream)
    await mesh.stop_part("router")
    await stream.text()
    assert stream.result is not None
    assert (stream.result.completion_tokens, stream.attempts) == (60, 1)
    assert (await mesh.settled(1)).delivered_tokens == 60


async def test_what_is_refused_at_the_router_leaves_no_trace(mesh: LocalMesh) -> None:
    client = mesh.client(direct=True)
    for changes, reason in (
        ({"temperature": 3.0}, "InvalidSampling"),
        ({"slo_class": "never"}, "UnknownSloClass"),
        ({"stop": [""]}, "InvalidSampling"),
    ):
        with pytest.raises(GenerateError) as caught:
            await asked(client, **changes).text()
        assert caught.value.reason == reason
    await asked(client).text()
    total = await mesh.settled(1)
    assert (total.requests, total.delivered_tokens) == (1, 16)


async def test_a_client_whose_deadline_no_worker_keeps_gets_no_placement_and_is_told_so(mesh: LocalMesh) -> None:
    stub = inference_pb2_grpc.RouterStub(mesh.channel("router"))
    metadata = (("authorization", f"Bearer {mesh.key}"),)
    request = inference_pb2.GenerateRequest(text="river " * 2000, model=MODEL, deadline_ms=1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Place(request, timeout=DEADLINE_S, metadata=metadata)
    assert error_of(caught.value).reason == "DeadlineUnreachable"
    request.deadline_ms = 60_000
    await stub.Place(request, timeout=DEADLINE_S, metadata=metadata)


async def test_tenant_out_of_credit_gets_no_placement(mesh: LocalMesh) -> None:
    client = mesh.client(direct=True)
    stream = asked(client)
    await stream.text()
    assert stream.result is not None
    await mesh.settled(1)
    await metering_pb2_grpc.MeterStub(mesh.channel("meter")).SetBudget(
        metering_pb2.SetBudgetRequest(tenant="local", limit_nusd=stream.result.price_nusd),
        timeout=DEADLINE_S,
        metadata=mesh.operator,
    )

    async def refused() -> bool:
        try:
            await asked(client).text()
        except GenerateError as error:
            return error.reason == "CreditExhausted"
        return False

    await eventually(refused, "an exhausted tenant is refused")


async def test_request_whose_worker_and_client_are_gone_is_closed_and_what_it_did_not_deliver_is_not_billed(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_placements, "RESUME_WITHIN_S", 0.2)
    mesh = await start_mesh(simulated("l4-0", "nvidia-l4"), mesh=SETTINGS)
    async with worker_process(mesh, simulated("h100-9")) as process:
        await mesh.wait_for_workers(2)
        stream = asked(mesh.client(direct=True), max_tokens=10_000)
        await anext(stream)

        async def reported() -> bool:
            return (await mesh.usage()).total.generated_tokens > 0

        await eventually(reported, "the worker has reported tokens")
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await stream.aclose()

    async def closed() -> bool:
        bill = await mesh.bill(stream.request_id)
        return (bill.outcome, bill.delivered_tokens, bill.price_nusd) == (Outcome.ERROR, 0, 0)

    await eventually(closed, "the router has said the last word")
    assert (await mesh.usage()).total.generated_tokens > 0


async def test_how_far_an_answer_got_whose_client_is_refused_the_rest_is_booked(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(mesh=SETTINGS)
    async with worker_process(mesh, simulated("h100-9")) as process:
        await mesh.wait_for_workers(1)
        stream, taken = asked(mesh.client(direct=True), max_tokens=10_000, max_attempts=2), 0

        async def until_refused() -> None:
            nonlocal taken
            async for piece in stream:
                taken += piece.token_count
                if process.returncode is None:
                    process.send_signal(signal.SIGKILL)
                    await process.wait()

        with pytest.raises(GenerateError):
            await until_refused()

    async def told() -> bool:
        bill = await mesh.bill(stream.request_id)
        return (bill.outcome, bill.delivered_tokens) == (Outcome.ERROR, taken)

    await eventually(told, "the router that refused the rest has told what its client has")


async def test_secret_is_rotated_without_a_request_that_fails(start_mesh: StartMesh, tmp_path: Path) -> None:
    before = MeshSettings(secret="old", previous_secrets=("new",), data_dir=tmp_path, drain_grace_s=5.0)
    after = before.model_copy(update={"secret": "new", "previous_secrets": ("old",)})
    mesh = await start_mesh(mesh=before)
    # A worker that shows and signs with the new one already, under a router that does not.
    await mesh.start_worker(simulated("h100-0"), mesh=after)
    await mesh.wait_for_workers(1)
    for straight in (True, False):
        stream = asked(mesh.client(direct=straight))
        await stream.text()
        assert stream.attempts == 1
    assert (await mesh.settled(2)).delivered_tokens == 32


async def test_mesh_without_a_secret_relays(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(simulated("h100-0"))
    stream = asked(mesh.client(direct=True))
    await stream.text()
    assert (await mesh.settled(1)).delivered_tokens == 16
    assert not mesh.parts["router"].running.direct.possible


async def test_while_ends_of_direct_streams_wait_for_the_bus_no_more_of_them_are_placed(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_placements, "RESUME_WITHIN_S", 0.2)
    mesh = await start_mesh(simulated("l4-0", "nvidia-l4"), mesh=SETTINGS)
    publish, full = NatsBus.publish, True

    def publish_unless_full(bus: NatsBus, event: Event, *, traceparent: str = "") -> EventId:
        if full and isinstance(event, RequestFinished) and event.outcome == Outcome.ERROR:
            raise OutboxFull("the outbox is full")
        return publish(bus, event, traceparent=traceparent)

    monkeypatch.setattr(NatsBus, "publish", publish_unless_full)
    client = mesh.client(direct=True)
    async with worker_process(mesh, simulated("h100-9")) as process:
        await mesh.wait_for_workers(2)
        stream = asked(client, max_tokens=10_000)
        await anext(stream)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await stream.aclose()

    async def refused() -> bool:
        try:
            await asked(client).text()
        except GenerateError as error:
            return error.reason == "OutboxFull"
        return False

    await eventually(refused, "no more direct requests are placed")
    full = False

    async def placed() -> bool:
        return not await refused()

    await eventually(placed, "they are placed again")
    assert (await mesh.settled(1)).finished_requests >= 1
