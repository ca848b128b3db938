"""An engine of somebody else's: a toy whose every token follows from all before it, as letters.

It stands on two parts that the worker has for engines: the line of requests, and the encoder of prompts.
"""

import asyncio
import zlib
from collections.abc import Sequence
from functools import partial

from services.mesh.clock import Clock
from services.mesh.settings import WorkerSettings
from services.worker.core.measured_steps import Arrival
from services.worker.core.stop_strings import StopMatcher
from services.worker.engine import (
    ChatMessage,
    EngineInfo,
    EngineRequest,
    EngineStats,
    FinishReason,
    OnFailure,
    OnStep,
)
from services.worker.engines.prompts import LoadedModel, PromptEncoder
from services.worker.engines.request_line import Job, RequestLine

BEGIN = 256
LETTERS = " etaoinshrdlucmfwypvbgkjqxz"
STEP_S = 0.0005


class AcmeTokenizer:
    """A token is a byte."""

    async def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        return ((BEGIN,) if special else ()) + tuple(text.encode())

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return bytes(each for each in token_ids if each < BEGIN).decode("utf-8", "replace")

    async def render(self, chat: Sequence[ChatMessage]) -> str:
        return "".join(f"[{message.role}] {message.content}\n" for message in chat) + "[assistant]"

    async def encode_chat(self, chat: Sequence[ChatMessage]) -> tuple[int, ...]:
        return await self.tokenize(await self.render(chat), special=True)


class AcmeEngine:
    """What the entry point names; called with the worker's settings and its clock."""

    def __init__(self, settings: WorkerSettings, clock: Clock) -> None:
        self.tokenizer = AcmeTokenizer()
        self._settings = settings
        self._clock = clock
        self._context_tokens = settings.context_tokens or 512
        self._line = RequestLine(settings, clock, places=settings.max_batch)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, on_step: OnStep, on_failure: OnFailure) -> EngineInfo:
        encoder = PromptEncoder(self.tokenizer, self._line.model, LoadedModel(BEGIN + 1, self._context_tokens))
        self._line.open(on_step, encoder.encode, self._run)
        return EngineInfo(
            engine="acme",
            simulated=False,
            models=self._settings.models,
            context_tokens=self._context_tokens,
            max_batch=self._settings.max_batch,
            max_waiting=self._settings.max_waiting,
            kv_capacity_tokens=self._context_tokens * self._settings.max_batch,
            prefill_chunk_tokens=self._settings.prefill_chunk_tokens,
            tokenizer=await encoder.find_fingerprint(),
            lacks=(("process", "it computes in the worker's process"),),
        )

    async def submit(self, request: EngineRequest) -> None:
        await self._line.submit(request)

    def cancel(self, sequence: int) -> None:
        self._line.cancel(sequence)

    def stats(self) -> EngineStats:
        return self._line.stats(self._context_tokens * self._settings.max_batch)

    async def stop(self, grace_s: float) -> None:
        await self._line.close(grace_s)

    def _run(self, job: Job) -> None:
        task = asyncio.create_task(self._generate(job))
        job.on_cancel = task.cancel
        self._tasks.add(task)
        task.add_done_callback(partial(self._over, job))

    def _over(self, job: Job, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled():
            self._deliver(job, finish=FinishReason.CANCELLED)

    async def _generate(self, job: Job) -> None:
        sampling, ids = job.request.sampling, list(job.encoded.token_ids)
        stop = StopMatcher(sampling.stop)
        text = stop.feed(job.encoded.held_text)
        drawn = f"{sampling.seed}".encode() if sampling.temperature else b""
        prefill = len(ids)
        for left in range(job.encoded.max_tokens, 0, -1):
            await asyncio.sleep(STEP_S)
            letter = LETTERS[zlib.crc32(bytes(each % 256 for each in ids) + drawn) % len(LETTERS)]
            ids.append(ord(letter))
            text += stop.feed(letter)
            finish = FinishReason.STOP if stop.stopped else FinishReason.LENGTH if left == 1 else None
            if finish is FinishReason.LENGTH:
                text += stop.flush()
            self._deliver(job, token_count=1, token_ids=(ids[-1],), text=text, prefill_tokens=prefill, finish=finish)
            if finish is not None:
                return
            text, prefill = "", 0

    def _deliver(self, job: Job, **what: object) -> None:
        arrival = Arrival(sequence=job.request.sequence, at_s=self._clock.monotonic_s(), **what)  # type: ignore[arg-type]
        self._line.deliver(arrival)
