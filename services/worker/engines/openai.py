"""Any OpenAI-compatible server as an engine: SGLang, TensorRT-LLM, llama.cpp, Ollama, TGI, NIM, vLLM's own.

In: requests. Out: `StepOutput`s, put together from when the tokens of all streams arrive. The server is somebody else's
process: it is looked after (its health, and how busy it is, by its metrics where it has them) and not trusted with
counts: what it tells that cannot be is complained of, in the log and in the statistics.

A request is one HTTP stream. Cancelling closes it, which every server takes as the end of the request. Until the first
token a request is asked for again when the server is busy or cannot be reached, for a few seconds and not before it
says; after it, a broken stream ends with `EngineFailed`, and the router goes on elsewhere. A server that stays silent
is reported as failed.
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
from services.worker.engines.openai_watch import Watch
from services.worker.engines.prompts import Tokenizer
from services.worker.engines.request_line import Job, RequestLine

log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.1  # before asking again; each pause is twice the one before


class OpenAiEngine:
    """Implements `Engine` with a server at `worker.openai_url`; serves one model."""

    def __init__(self, settings: WorkerSettings, clock: Clock, watch_s: float = 1.0, retry_for_s: float = 5.0) -> None:
        """Raises SettingInvalid: the accelerator is not in the catalogue.

        Args:
            watch_s: seconds between two looks at the server's health.
            retry_for_s: seconds for which a request is asked for again; then somebody else should serve it.
        """
        self._settings = settings
        self._clock = clock
        self._line = RequestLine(settings, clock, places=settings.max_batch)
        self._tasks: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._watch: Watch | None = None
        self._server: OpenAiServer | None = None
        self._dialect: Dialect | None = None
        self._watch_s = watch_s
        self._retry_for_s = retry_for_s
        self._complaints = 0
        self._complaint = ""

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
        # Requests wait here rather than there, where a later one of a sooner class could not overtake them.
        self._line.places = min(settings.max_batch, dialect.places or settings.max_batch)
        watch = self._watch = Watch(server, dialect.health, dialect.metrics, lambda: len(self._tasks))
        await watch.look()
        self._line.open(on_step, dialect.encode, partial(self._run, dialect), dialect.features)
        self._watcher = asyncio.create_task(self._look_after(watch, on_failure), name="openai-watch")
        return EngineInfo(
            engine="openai",
            simulated=False,
            models=settings.models,
            context_tokens=dialect.context_tokens,
            max_batch=self._line.places,
            max_waiting=settings.max_waiting,
            kv_capacity_tokens=self._kv_capacity_tokens,
            prefill_chunk_tokens=settings.prefill_chunk_tokens,
            note=f"served by {server.url}, spoken to as {dialect.name}",
            elsewhere=not server.on_this_machine,
            tokenizer=dialect.fingerprint,
            features=dialect.features,
            lacks=dialect.lacks,
        )

    @property
    def _kv_capacity_tokens(self) -> int:
        """As the server tells; else the assumption that every place can be used to the end."""
        if self._dialect is None:
            return 0
        return self._dialect.kv_capacity_tokens or self._dialect.context_tokens * self._line.places

    async def submit(self, request: EngineRequest) -> None:
        await self._line.submit(request)

    def cancel(self, sequence: int) -> None:
        self._line.cancel(sequence)

    def stats(self) -> EngineStats:
        stats = self._line.stats(self._kv_capacity_tokens)
        watch = self._watch
        if watch is None:
            return stats
        return replace(
            stats,
            running=stats.running + watch.others_running,
            waiting=stats.waiting + watch.others_waiting,
            kv_cache_usage=stats.kv_cache_usage if watch.load.kv_usage is None else watch.load.kv_usage,
            complaints=self._complaints,
            complaint=self._complaint,
        )

    async def stop(self, grace_s: float) -> None:
        if not await self._line.close(grace_s):
            log.error("some requests did not end although they were cancelled")
        if self._watcher is not None:
            self._watcher.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *filter(None, [self._watcher]), return_exceptions=True)
        self._watch = None
        if self._dialect is not None and self._dialect.close is not None:
            await self._dialect.close()
        if self._server is not None:
            await self._server.close()

    def _run(self, dialect: Dialect, job: Job) -> None:
        reader = dialect.reader(job)
        task = asyncio.create_task(self._serve(dialect, job, reader), name=f"openai-{job.request.request_id}")
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
            self._complaints += 1
            self._complaint = f"request {job.request.request_id}: {reader.complaint}"
            log.warning("%s lies, %s", self._settings.openai_url, self._complaint)

    async def _serve(self, dialect: Dialect, job: Job, reader: StreamReader) -> None:
        """Runs one request to its end, unless it is cancelled."""
        try:
            await self._stream(*dialect.call(job), reader)
        except TokenworksError as error:
            self._line.deliver(reader.failed(self._clock.monotonic_s(), str(error), error.reason))
        except (aiohttp.ClientError, TimeoutError, KeyError, TypeError, ValueError) as error:
            # The connection broke, or what came is not what OpenAI's API says.
            self._line.deliver(reader.failed(self._clock.monotonic_s(), f"the stream broke: {error!r}"))

    async def _stream(self, path: str, body: dict[str, Any], reader: StreamReader) -> None:
        until_s = self._clock.monotonic_s() + self._retry_for_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._ask(path, body, reader)
            except ServerBusy as busy:
                # Not before the server wants it, so not at all where it wants it later than we would wait.
                wait_s = max(pause_s, busy.after_s or 0.0)
                if self._clock.monotonic_s() + wait_s > until_s:
                    raise busy.error from busy
                await asyncio.sleep(wait_s)
                pause_s *= 2
            else:
                return

    async def _ask(self, path: str, body: dict[str, Any], reader: StreamReader) -> None:
        """One attempt; raises ServerBusy while nothing came and asking again may help."""
        assert self._server is not None
        try:
            async with aclosing(self._server.stream(path, body)) as events:
                async for chunks in events:
                    self._read(reader, chunks)
                    if reader.finished:
                        return
        except aiohttp.ClientError as error:
            if reader.begun:
                raise
            raise ServerBusy(
                EngineFailed(f"{self._server.url}{path} broke off before the first token: {error!r}")
            ) from error
        self._line.deliver(reader.done(self._clock.monotonic_s()))

    def _read(self, reader: StreamReader, chunks: list[dict[str, Any]]) -> None:
        now_s = self._clock.monotonic_s()
        for chunk in chunks:
            arrival = reader.read(chunk, now_s)
            if arrival is not None:
                self._line.deliver(arrival)
            if reader.finished:
                return

    async def _look_after(self, watch: Watch, on_failure: OnFailure) -> None:
        """Until the server is lost; then everything that runs there ends, and the worker hears of it."""
        reason = await watch.until_lost(self._watch_s)
        self._line.refuse(reason)
        self._line.end_running((EngineFailed.__name__, reason))
        on_failure(reason)
