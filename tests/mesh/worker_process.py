"""A worker in a process of its own, so that a test can kill it as nothing in the test's own process can be killed."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.mesh.settings import WorkerSettings
from tests.mesh.local_mesh import LocalMesh


@asynccontextmanager
async def worker_process(mesh: LocalMesh, worker: WorkerSettings) -> AsyncIterator[asyncio.subprocess.Process]:
    """Starts the worker in the mesh; killed at the end if it still runs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENWORKS", "OTEL"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.worker"),
        env=environment | mesh.environment(worker),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
