"""An engine dies under load: no stream notices, the books are exact, and the worker comes back by itself."""

import asyncio
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Final

import pytest

from services.cli.readiness import probe
from services.mesh.events import WorkerState
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import DEADLINE_S, MODEL, LocalMesh, eventually, simulated
from tests.mesh.running_worker import running_worker
from tokenworks import Client, Result
from tokenworks.v1 import inference_pb2 as pb

pytestmark = pytest.mark.mesh

DIES: Final = pb.InjectFaultRequest.KIND_ENGINE_DIES
REASON: Final = "the simulated engine died, as asked by FaultControl"
TOKENS: Final = 250


async def test_a_dead_engine_fails_its_streams_by_name_and_another_takes_its_place(tmp_path: Path) -> None:
    async with running_worker(tmp_path, speed=1.0, engine_restart_s=0.4) as worker:
        session = await worker.session()
        opened = [await session.open(f"r-{index}", max_tokens=100_000, ignore_eos=True) for index in range(3)]
        await worker.until(lambda: all(stream.token_ids for _, stream in opened), "all run")
        assert await worker.break_engine(DIES) == "dead"
        for _, stream in opened:
            await stream.end()
            assert stream.error is not None
            assert (stream.error.reason, stream.error.message) == ("EngineFailed", REASON)
        await worker.until(lambda: worker.beat.state == WorkerState.FAILED, "the heartbeat says so")
        assert (worker.beat.failed_because, worker.beat.running) == (REASON, 0)
        described = await worker.stub.Describe(pb.DescribeRequest(), timeout=DEADLINE_S)
        assert (described.state, described.failed_because, described.restarts) == ("failed", REASON, 0)
        assert await probe(f"127.0.0.1:{worker.running.http_port}") == f"failed: {REASON}"
        refused = await session.answer("r-9")
        assert refused.error is not None
        assert refused.error.reason == "EngineFailed"
        await worker.reported("r-0", "r-1", "r-2")

        await worker.until(lambda: worker.beat.state == WorkerState.READY, "another engine is ready")
        assert (worker.beat.failed_because, worker.beat.restarts) == ("", 1)
        assert len((await session.answer("r-0", max_tokens=5, ignore_eos=True)).token_ids) == 5
        described = await worker.stub.Describe(pb.DescribeRequest(), timeout=DEADLINE_S)
        assert (described.state, described.failed_because, described.restarts) == ("ready", "", 1)
        assert await probe(f"127.0.0.1:{worker.running.http_port}") == "ready"
        beats = worker.of_kind(type(worker.beat))
        for totals in ("busy_ns", "energy_uj", "steps", "generated_tokens"):
            told = [getattr(beat, totals) for beat in beats]
            assert told == sorted(told), f"{totals} went back"
        assert {beat.epoch for beat in beats} == {worker.beat.epoch}


async def test_a_hanging_engine_is_replaced(tmp_path: Path) -> None:
    async with running_worker(tmp_path, speed=1.0, engine_restart_s=0.01, engine_hang_s=0.2) as worker:
        session = await worker.session()
        _, stream = await session.open("r-0", max_tokens=100_000, ignore_eos=True)
        await worker.until(lambda: bool(stream.token_ids), "it runs")
        await worker.break_engine(pb.InjectFaultRequest.KIND_HANG)
        await stream.end()
        assert stream.error is not None
        assert stream.error.message == "it hangs: no step for 0.2 s while 1 requests run"
        await worker.until(lambda: worker.beat.restarts == 1, "another engine is ready")
        assert len((await session.answer("r-1", max_tokens=5, ignore_eos=True)).token_ids) == 5


async def stream(client: Client, number: int) -> tuple[str, Result]:
    """The text of one stream; the client fails it when its indexes are not contiguous from 0."""
    text = ""
    async with client.generate(
        text=f"river {number}", model=MODEL, max_tokens=TOKENS, ignore_eos=True, seed=number
    ) as generation:
        async for piece in generation:
            text += piece.text
    assert generation.result is not None
    return text, generation.result


async def streams(mesh: LocalMesh, count: int) -> list[tuple[str, Result]]:
    client = mesh.client()
    return await asyncio.gather(*[stream(client, number) for number in range(count)])


def workers_of(results: list[tuple[str, Result]]) -> Counter[str]:
    return Counter(segment.worker for _, result in results for segment in result.segments)


async def test_streams_go_on_elsewhere_when_an_engine_dies_and_the_worker_gets_work_again(
    start_mesh: StartMesh,
) -> None:
    mesh = await start_mesh(simulated("h100-0", engine_restart_s=0.5), simulated("h100-1", engine_restart_s=0.5))
    undisturbed = await streams(mesh, 20)

    workers = {name: mesh.parts[name].running for name in ("h100-0", "h100-1")}
    before = {name: worker.streams.generated_tokens for name, worker in workers.items()}
    at_work: list[str] = []

    async def makes_tokens() -> bool:
        at_work[:] = [name for name, worker in workers.items() if worker.streams.generated_tokens > before[name]]
        return bool(at_work)

    running = asyncio.create_task(streams(mesh, 20))
    await eventually(makes_tokens, "an engine that can die makes tokens")
    dead = at_work[0]
    (other,) = workers.keys() - {dead}
    await mesh.inject(dead, DIES)
    disturbed = await running
    assert [text for text, _ in disturbed] == [text for text, _ in undisturbed]
    moved = [result for _, result in disturbed if len(result.segments) > 1]
    assert moved, "no stream was in the engine that died"
    for result in moved:
        # On a busy machine the other may be slow for a moment, and give some of them back.
        assert [segment.worker for segment in result.segments][:2] == [dead, other]
        ends = accumulate(segment.count for segment in result.segments)
        assert [segment.from_index for segment in result.segments] == [0, *ends][:-1]
    assert {sum(segment.count for segment in result.segments) for _, result in disturbed} == {TOKENS}

    results = [result for _, result in undisturbed + disturbed]

    async def restarted() -> bool:
        return bool(workers[dead].engine.restarts)

    await eventually(restarted, "another engine takes the dead one's place")

    async def back() -> bool:
        await mesh.inject(other, DIES)  # whose work there is to be had then
        more = await streams(mesh, 4)
        results.extend(result for _, result in more)
        return dead in workers_of(more)

    await eventually(back, "the worker gets work again")
    assert workers[dead].engine.restarts == 1
    total = await mesh.settled(len(results))
    assert total.requests == total.finished_requests == len(results)
    assert total.delivered_tokens == TOKENS * len(results) <= total.generated_tokens
    assert total.price_nusd == sum(result.price_nusd for result in results)
