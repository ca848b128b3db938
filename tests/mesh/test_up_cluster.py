"""`tokenworks up --nats-nodes 3`: one of its NATS servers is killed under load, and only the log tells."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import psutil
import pytest

from services.chaos.nats_operator import NatsOperator
from services.cli.access import Access, read_access
from services.cli.data_dir import DataDir
from services.cli.peers import Peers
from services.mesh.settings import MeshSettings, load_settings
from services.mesh.subjects import STREAMS
from tests.mesh.local_mesh import eventually
from tokenworks import Client
from tokenworks.v1 import metering_pb2 as metering

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

_MODEL: Final = "llama-3.1-8b"
_TENANT: Final = "local"
_FLEET: Final = [
    {"id": f"h100-{number}", "accelerator": "nvidia-h100-sxm", "models": [_MODEL], "engine": "simulated"}
    for number in range(2)
]
_STREAMS: Final = 6
_TOKENS: Final = 40
_NODE: Final = "node-1"
_DEADLINE_S: Final = 120.0


@pytest.fixture
async def access(tmp_path: Path) -> AsyncIterator[Access]:
    """That of a mesh on three NATS servers, as a user starts it, and stops it by SIGTERM: it drains cleanly."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENWORKS", "OTEL"))}
    data = tmp_path / "data"
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main", "up", "--free-ports", "--no-replay", "--nats-nodes", "3"),
        env=environment
        | {
            "TOKENWORKS_MESH_DATA_DIR": str(data),
            "TOKENWORKS_CONFIG": str(tmp_path / "none.toml"),
            "TOKENWORKS_FLEET_WORKERS": json.dumps(_FLEET),
        },
        stdout=PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert program.stdout is not None
        said = []
        async with asyncio.timeout(_DEADLINE_S):
            async for line in program.stdout:
                said.append(line.decode())
                if "The mesh stays up" in said[-1]:
                    break
        assert program.returncode is None, "".join(said)
        yield read_access(load_settings(mesh=MeshSettings(data_dir=DataDir(data).path)))
        program.terminate()
        async with asyncio.timeout(_DEADLINE_S):
            rest, _ = await program.communicate()
        status = await program.wait()
        assert status == 0, rest.decode()
        assert "Drained cleanly." in rest.decode()
    finally:
        await _ended(program)


async def test_a_nats_server_killed_under_load_harms_no_client_and_the_books_are_exact(
    access: Access, tmp_path: Path
) -> None:
    folder, over = tmp_path / "data" / "nats-cluster" / _NODE, asyncio.Event()
    async with Client(access.router, access.keys[_TENANT]) as client, Peers(access) as peers:
        async with NatsOperator(access.nats) as nats:
            for stream in STREAMS:
                assert (await nats.ask(f"STREAM.INFO.{stream.name}"))["config"]["num_replicas"] == 3
        before = await _settled(peers, 1)  # the first text, which a start asks for
        asking = [asyncio.create_task(_ask(client, number, over)) for number in range(_STREAMS)]
        node = _server_in(folder)
        assert node is not None
        node.kill()

        async def is_back() -> bool:
            found = _server_in(folder)
            return found is not None and found.pid != node.pid and await _level(peers)

        await eventually(is_back, "the server that was killed runs again, and everything is booked", _DEADLINE_S)
        over.set()
        told = [tokens for answers in await asyncio.gather(*asking) for tokens in answers]
        assert set(told) == {_TOKENS}
        total = await _settled(peers, before.finished_requests + len(told))
        assert total.finished_requests - before.finished_requests == len(told)
        assert total.delivered_tokens - before.delivered_tokens == sum(told)


async def _ask(client: Client, number: int, over: asyncio.Event) -> list[int]:
    """One stream after the other, at least two; how many tokens each end told of, as many as came."""
    told: list[int] = []
    while len(told) < 2 or not over.is_set():
        came = 0
        async with client.generate(
            text=f"tell of river {number}", max_tokens=_TOKENS, ignore_eos=True, model=_MODEL
        ) as stream:
            async for piece in stream:
                assert piece.first_index == came
                came += piece.token_count
        assert stream.result is not None
        assert stream.result.completion_tokens == came
        told.append(came)
    return told


async def _level(peers: Peers) -> bool:
    return (await peers.usage(metering.GetUsageRequest())).lag_events == 0


async def _settled(peers: Peers, finished_requests: int) -> metering.UsageRow:
    """The meter's total once so many requests have ended, from both of its witnesses."""
    total = metering.UsageRow()

    async def booked() -> bool:
        nonlocal total
        answer = await peers.usage(metering.GetUsageRequest())
        total = answer.total
        both = total.generated_tokens >= total.delivered_tokens
        return total.finished_requests >= finished_requests and both and answer.lag_events == 0

    await eventually(booked, f"the end of {finished_requests} requests is booked", _DEADLINE_S)
    return total


def _server_in(folder: Path) -> psutil.Process | None:
    """The NATS server whose files are there; None while there is none."""
    wanted = str(folder / "nats-server.conf")
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "nats-server" and wanted in (process.info["cmdline"] or ()):
            return process
    return None


async def _ended(program: Process) -> None:
    if program.returncode is None:
        program.kill()
        await program.wait()
