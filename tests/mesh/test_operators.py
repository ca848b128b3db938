"""What an operator does to a mesh that runs: drain a worker, make the books again. Real processes, a real bus."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.mesh

FLEET = [
    {"id": "h100-0", "accelerator": "nvidia-h100-sxm", "engine": "simulated"},
    {"id": "l4-0", "accelerator": "nvidia-l4", "engine": "simulated"},
]
DEADLINE_S = 60.0


class Mesh:
    """A mesh of `tokenworks up`, and its command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = _start(folder, "up", "--free-ports", "--no-replay")

    def tokenworks(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """The JSON document of a command."""
        with _start(self.folder, *arguments, "--json") as asked:
            out, err = asked.communicate(timeout=DEADLINE_S)
        assert asked.returncode == status, out + err
        document: dict[str, Any] = json.loads(out)
        return document

    def says(self, words: str) -> None:
        """Waits until the mesh has printed a line with these words."""
        assert self.program.stdout is not None
        assert any(words in line for line in self.program.stdout), f"the mesh ended without saying {words!r}"

    def stop(self) -> None:
        self.program.send_signal(signal.SIGTERM)
        self.program.communicate(timeout=DEADLINE_S)


def _start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENWORKS", "OTEL"))}
    settings = {
        "TOKENWORKS_MESH_DATA_DIR": str(folder / "data"),
        "TOKENWORKS_CONFIG": str(folder / "none.toml"),
        "TOKENWORKS_FLEET_WORKERS": json.dumps(FLEET),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli.main", *arguments],
        env=kept | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    running = Mesh(tmp_path_factory.mktemp("mesh"))
    try:
        running.says("The mesh stays up")
        yield running
    finally:
        running.stop()
    assert running.program.returncode == 0


def _generate(mesh: Mesh) -> dict[str, Any]:
    return mesh.tokenworks("generate", "What is a token?", "--model", "llama-3.1-8b", "--max-tokens", "16")


def test_the_books_can_be_made_again_from_the_streams(mesh: Mesh) -> None:
    _generate(mesh)
    again = mesh.tokenworks("rebuild", str(mesh.folder / "again.db"))
    assert again["differences"] == []
    assert (again["refused"], again["lost"], again["price_books"]) == (0, 0, 1)
    assert again["booked"] >= 3  # the request was admitted, made and finished


def test_no_books_are_overwritten(mesh: Mesh) -> None:
    kept = mesh.folder / "kept.db"
    kept.write_text("mine")
    answer = mesh.tokenworks("rebuild", str(kept), status=1)
    assert "exists already" in answer["error"]["message"]
    assert kept.read_text() == "mine"


def test_a_drained_worker_exits_and_comes_back_while_another_serves(mesh: Mesh) -> None:
    assert mesh.tokenworks("drain", "h100-0", "--grace", "2")["accepted"] is True
    mesh.says("h100-0 was drained")
    assert _generate(mesh)["reason"] in ("stop", "length")
    mesh.says("h100-0 is back")


def test_draining_a_worker_that_is_not_there_is_an_error_by_name(mesh: Mesh) -> None:
    answer = mesh.tokenworks("drain", "b200-7", status=1)
    assert answer["error"]["reason"] == "WorkerLost"
    assert "b200-7" in answer["error"]["message"]
