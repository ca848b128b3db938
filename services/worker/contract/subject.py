"""An engine that the contract is run against: how one is made, from settings, a plug-in's name, or anyhow."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from services.mesh.clock import SystemClock
from services.mesh.errors import SettingInvalid
from services.mesh.settings import WorkerSettings
from services.worker.contract.running import Running, started
from services.worker.engines import choose_engine

SMALL: Final[Mapping[str, Any]] = {"context_tokens": 512, "max_batch": 4, "prefill_chunk_tokens": 64}

Serve = Callable[..., AbstractAsyncContextManager[Running]]
Fresh = Callable[..., AbstractAsyncContextManager[Running]]  # called with changes to the settings


@dataclass(frozen=True)
class Subject:
    """How to make an engine for the cases.

    Attributes:
        serve: called with a directory of its own and changes to its `WorkerSettings`; gives the engine started, and
            stops it on leaving.
        unavailable: why it cannot run here; empty when it can.
        serve_alone: like `serve`, for a case that kills the process; None: what `serve` makes shares none with others.
    """

    name: str
    serve: Serve
    unavailable: Callable[[], str] = lambda: ""
    serve_alone: Serve | None = None


def plugged_in(name: str, settings: Mapping[str, Any] | None = None) -> Subject:
    """The engine that a worker with `engine = name` and these `WorkerSettings` runs: a plug-in, or one of ours.

    Raises, when it is served:
        SettingInvalid: no such engine, or a setting that cannot be.
    """

    @asynccontextmanager
    async def serve(_: Path, **changes: Any) -> AsyncIterator[Running]:
        try:
            worker = WorkerSettings.model_validate({**SMALL, **(settings or {}), **changes, "engine": name})
        except ValidationError as error:
            raise SettingInvalid(f"the settings for engine {name!r}: {error}") from error
        async with started(Running(choose_engine(worker, SystemClock()), worker.models[0])) as running:
            yield running

    return Subject(name, serve)
