"""vLLM's own OpenAI server as a process of its own, and the OpenAI engine in front of it.

The server is tied to the process of the tests, and so are the processes that it starts. It takes some ten seconds to
start, so the cases that only change the engine's settings share one; the one that is killed is the case's own.
"""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp

from services.mesh.child import tied
from services.mesh.clock import SystemClock
from services.mesh.settings import WorkerSettings
from services.worker.contract.running import Running, started
from services.worker.contract.subject import SMALL
from services.worker.engines.openai import OpenAiEngine
from tests.engines.tiny_model import write_tiny_model

MODEL: Final = "tiny"
_READY_S: Final = 120.0
_ENDED_S: Final = 20.0
_PLACES: Final = 8


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
    return port


@asynccontextmanager
async def vllm_server(directory: Path) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """The server with the tiny model: its address, and its process, which leads a group of its own."""
    model = directory / MODEL
    if not model.exists():
        await asyncio.to_thread(write_tiny_model, model)
    url = f"http://127.0.0.1:{(port := _free_port())}"
    log = directory / f"vllm-{port}.log"
    arguments = (
        *("--model", str(model), "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", str(SMALL["context_tokens"]), "--max-num-seqs", str(_PLACES), "--block-size", "32"),
        *("--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20), "--distributed-executor-backend", "uni"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--uvicorn-log-level", "warning"),
    )
    with log.open("wb") as told:
        process = await asyncio.create_subprocess_exec(
            *tied("-m", "vllm.entrypoints.openai.api_server", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
    try:
        await _ready(url, process, log)
        yield url, process
    finally:
        # The whole group: a server that was killed leaves its engine's process, which ends by itself but later.
        for sent in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sent)
                async with asyncio.timeout(_ENDED_S):
                    await process.wait()
            except (ProcessLookupError, TimeoutError):
                continue


async def _ready(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(_READY_S), aiohttp.ClientSession() as session:
        while True:
            assert process.returncode is None, f"vLLM's server ended with {process.returncode}: {_tail(log)}"
            try:
                async with session.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


@asynccontextmanager
async def _in_front_of(url: str, process: asyncio.subprocess.Process, **changes: Any) -> AsyncIterator[Running]:
    base = {**SMALL, "models": (MODEL,), "openai_url": url, "accelerator": "cpu-epyc-turin"}
    engine = OpenAiEngine(WorkerSettings(**{**base, **changes}), SystemClock(), watch_s=0.2)
    kill = partial(os.killpg, process.pid, signal.SIGKILL)
    async with started(Running(engine, MODEL, kill=kill)) as running:
        yield running


class SharedServer:
    """One server for all cases but the one that kills it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._running: tuple[str, asyncio.subprocess.Process] | None = None

    @asynccontextmanager
    async def serve(self, directory: Path, **changes: Any) -> AsyncIterator[Running]:
        """The engine in front of the server."""
        if self._running is None:
            self._running = await self._stack.enter_async_context(vllm_server(directory))
        async with _in_front_of(*self._running, **changes) as running:
            yield running

    @asynccontextmanager
    async def serve_alone(self, directory: Path, **changes: Any) -> AsyncIterator[Running]:
        """The engine in front of a server that nobody else uses."""
        async with vllm_server(directory) as server, _in_front_of(*server, **changes) as running:
            yield running

    async def close(self) -> None:
        """Ends the server."""
        await self._stack.aclose()
        self._stack = AsyncExitStack()
        self._running = None
