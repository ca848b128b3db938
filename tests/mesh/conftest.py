"""The mesh that whole-path tests run against; see local_mesh.py. Settings of this machine do not reach it."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from services.mesh.settings import Section, WorkerSettings
from tests.mesh.local_mesh import LocalMesh, simulated
from tests.otlp_receiver import OtlpReceiver

StartMesh = Callable[..., Awaitable[LocalMesh]]


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("TOKENWORKS_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TOKENWORKS_CONFIG", str(tmp_path / "none.toml"))


@pytest.fixture
async def start_mesh(tmp_path: Path) -> AsyncIterator[StartMesh]:
    """Starts a mesh: `await start_mesh(workers, router=RouterSettings(…), …)`; stopped after the test."""
    meshes: list[LocalMesh] = []

    async def start(*workers: WorkerSettings, receiver: OtlpReceiver | None = None, **sections: Section) -> LocalMesh:
        mesh = LocalMesh(tmp_path / f"mesh-{len(meshes)}", receiver.exporter if receiver else None)
        meshes.append(mesh)
        await mesh.start(workers, **sections)
        return mesh

    yield start
    for mesh in meshes:
        await mesh.stop()


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> LocalMesh:
    """Three simulated workers, two of one kind and one of another."""
    return await start_mesh(simulated("h100-0"), simulated("h100-1"), simulated("mi300x-0", "amd-mi300x"))


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    receiver.start()
    yield receiver
    receiver.stop()
