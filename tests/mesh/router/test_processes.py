"""Several router processes behind one port, and routers that agree through events."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc
import pytest

from services.mesh.events import PlacedAtWorker, PlacementsMade
from services.mesh.settings import RouterSettings, load_settings
from services.router.processes import Processes
from tests.mesh.router.conftest import StartRouter
from tests.mesh.router.router_under_test import DEADLINE_S, eventually
from tests.mesh.router.service_under_test import Service

pytestmark = pytest.mark.mesh


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path)
    await service.start()
    try:
        await service.until_all_serve()
        yield service
    finally:
        await service.stop()


async def test_processes_share_the_ports_and_each_explains_what_any_of_them_did(service: Service) -> None:
    url = f"http://127.0.0.1:{service.http_port}/readyz"
    async with aiohttp.ClientSession() as session, session.get(url) as ready:
        assert ready.status == 200
    ids = []
    for _ in range(12):  # each on a connection of its own: all on one process once in 2,048 times
        async with service.channel() as channel:
            ids.append(await service.answer(channel))
    assert set(service.sessions) == {"router-0.0", "router-0.1"}
    async with service.channel() as channel:
        for request_id in ids:
            explained = await service.explain(channel, request_id)
            assert (explained.request_id, explained.picked_worker) == (request_id, "w0")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.explain(channel, "nobody's")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "the 1 others" in (caught.value.details() or "")
    # Another service on the same ports would share them unnoticed: it does not start.
    command = (sys.executable, "-m", "services.router")
    second = await asyncio.create_subprocess_exec(*command, env=service.environment, stderr=asyncio.subprocess.PIPE)
    _, errors = await second.communicate()
    assert second.returncode == 1
    assert f"router.port = {service.grpc_port} can't be had" in errors.decode()


async def test_one_that_dies_is_replaced_while_the_others_serve(service: Service) -> None:
    before = len(service.sessions)
    service.routers[0].kill()
    async with asyncio.timeout(DEADLINE_S):
        while not await service.try_answer():
            pass
        while len(service.sessions) == before:
            service.worker.beat()
            await asyncio.sleep(0.05)
    assert service.process.returncode is None


async def test_a_router_counts_what_others_have_just_placed(start_router: StartRouter) -> None:
    router = await start_router()
    await router.worker("w0")
    await router.worker("w1")
    other = router.broker.bus("router", "router-1")
    await other.connect()
    placed = PlacedAtWorker(worker="w0", epoch="e1", requests=60, prefill_tokens=400_000, prompt_tokens=400_000)
    stale = PlacedAtWorker(worker="w1", epoch="e0", requests=60, prefill_tokens=400_000, prompt_tokens=400_000)
    other.publish(PlacementsMade(router="router-1", address="127.0.0.1:1", placed=(placed, stale), at_unix_ms=1))
    known = router.running.fleet.worker("w0")
    assert known is not None
    await eventually(lambda: known.requests == 60, "it knows")
    for _ in range(4):
        assert (await router.answer(1)).worker == "w1"
    router.workers[0].beat(at_unix_ms=1_700_000_100_000)
    await eventually(lambda: known.requests == 0, "the heartbeat shows them")
    await other.close()


async def test_ports_that_are_left_open_are_found() -> None:
    processes = Processes(load_settings(router=RouterSettings(port=0, http_port=0)))
    grpc_port, http_port = processes.reserve()
    assert 0 < grpc_port != http_port > 0
    await processes.release()
