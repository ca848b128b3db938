"""The engine that needs an environment of its own: vLLM's CPU build, with a tiny model that is made here.

`make test-engines` makes that environment and runs these tests in it; elsewhere they are skipped, saying so. vLLM is
started once per class of cases, and again for each that changes settings or kills it: 10 s each time.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.mesh.clock import SystemClock
from services.mesh.settings import WorkerSettings
from services.worker.contract.running import Running, started
from services.worker.contract.subject import SMALL, Subject
from services.worker.engines.vllm import VllmEngine, vllm_unavailable
from tests.engines.tiny_model import write_tiny_model

_MODEL = "tiny"
# Of vLLM's many libraries, which warn of one another; our own warnings stay errors.
_THEIR_WARNINGS = ("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
_LONGEST_S = 300.0  # of a case: vLLM may have to start for it, on a machine that is busy
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model runs in the engine core's process, not in another one
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def pytest_configure(config: pytest.Config) -> None:
    # vLLM leaves the one of its client to the garbage collector, which meets it whenever it likes.
    config.addinivalue_line("filterwarnings", "ignore:Unclosed context:ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(_LONGEST_S))
            for warning in _THEIR_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def unavailable() -> str:
    return vllm_unavailable() and "vLLM is not in this environment: make test-engines makes one that has its CPU build"


def vllm_settings(directory: Path, **changes: Any) -> WorkerSettings:
    """Settings for vLLM with the tiny model, which is made in `directory`; what makes it start soon and stay small."""
    model = directory / _MODEL
    if not model.exists():
        write_tiny_model(model)
    base = {
        **SMALL,
        "engine": "vllm",
        "models": (_MODEL,),
        "accelerator": "cpu-epyc-turin",
        "vllm_model": str(model),
        "vllm_arguments": {
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": 64 << 20,
            "distributed_executor_backend": "uni",
            "block_size": 32,
        },
    }
    return WorkerSettings(**{**base, **changes})


@asynccontextmanager
async def _serve(directory: Path, **changes: Any) -> AsyncIterator[Running]:
    settings = await asyncio.to_thread(vllm_settings, directory, **changes)
    async with started(Running(VllmEngine(settings, SystemClock()), _MODEL)) as running:
        yield running


VLLM = Subject("vllm", _serve, unavailable)
