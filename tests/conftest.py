"""Fixtures for all tests."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.mesh.nats.server import NatsServer
from tests.postgres import find_binaries, running_postgres


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
