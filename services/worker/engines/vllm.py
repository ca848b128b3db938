"""vLLM in this process: any build of it (CUDA, ROCm, TPU, Neuron, Gaudi, XPU, CPU), through `AsyncLLM`.

In: requests in text, token ids or chat form. Out: `StepOutput`s with the text and the ids of the tokens.

vLLM wakes one task per request and token. This engine wakes none: vLLM calls its statistics loggers once per step,
after all of the step's outputs were put into their collectors, so the logger empties the collectors there and reports
the step as one. What it costs is then per step, and its prompt tokens are those that vLLM's own scheduler counted.

Resuming replays the ids that were delivered as if they were prompt; with greedy sampling the stream goes on as it would
have. What cannot go on that way is refused: penalties (vLLM would not count the tokens before the break) and response
formats. Stop strings are looked for here, because only here it is known what was held back before a break. Aborted
requests are missing from vLLM's own statistics, and it accepts one id twice: tokens are counted here.

vLLM's engine core is a process of its own. When it dies (out of memory, a device error) its requests end with
`EngineFailed`, and the worker is told by `on_failure`. An engine is started once; after a failure another one is made.
"""

import asyncio
import importlib.util
import logging
import multiprocessing
import os
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import resource_tracker
from typing import Any, Final

from services.mesh.clock import Clock
from services.mesh.errors import EngineFailed, InvalidRequest, PromptTooLong, TokenworksError
from services.mesh.features import LOGPROBS, RESPONSE_FORMAT
from services.mesh.priorities import by_rank
from services.mesh.settings import WorkerSettings
from services.worker.core.measured_steps import Arrival
from services.worker.engine import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    OnBlocks,
    OnFailure,
    OnStep,
)
from services.worker.engine_child import WORKER_VARIABLE, cause_of_death
from services.worker.engines.prompts import LoadedModel, PromptEncoder
from services.worker.engines.request_line import Job, RequestLine
from services.worker.engines.vllm_blocks import TOPIC, BlockReader
from services.worker.engines.vllm_outputs import DeltaReader, StepCounts, prompts_worked_on
from services.worker.engines.vllm_requests import encode, sampling_fields, structured_fields
from services.worker.engines.vllm_tokenizer import VllmTokenizer

log = logging.getLogger(__name__)

FEATURES: Final = (LOGPROBS, RESPONSE_FORMAT)
_ENVIRONMENT: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # where ours are
}
_ABORT_DEADLINE_S: Final = 5.0
_SHUTDOWN_S: Final = 3.0  # for the core to end by itself; there is nothing in it to save


def vllm_unavailable() -> str:
    """Why vLLM cannot run here, and what would do; empty when it can. Imports nothing."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed: install the build for this machine's accelerator, see docs/engines.md"
    return ""


@dataclass(slots=True, eq=False)
class _Running:
    """A request that vLLM has, or is about to get."""

    job: Job
    id: str
    reader: DeltaReader
    collector: Any = None  # vllm.v1.engine.output_processor.RequestOutputCollector, once vLLM has the request


class VllmEngine:
    """Implements `Engine` and `ReportsBlocks` with vLLM; serves one model under the name `worker.models` gives it."""

    def __init__(self, settings: WorkerSettings, clock: Clock) -> None:
        """Raises SettingInvalid: the accelerator is not in the catalogue."""
        self._settings = settings
        self._clock = clock
        self._line = RequestLine(settings, clock, places=settings.max_batch)
        self._running: dict[int, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts = StepCounts(0, 0, 0.0)
        self._failed = ""
        self._on_blocks: OnBlocks | None = None
        self._block_reader: BlockReader | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()  # a process of vLLM's, or its part of the event loop
        self._watched_loop = False
        self._cores: list[Any] = []  # the processes that vLLM started
        self._llm: Any = None  # vllm.v1.engine.async_llm.AsyncLLM
        self._tokenizer: VllmTokenizer | None = None

    @property
    def tokenizer(self) -> VllmTokenizer:
        """The model's own, once the engine is started."""
        assert self._tokenizer is not None, "the engine is not started"
        return self._tokenizer

    @property
    def process_id(self) -> int:
        """Of the process that runs the model (the first one, where there are several); 0 where it is not ours."""
        return self._cores[0].pid if self._cores else 0

    def watch_blocks(self, on_blocks: OnBlocks) -> None:
        self._on_blocks = on_blocks

    async def start(self, on_step: OnStep, on_failure: OnFailure) -> EngineInfo:
        settings = self._settings
        if len(settings.models) != 1:
            raise EngineFailed(f"vLLM serves one model; worker.models names {', '.join(settings.models) or 'none'}")
        if reason := vllm_unavailable():
            raise EngineFailed(reason)
        path = settings.vllm_model or settings.models[0]
        if self._on_blocks is not None:
            self._block_reader = BlockReader(self._on_blocks, _decode_blocks)
        before = set(multiprocessing.active_children())
        try:
            self._llm = await asyncio.to_thread(self._build, path)  # seconds to minutes: the loop goes on
        except Exception as error:  # vLLM's start-up raises whatever its parts do
            await self._close_blocks()
            raise EngineFailed(f"vLLM cannot serve {path}: {error}; its log has more") from error
        self._cores = [each for each in multiprocessing.active_children() if each not in before]
        config = self._llm.vllm_config
        context_tokens = int(config.model_config.max_model_len)
        self._line.places = int(config.scheduler_config.max_num_seqs)
        self._tokenizer = VllmTokenizer(self._llm.get_tokenizer())
        loaded = LoadedModel(int(config.model_config.get_vocab_size()), context_tokens)
        encoder = PromptEncoder(self._tokenizer, self._line.model, loaded)
        self._line.open(on_step, partial(encode, encoder), self._run, FEATURES)
        self._watcher = asyncio.create_task(self._watch(on_failure), name="vllm-watch")
        return EngineInfo(
            engine="vllm",
            simulated=False,
            models=(self._line.model,),
            context_tokens=context_tokens,
            max_batch=self._line.places,
            max_waiting=settings.max_waiting,
            kv_capacity_tokens=int(config.cache_config.num_gpu_blocks or 0) * int(config.cache_config.block_size),
            prefill_chunk_tokens=int(config.scheduler_config.max_num_batched_tokens),
            features=FEATURES,
            platform=_platform(),
            tokenizer=await encoder.find_fingerprint(),
        )

    def _build(self, path: str) -> Any:
        """Loads the model; in a thread. vLLM's part of the event loop begins with the first request."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork would take the locks of gRPC's threads with it
        os.environ[WORKER_VARIABLE] = str(os.getpid())  # the core inherits it, and ends with this process
        from vllm.config import KVEventsConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        step_ended = self._step_ended

        # In place of vLLM's own of this kind, which would be made and filled beside any other.
        class StepListener(PrometheusStatLogger):  # type: ignore[misc]  # vLLM is not there where types are checked
            def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
                pass

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                step_ended(scheduler_stats)

            def record_admission_rejection(self, reason: str) -> None:
                pass

            def log_engine_initialized(self) -> None:
                pass

        settings = self._settings
        arguments: dict[str, Any] = {
            "model": path,
            "max_model_len": settings.context_tokens or None,
            "max_num_seqs": settings.max_batch,
            "max_num_batched_tokens": max(settings.prefill_chunk_tokens, settings.max_batch),
            "enable_prefix_caching": True,
            "scheduling_policy": "priority",
            "enable_logging_iteration_details": True,
            "disable_log_stats": True,  # of its own loggers; ours is called all the same
            **settings.vllm_arguments,
        }
        if self._block_reader is not None:
            arguments["kv_events_config"] = KVEventsConfig(
                enable_kv_cache_events=True, publisher="zmq", endpoint=self._block_reader.endpoint, topic=TOPIC
            )
        # Its processes inherit the mask: Ctrl-C in a terminal goes to all of them, and must not end the core while this
        # process lets its streams end. Starting the resource tracker would lift it, so that is done before.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[StepListener])
            # What its front end measures of each token is measured here already, and costs a fifth of what a token
            # costs this process; the core's own figures per step still come to the listener.
            llm.log_stats = llm.output_processor.log_stats = False
            return llm
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    async def submit(self, request: EngineRequest) -> None:
        await self._line.submit(request)

    def cancel(self, sequence: int) -> None:
        self._line.cancel(sequence)

    def stats(self) -> EngineStats:
        stats = self._line.stats(0)
        lacking = [(each.reader.order[0], each.reader.lacking) for each in self._running.values()]
        # Some of those that vLLM has may wait in there, for room in its cache.
        waiting = min(self._counts.waiting, sum(1 for _, tokens in lacking if tokens))
        by_priority = _sums(stats.prefill_tokens_by_priority, by_rank(lacking))
        # The least urgent are those that wait.
        last = sorted((priority for priority, tokens in lacking if tokens), reverse=True)[:waiting]
        return replace(
            stats,
            running=stats.running - waiting,
            waiting=stats.waiting + waiting,
            waiting_by_priority=_sums(stats.waiting_by_priority, by_rank((priority, 1) for priority in last)),
            waiting_prefill_tokens=sum(by_priority),
            prefill_tokens_by_priority=by_priority,
            # After its last request vLLM says nothing any more.
            kv_cache_usage=self._counts.kv_usage if self._running else 0.0,
        )

    async def stop(self, grace_s: float) -> None:
        if not await self._line.close(grace_s):
            log.error("some requests did not end although they were cancelled")
        tasks = [*self._tasks, *filter(None, [self._watcher])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._close_blocks()
        if self._tokenizer is not None:
            self._tokenizer.close()
        if self._llm is not None:
            if self._llm.output_handler is not None:  # which would take the end of the core for a failure
                self._llm.output_handler.cancel()
            await asyncio.to_thread(self._llm.shutdown, _SHUTDOWN_S)

    async def _close_blocks(self) -> None:
        if self._block_reader is not None:
            await self._block_reader.close()
            self._block_reader = None

    def _run(self, job: Job) -> None:
        reader = DeltaReader(job, self.tokenizer.special_ids, tells_prompt=self._block_reader is not None)
        # vLLM has no quarrel with an id that it has already, so it is made to differ by the job's number.
        running = _Running(job, f"{job.request.request_id}:{job.number}", reader)
        self._running[job.request.sequence] = running
        job.on_cancel = partial(self._abort, running)
        self._spawn(self._begin(running), f"vllm-begin-{running.id}")

    async def _begin(self, running: _Running) -> None:
        """Hands the request to vLLM."""
        request, encoded = running.job.request, running.job.encoded
        from vllm.inputs import tokens_input

        prompt = tokens_input(list(encoded.token_ids), cache_salt=request.tenant or None)
        try:
            parameters = _sampling_parameters(request, encoded.max_tokens)
            running.collector = await self._llm.add_request(running.id, prompt, parameters, priority=request.priority)
        except Exception as error:  # refusals of the request, and whatever breaks in there
            refusal = _translated(error)
            if self._running.get(running.reader.sequence) is running:
                self._report([running.reader.failed(self._clock.monotonic_s(), (refusal.reason, str(refusal)))])
            return
        if not self._watched_loop:
            self._watched_loop = True
            self._llm.output_handler.add_done_callback(lambda _: self._ended.set())
        # It may have made tokens before it was known here.
        self._take(running)
        if running.job.cancelled:
            self._abort(running)

    def _step_ended(self, stats: Any) -> None:
        """Called by vLLM on the loop after each step: takes what the step made, and reports it as one.

        An error in here ends vLLM's loop, which the watcher takes for the engine's death: better than tokens lost.
        """
        if stats is not None:
            details = stats.iteration_details
            prompt_tokens = details.num_ctx_tokens if details is not None else 0
            self._counts = StepCounts(prompt_tokens, stats.num_waiting_reqs, stats.kv_cache_usage)
        now_s = self._clock.monotonic_s()
        arrivals: list[Arrival] = []
        for running in self._running.values():
            collector = running.collector
            if collector is not None and collector.output is not None:
                arrivals.append(running.reader.read(collector.get_nowait(), now_s))
        if stats is not None and self._counts.prompt_tokens:
            readers = [each.reader for each in self._running.values()]
            arrivals += prompts_worked_on(readers, arrivals, self._counts.prompt_tokens, now_s)
        self._report(arrivals)

    def _take(self, running: _Running) -> None:
        """Reports what one request has in its collector, outside of a step."""
        if running.collector.output is not None and self._running.get(running.reader.sequence) is running:
            self._report([running.reader.read(running.collector.get_nowait(), self._clock.monotonic_s())])

    def _report(self, arrivals: list[Arrival]) -> None:
        for arrival in arrivals:
            if arrival.finish is not None:
                running = self._running.pop(arrival.sequence)
                if running.reader.stopped:
                    self._abort(running)
        self._line.report(arrivals)

    def _abort(self, running: _Running) -> None:
        """Ends a request within one step; its last output is told once vLLM has let go of it."""
        if running.collector is not None and not self._failed:  # else `_begin` looks whether it is cancelled
            self._spawn(self._aborted(running), f"vllm-abort-{running.id}")

    async def _aborted(self, running: _Running) -> None:
        try:
            async with asyncio.timeout(_ABORT_DEADLINE_S):
                await self._llm.abort(running.id)
            self._take(running)  # the last step's tokens and the end
        except Exception:  # a dead engine: the watcher ends the request
            log.exception("vLLM did not take the abort of %s", running.id)
        if self._running.get(running.reader.sequence) is running and not self._failed:
            self._report([running.reader.cancelled(self._clock.monotonic_s())])

    async def _watch(self, on_failure: OnFailure) -> None:
        """Notices that the engine core has died, and ends everything that ran there."""
        loop = asyncio.get_running_loop()
        for core in self._cores:
            loop.add_reader(core.sentinel, self._ended.set)
        try:
            await self._ended.wait()
        finally:
            for core in self._cores:
                loop.remove_reader(core.sentinel)
        self._failed = reason = f"vLLM's engine core has died: {await asyncio.to_thread(cause_of_death, self._cores)}"
        self._running.clear()
        self._line.refuse(reason)
        self._line.end_running((EngineFailed.__name__, reason))
        on_failure(reason)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _sampling_parameters(request: EngineRequest, max_tokens: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    structured = structured_fields(request.response_format_json)
    return SamplingParams(
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=StructuredOutputsParams(**structured) if structured else None,
        **sampling_fields(request, max_tokens),
    )


def _translated(error: Exception) -> TokenworksError:
    """What vLLM raises, in our words; ours as they are."""
    if isinstance(error, TokenworksError):
        return error
    from vllm.exceptions import VLLMClientError

    if isinstance(error, (VLLMClientError, ValueError)):
        told = str(error)
        return PromptTooLong(told) if "maximum context length" in told else InvalidRequest(told)
    return EngineFailed(f"vLLM did not take the request: {error!r}")


def _platform() -> str:
    from vllm.platforms import current_platform

    kind, name = str(current_platform.device_type), str(current_platform.get_device_name())
    return kind if name == kind else f"{kind}: {name}"


@lru_cache
def _block_decoder() -> Any:
    import msgspec
    from vllm.distributed.kv_events import KVEventBatch

    return msgspec.msgpack.Decoder(KVEventBatch)


def _decode_blocks(message: bytes) -> Any:
    return _block_decoder().decode(message)


def _sums(some: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(one + other for one, other in zip(some, others, strict=True))
