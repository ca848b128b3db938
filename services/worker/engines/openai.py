"""Any OpenAI-compatible server as an engine: SGLang, TensorRT-LLM, llama.cpp, Ollama, TGI, NIM, vLLM's own.

In: requests. Out: `StepOutput`s, put together from when the tokens of all streams arrive. The server is somebody else's
process: it is looked after (health, KV-cache use from its metrics where it has them) and not trusted with counts.

A request is one HTTP stream. Cancelling closes it, which every server takes as the end of the request. Until the first
token a request is asked for again when the server is busy or cannot be reached; after it, a broken stream ends with
`EngineFailed`, and the router goes on elsewhere. A server that stays silent is reported as failed.
"""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Final

import aiohttp

from services.mesh.clock import Clock
from services.mesh.errors import EngineFailed, TokenworksError
from services.mesh.settings import WorkerSettings
from services.worker.engine import EngineInfo, EngineRequest, EngineStats, OnFailure, OnStep
from services.worker.engines.openai_dialects import Dialect, find_dialect
from services.worker.engines.openai_server import OpenAiServer, ServerBusy
from services.worker.engines.openai_stream import StreamReader
from services.worker.engines.prompts import Tokenizer
from services.worker.engines.request_line import Job, RequestLine

log = logging.getLogger(__name__)

_PAUSES_S: Final = (0.1, 0.2, 0.4)  # before asking again
_MISSED_LIMIT: Final = 3  # health checks in a row


class OpenAiEngine:
    """Implements `Engine` with a server at `worker.openai_url`; serves one model.

    Attributes:
        complaints: requests whose count the server told differently from what came.
    """

    def __init__(self, settings: WorkerSettings, clock: Clock, watch_s: float = 1.0) -> None:
        """Raises SettingInvalid: the accelerator is not in the catalogue.

        Args:
            watch_s: seconds between two looks at the server's health.
        """
        self._settings = settings
        self._clock = clock
        self._line = RequestLine(settings, clock, places=settings.max_batch)
        self._tasks: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._kv_usage: float | None = None
        self._server: OpenAiServer | None = None
        self._dialect: Dialect | None = None
        self._watch_s = watch_s
        self.complaints = 0

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The server's, once the engine is started; None where it has none."""
        return self._dialect.tokenizer if self._dialect is not None else None

    async def start(self, on_step: OnStep, on_failure: OnFailure) -> EngineInfo:
        settings = self._settings
        if not settings.openai_url:
            raise EngineFailed("set worker.openai_url to the server's address, e.g. http://127.0.0.1:8000")
        if len(settings.models) != 1:
            raise EngineFailed(f"this engine serves one model; worker.models names {len(settings.models)}")
        server = self._server = OpenAiServer(settings.openai_url, settings.openai_api_key, settings.openai_timeout_s)
        dialect = self._dialect = await find_dialect(server, settings)
        health = "/health" if await server.healthy("/health") else "/v1/models"
        self._kv_usage = await server.kv_usage()
        self._line.open(on_step, dialect.encode, self._run)
        self._watcher = asyncio.create_task(self._watch(server, health, on_failure), name="openai-watch")
        return EngineInfo(
            engine="openai",
            simulated=False,
            models=settings.models,
            context_tokens=dialect.context_tokens,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            kv_capacity_tokens=self._kv_capacity_tokens,
            prefill_chunk_tokens=settings.prefill_chunk_tokens,
            note=f"served by {server.url}, spoken to as {dialect.name}",
            tokenizer=dialect.fingerprint,
            lacks=dialect.lacks,
        )

    @property
    def _kv_capacity_tokens(self) -> int:
        """An assumption, as no server tells it in a common way: every place can be used to the end."""
        return self._dialect.context_tokens * self._line.places if self._dialect is not None else 0

    async def submit(self, request: EngineRequest) -> None:
        await self._line.submit(request)

    def cancel(self, sequence: int) -> None:
        self._line.cancel(sequence)

    def stats(self) -> EngineStats:
        stats = self._line.stats(self._kv_capacity_tokens)
        return stats if self._kv_usage is None else replace(stats, kv_cache_usage=self._kv_usage)

    async def stop(self, grace_s: float) -> None:
        if not await self._line.close(grace_s):
            log.error("some requests did not end although they were cancelled")
        if self._watcher is not None:
            self._watcher.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *filter(None, [self._watcher]), return_exceptions=True)
        if self._dialect is not None and self._dialect.close is not None:
            await self._dialect.close()
        if self._server is not None:
            await self._server.close()

    def _run(self, job: Job) -> None:
        assert self._dialect is not None
        reader = self._dialect.reader(job)
        task = asyncio.create_task(self._serve(job, reader), name=f"openai-{job.request.request_id}")
        job.on_cancel = task.cancel
        self._tasks.add(task)
        task.add_done_callback(partial(self._served, job, reader))

    def _served(self, job: Job, reader: StreamReader, task: asyncio.Task[None]) -> None:
        """A request's task is over: its end is delivered, though it may have been cancelled before it began."""
        self._tasks.discard(task)
        now_s = self._clock.monotonic_s()
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("request %s failed here", job.request.request_id, exc_info=failure)
            self._line.deliver(reader.failed(now_s, f"the engine failed: {failure!r}"))
        elif not reader.finished:
            self._line.deliver(reader.cancelled(now_s))
        if reader.complaint:
            self.complaints += 1
            log.warning("%s, request %s: %s", self._settings.openai_url, job.request.request_id, reader.complaint)

    async def _serve(self, job: Job, reader: StreamReader) -> None:
        """Runs one request to its end, unless it is cancelled."""
        try:
            await self._stream(job, reader)
        except TokenworksError as error:
            self._line.deliver(reader.failed(self._clock.monotonic_s(), str(error), error.reason))
        except (aiohttp.ClientError, TimeoutError, KeyError, TypeError, ValueError) as error:
            # The connection broke, or what came is not what OpenAI's API says.
            self._line.deliver(reader.failed(self._clock.monotonic_s(), f"the stream broke: {error!r}"))

    async def _stream(self, job: Job, reader: StreamReader) -> None:
        assert self._server is not None
        assert self._dialect is not None
        path, body = self._dialect.call(job)
        for pause_s in (*_PAUSES_S, None):
            try:
                async with aclosing(self._server.stream(path, body)) as events:
                    async for chunks in events:
                        self._read(reader, chunks)
                        if reader.finished:
                            return
                self._line.deliver(reader.done(self._clock.monotonic_s()))
            except ServerBusy as busy:
                if pause_s is None:
                    raise busy.error from busy
                await asyncio.sleep(pause_s)
            else:
                return

    def _read(self, reader: StreamReader, chunks: list[dict[str, Any]]) -> None:
        now_s = self._clock.monotonic_s()
        for chunk in chunks:
            arrival = reader.read(chunk, now_s)
            if arrival is not None:
                self._line.deliver(arrival)
            if reader.finished:
                return

    async def _watch(self, server: OpenAiServer, health: str, on_failure: OnFailure) -> None:
        """Looks after the server: its health, and how full its cache is."""
        missed = 0
        while missed < _MISSED_LIMIT:
            await asyncio.sleep(self._watch_s)
            missed = 0 if await server.healthy(health) else missed + 1
            if self._kv_usage is not None:
                self._kv_usage = await server.kv_usage() or 0.0
        reason = f"{server.url}{health} has not answered {_MISSED_LIMIT} times in a row"
        self._line.refuse(reason)
        self._line.end_running((EngineFailed.__name__, reason))
        on_failure(reason)
