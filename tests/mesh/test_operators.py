"""What an operator does to a mesh that runs: drain a worker, make the books again. Real processes, a real bus."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.mesh

FLEET = [
    {"id": "h100-0", "accelerator": "nvidia-h100-sxm", "engine": "simulated"},
    {"id": "l4-0", "accelerator": "nvidia-l4", "engine": "simulated"},
]


class Mesh:
    """A mesh of `tokenworks up`, and its command line."""

    def __init__(self, folder: Path, program: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self._program = program

    async def tokenworks(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """The JSON document of a command."""
        asked = await _start(self.folder, *arguments, "--json")
        out, err = await asyncio.wait_for(asked.communicate(), 60)
        assert asked.returncode == status, (out + err).decode()
        document: dict[str, Any] = json.loads(out)
        return document

    async def says(self, words: str) -> None:
        """Waits until the mesh has printed a line with these words."""
        assert self._program.stdout is not None
        async for line in self._program.stdout:
            if words in line.decode():
                return
        raise AssertionError(f"the mesh ended without saying {words!r}")


async def _start(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENWORKS", "OTEL"))}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main", *arguments),
        env=kept
        | {
            "TOKENWORKS_MESH_DATA_DIR": str(folder / "data"),
            "TOKENWORKS_CONFIG": str(folder / "none.toml"),
            "TOKENWORKS_FLEET_WORKERS": json.dumps(FLEET),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    program = await _start(tmp_path, "up", "--free-ports", "--no-replay")
    running = Mesh(tmp_path, program)
    try:
        async with asyncio.timeout(100):
            await running.says("The mesh stays up")
            yield running
    finally:
        if program.returncode is None:
            program.send_signal(signal.SIGTERM)
        await asyncio.wait_for(program.communicate(), 60)
    assert program.returncode == 0


async def test_a_worker_is_drained_and_the_books_can_be_made_again(mesh: Mesh) -> None:
    await mesh.tokenworks("generate", "What is a token?", "--model", "llama-3.1-8b", "--max-tokens", "16")
    drained = await mesh.tokenworks("drain", "h100-0", "--grace", "2")
    assert drained["accepted"] is True
    await mesh.says("h100-0 was drained")
    second = await mesh.tokenworks("generate", "And where is it made?", "--model", "llama-3.1-8b", "--max-tokens", "16")
    assert {each["worker"] for each in second["segments"]} <= {"h100-0", "l4-0"}

    again = await mesh.tokenworks("rebuild", str(mesh.folder / "again.db"))
    assert again["differences"] == []
    assert (again["refused"], again["lost"]) == (0, 0)
    assert again["price_books"] == 1
    assert again["booked"] >= 2 * 3  # each request was admitted, made and finished


async def test_draining_a_worker_that_is_not_there_is_an_error_by_name(mesh: Mesh) -> None:
    answer = await mesh.tokenworks("drain", "b200-7", status=1)
    assert answer["error"]["reason"] == "WorkerLost"
    assert "b200-7" in answer["error"]["message"]


async def test_no_books_are_overwritten(mesh: Mesh) -> None:
    kept = mesh.folder / "kept.db"
    kept.write_text("mine")
    answer = await mesh.tokenworks("rebuild", str(kept), status=1)
    assert "exists already" in answer["error"]["message"]
    assert kept.read_text() == "mine"
