"""Running streams leave a worker that became much slower, relayed or direct, and hardly a new one goes there."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest

from services.mesh.events import MoveStreams
from services.mesh.nats.bus import NatsBus
from services.mesh.settings import MeshSettings, SloClass, SloSettings
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import DEADLINE_S, MODEL, LocalMesh, eventually, simulated
from tokenworks import Client, Generation
from tokenworks.v1 import inference_pb2

pytestmark = pytest.mark.mesh

SETTINGS: Final = MeshSettings(secret="hush", drain_grace_s=5.0)
# An L4 takes some 60 ms per step: ten times as long breaks the promise, and what a busy machine adds does not.
SLO: Final = SloSettings(
    default="patient", classes={"urgent": SloClass(ttft_s=20, tpot_s=0.3), "patient": SloClass(ttft_s=60, tpot_s=60)}
)
WORKERS: Final = ("l4-0", "l4-1")
TOKENS: Final = 60


def asked(client: Client, text: str, max_tokens: int = TOKENS, **changes: Any) -> Generation:
    return client.generate(text=text, model=MODEL, max_tokens=max_tokens, ignore_eos=True, **changes)


def running(mesh: LocalMesh, worker: str) -> set[str]:
    return set(mesh.parts[worker].running.streams.requests)


async def test_urgent_streams_leave_a_worker_slowed_tenfold_and_hardly_a_new_one_goes_there(
    start_mesh: StartMesh,
) -> None:
    slow, fast = WORKERS
    mesh = await start_mesh(simulated(slow, "nvidia-l4"), mesh=SETTINGS, slo=SLO)
    await mesh.stop_part("optimizer")  # it would soon learn that the only worker of its pool is like that
    clients = {direct: mesh.client(direct=direct) for direct in (True, False)}
    async with AsyncExitStack() as stack:
        # Those that wait without complaint keep the engine stepping.
        patient = [await stack.enter_async_context(asked(clients[True], f"lake {each}", 4000)) for each in range(3)]
        urgent = [asked(clients[each % 2 == 0], f"river {each // 2}", slo_class="urgent") for each in range(8)]
        firsts = await asyncio.gather(*[anext(stream) for stream in (*urgent, *patient)])
        await mesh.inject(slow, inference_pb2.InjectFaultRequest.KIND_SLOW, factor=10.0)
        finishing = asyncio.gather(*[stream.text() for stream in urgent])
        await mesh.start_worker(simulated(fast, "nvidia-l4"))
        await mesh.wait_for_workers(2)
        urgent_ids = {each.request_id for each in urgent}

        async def left() -> bool:
            return not running(mesh, slow) & urgent_ids

        await eventually(left, "every urgent stream has left")
        fresh = [asked(clients[each % 2 == 0], f"new {each}", 1, slo_class="urgent") for each in range(40)]
        await asyncio.gather(*[stream.text() for stream in fresh])
        there = sum(stream.result is not None and stream.result.segments[0].worker == slow for stream in fresh)
        assert there < 0.2 * len(fresh)
        assert running(mesh, slow) == {each.request_id for each in patient}, "who is not late stays"
        texts = [first.text + rest for first, rest in zip(firsts, await finishing, strict=False)]

    assert texts[0::2] == texts[1::2], "direct and relayed say the same"
    results = [stream.result for stream in urgent if stream.result is not None]
    assert [each.completion_tokens for each in results] == len(urgent) * [TOKENS]
    moved = [[one.worker for one in each.segments] == [slow, fast] for each in results]
    assert any(moved[0::2]), "direct ones moved"
    assert any(moved[1::2]), "relayed ones moved"

    async def billed() -> bool:
        bills = [await mesh.bill(each.request_id) for each in results]
        return all(each.delivered_tokens == TOKENS and each.outcome == "length" for each in bills)

    await eventually(billed, "each token is billed once")


async def test_streams_leave_a_pool_that_the_optimizer_has_no_work_for_any_more(start_mesh: StartMesh) -> None:
    dear, cheap = "h100-0", "mi300x-0"
    # Answers of a length that a class is expected to have before any has ended, and that take a while.
    mesh = await start_mesh(simulated(dear, "nvidia-h100-sxm", speed=0.1), mesh=SETTINGS, slo=SLO)
    clients = {direct: mesh.client(direct=direct) for direct in (True, False)}
    streams = [asked(clients[each % 2 == 0], f"river {each // 2}", 400, deadline_s=300) for each in range(6)]
    firsts = await asyncio.gather(*[anext(stream) for stream in streams])
    fleet = mesh.parts["router"].running.fleet

    async def planned() -> bool:
        plan = fleet.plans.get(MODEL)
        return plan is not None and plan.class_of("patient", 5, 400) is not None

    await eventually(planned, "a plan has their class where they run, for want of another pool")
    await mesh.start_worker(simulated(cheap, "amd-mi300x"))
    texts = [first.text + await each.text() for first, each in zip(firsts, streams, strict=True)]
    assert texts[0::2] == texts[1::2], "direct and relayed say the same"
    results = [stream.result for stream in streams if stream.result is not None]
    assert [each.completion_tokens for each in results] == len(streams) * [400]
    made_by = [[one.worker for one in each.segments] for each in results]
    assert [dear, cheap] in made_by[0::2], "direct ones moved"
    assert [dear, cheap] in made_by[1::2], "relayed ones moved"

    async def billed() -> bool:
        bills = [await mesh.bill(each.request_id) for each in results]
        return all(each.delivered_tokens == 400 and each.outcome == "length" for each in bills)

    await eventually(billed, "each token is billed once")


async def test_what_a_worker_is_told_to_send_elsewhere_goes_on_there(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(*(simulated(each) for each in WORKERS), mesh=SETTINGS, slo=SLO)
    client = mesh.client(direct=True)
    stays, goes = asked(client, "river", 200), asked(client, "lake", 200)
    begun = [(await anext(each)).text for each in (stays, goes)]
    home = next(each for each in WORKERS if goes.request_id in running(mesh, each))
    router = mesh.parts["router"].running
    bus: NatsBus = router.bus

    def moving(epoch: str) -> MoveStreams:
        return MoveStreams(epoch=epoch, request_ids=(goes.request_id, "unheard-of"), because="rests")

    assert not (await bus.request_control(home, moving("an earlier one"), DEADLINE_S)).accepted
    answered = await bus.request_control(home, moving(router.fleet.worker(home).beat.epoch), DEADLINE_S)
    assert (answered.accepted, answered.message) == (True, "1 streams go on elsewhere")

    texts = [first + await each.text() for first, each in zip(begun, (stays, goes), strict=True)]
    assert texts == [await asked(mesh.client(), text, 200).text() for text in ("river", "lake")]
    legs = [[one.worker for one in each.result.segments] for each in (stays, goes) if each.result is not None]
    assert legs[1] == [home, next(each for each in WORKERS if each != home)]
    assert len(legs[0]) == 1
    await mesh.settled(4)
    assert (await mesh.bill(goes.request_id)).delivered_tokens == 200
