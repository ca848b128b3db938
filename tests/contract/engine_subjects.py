"""Our engines as the contract sees them, beside those that need an environment of their own (tests/engines)."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.mesh.clock import SystemClock
from services.mesh.settings import WorkerSettings
from services.worker.contract.running import DEADLINE_S, Running, started
from services.worker.contract.subject import Serve, Subject, plugged_in
from services.worker.engines.llamacpp import LlamaCppEngine, llamacpp_unavailable
from services.worker.engines.openai import OpenAiEngine
from tests.contract.tiny_gguf import write_tiny_gguf


def tiny_llamacpp_settings(directory: Path, **changes: Any) -> WorkerSettings:
    """Settings for llama.cpp with the tiny model, which is made in `directory`."""
    path = directory / "tiny.gguf"
    if not path.exists():
        write_tiny_gguf(path)
    base = {"models": ("tiny",), "llamacpp_model_path": str(path), "llamacpp_slots": 4, "llamacpp_slot_tokens": 512}
    return WorkerSettings(**{**base, **changes})


@asynccontextmanager
async def _llamacpp(directory: Path, **changes: Any) -> AsyncIterator[Running]:
    engine = LlamaCppEngine(tiny_llamacpp_settings(directory, **changes), SystemClock())
    async with started(Running(engine, "tiny")) as running:
        yield running


def _llamacpp_missing() -> str:
    return llamacpp_unavailable(WorkerSettings(models=("tiny",), llamacpp_model_path=__file__))


@asynccontextmanager
async def llamacpp_process(directory: Path, slots: int = 4) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """llama.cpp's HTTP server with the tiny model, as a process of its own: its address, and the process."""
    settings = tiny_llamacpp_settings(directory)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.contract.llamacpp_http",
        settings.llamacpp_model_path,
        str(slots),
        str(settings.llamacpp_slot_tokens),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            address = (await process.stdout.readline()).decode().strip()
        assert address, "llama.cpp's server did not start"
        yield address, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process.stdin.close()


def _openai(dialect: str) -> Serve:
    @asynccontextmanager
    async def serve(directory: Path, **changes: Any) -> AsyncIterator[Running]:
        async with llamacpp_process(directory) as (address, process):
            base = {
                "models": ("tiny",),
                "openai_url": f"{address}/v1",
                "openai_dialect": dialect,
                "context_tokens": 512,
                "max_batch": 4,
            }
            engine = OpenAiEngine(WorkerSettings(**{**base, **changes}), SystemClock(), watch_s=0.1)
            async with started(Running(engine, "tiny", kill=process.kill)) as running:
                yield running

    return serve


SIMULATED = plugged_in("simulated", {"models": ("llama-3.1-8b",), "speed": 40})
LLAMACPP = Subject("llamacpp", _llamacpp, _llamacpp_missing)
OPENAI_LLAMACPP = Subject("openai-llamacpp", _openai("auto"), _llamacpp_missing)
OPENAI_PLAIN = Subject("openai-plain", _openai("plain"), _llamacpp_missing)
