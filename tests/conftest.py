"""Fixtures for all tests."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from services.mesh.nats.server import NatsServer
from tests.postgres import find_binaries, running_postgres

TESTS: Final = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `-n 2 --dist loadgroup`: whole meshes one after the other, and beside them what starts none; what breaks
    meshes comes last, when the machine is theirs alone."""
    items.sort(key=lambda item: _kind(item) == "chaos")
    for item in items:
        if (kind := _kind(item)) != "unit":
            item.add_marker(pytest.mark.xdist_group("contract" if kind == "contract" else "mesh"))


def _kind(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0]


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A NATS server of the test's own, with JetStream, on a free port: `NatsSettings(url=nats_server.url)`."""
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of the tests' own; its databases are made by `new_database`."""
    binaries = find_binaries()
    if binaries is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with tempfile.TemporaryDirectory() as folder, running_postgres(Path(folder) / "postgres", binaries) as url:
        yield url
