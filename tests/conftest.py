"""Fixtures for all tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.mesh.nats.server import NatsServer


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A NATS server of the test's own, with JetStream, on a free port: `NatsSettings(url=nats_server.url)`."""
    async with NatsServer(tmp_path / "nats") as server:
        yield server
