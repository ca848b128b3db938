"""Engines that the contract suite runs against, and what the suite sees of each.

`SUBJECTS` is the register: a name, why the engine cannot run here if it cannot, and how one is made. An engine of
somebody else is one more entry: each entry point in the group `tokenworks.engines` joins by itself, configured by the
`TOKENWORKS_WORKER_*` variables.
"""

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from services.mesh.clock import SystemClock
from services.mesh.errors import TokenworksError
from services.mesh.settings import WorkerSettings, load_settings
from services.worker.core import tokenizer
from services.worker.engine import (
    ChatMessage,
    Engine,
    EngineInfo,
    EngineRequest,
    FinishReason,
    Prompt,
    Sampling,
    SequenceOutput,
    StepOutput,
)
from services.worker.engines import ENTRY_POINTS
from services.worker.engines.llamacpp import LlamaCppEngine, llamacpp_unavailable
from services.worker.engines.openai import OpenAiEngine
from services.worker.engines.simulated import SimulatedEngine
from tests.contract.tiny_gguf import write_tiny_gguf

DEADLINE_S = 30.0


@dataclass(frozen=True)
class Made:
    """All that an engine made for one sequence."""

    outputs: tuple[SequenceOutput, ...]

    @property
    def text(self) -> str:
        return "".join(each.text for each in self.outputs)

    @property
    def count(self) -> int:
        return sum(each.token_count for each in self.outputs)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Empty where the engine did not report the id of every token."""
        ids = tuple(token_id for each in self.outputs for token_id in each.token_ids)
        return ids if len(ids) == self.count else ()

    @property
    def finish(self) -> FinishReason | None:
        return self.outputs[-1].finish

    @property
    def prompt_tokens(self) -> int:
        return self.outputs[-1].prompt_tokens


@dataclass
class Running:
    """A started engine, with everything that it reported, checked as it came.

    Attributes:
        encode, decode: the engine's tokenizer, where it can be asked.
        render: the text of a chat, where the engine has a template for it.
        on_failure: where an engine that fails is expected; elsewhere it ends the case.
    """

    engine: Engine
    model: str
    encode: Callable[[str], Awaitable[Sequence[int]]] | None = None
    decode: Callable[[Sequence[int]], Awaitable[str]] | None = None
    render: Callable[[Sequence[ChatMessage]], Awaitable[str]] | None = None
    on_failure: Callable[[str], None] | None = None
    steps: list[StepOutput] = field(default_factory=list)
    _made: dict[int, list[SequenceOutput]] = field(default_factory=lambda: defaultdict(list))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _sequences: int = 0
    info: EngineInfo = field(init=False)

    async def start(self) -> None:
        def failed(reason: str) -> None:
            raise AssertionError(f"the engine failed: {reason}")

        self.info = await self.engine.start(self._on_step, self.on_failure or failed)

    def _on_step(self, steps: Sequence[StepOutput]) -> None:
        for step in steps:
            self.steps.append(step)
            told = [output.sequence for output in step.outputs]
            assert len(told) == len(set(told)), f"a sequence is in one step twice: {told}"
            for output in step.outputs:
                made = self._made[output.sequence]
                assert not made or made[-1].finish is None, f"something came after the last output: {output}"
                assert len(output.token_ids) in {0, output.token_count}, output
                assert (output.error is not None) == (output.finish is FinishReason.ERROR), output
                made.append(output)
        self._changed.set()

    async def submit(self, prompt: Prompt | str, *, priority: int = 0, model: str = "", **sampling: Any) -> int:
        """Submits a request, greedy unless told otherwise; the sequence."""
        resume = {key: sampling.pop(key) for key in list(sampling) if key.startswith("resume")}
        self._sequences += 1
        await self.engine.submit(
            EngineRequest(
                sequence=self._sequences,
                request_id=f"request-{self._sequences}",
                model=model or self.model,
                prompt=Prompt(text=prompt) if isinstance(prompt, str) else prompt,
                sampling=Sampling(**{"max_tokens": 16, "temperature": 0.0, "ignore_eos": True, **sampling}),
                priority=priority,
                **resume,
            )
        )
        return self._sequences

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition that outputs bring about."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def settled(self) -> None:
        """Waits until nothing runs and nothing waits."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + DEADLINE_S
        # Statistics change without an output, so there is no event to wait for.
        while (stats := self.engine.stats()).running or stats.waiting:
            assert loop.time() < deadline_s, f"the engine stays busy: {stats}"
            await asyncio.sleep(0.001)

    def so_far(self, sequence: int) -> Made:
        return Made(tuple(self._made[sequence]))

    async def made(self, sequence: int) -> Made:
        """Everything that was made for the sequence, once it has ended."""
        await self.until(lambda: bool(self._made[sequence]) and self._made[sequence][-1].finish is not None)
        return self.so_far(sequence)

    async def generate(self, prompt: Prompt | str, **options: Any) -> Made:
        return await self.made(await self.submit(prompt, **options))


Serve = Callable[..., AbstractAsyncContextManager[Running]]


@dataclass(frozen=True)
class Subject:
    """One entry of the register.

    Attributes:
        serve: called with a directory of its own and changes to its `WorkerSettings`; gives the engine started, and
            stops it on leaving.
        unavailable: why it cannot run here; empty when it can.
        reports_ids: the engine reports the id of every token.
    """

    name: str
    serve: Serve
    unavailable: Callable[[], str] = lambda: ""
    reports_ids: bool = True


@asynccontextmanager
async def started(running: Running) -> AsyncIterator[Running]:
    await running.start()
    try:
        yield running
    finally:
        await running.engine.stop(0.0)


@asynccontextmanager
async def _simulated(_: Path, **changes: Any) -> AsyncIterator[Running]:
    base = {"models": ("llama-3.1-8b",), "context_tokens": 512, "max_batch": 4, "prefill_chunk_tokens": 64, "speed": 40}
    engine = SimulatedEngine(WorkerSettings(**{**base, **changes}), SystemClock())

    async def encode(text: str) -> Sequence[int]:
        return tokenizer.encode_prompt(text)

    async def decode(token_ids: Sequence[int]) -> str:
        return tokenizer.decode(token_ids)

    async with started(Running(engine, "llama-3.1-8b", encode=encode, decode=decode)) as running:
        yield running


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
    running = Running(engine, "tiny")
    async with started(running):
        asks = engine.tokenizer

        async def encode(text: str) -> Sequence[int]:
            return await asks.tokenize(text, special=True)

        running.encode, running.decode, running.render = encode, asks.detokenize, asks.render
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
        async with llamacpp_process(directory) as (address, _):
            base = {
                "models": ("tiny",),
                "openai_url": f"{address}/v1",
                "openai_dialect": dialect,
                "context_tokens": 512,
                "max_batch": 4,
            }
            engine = OpenAiEngine(WorkerSettings(**{**base, **changes}), SystemClock())
            running = Running(engine, "tiny")
            async with started(running):
                if (asks := engine.tokenizer) is not None:

                    async def encode(text: str) -> Sequence[int]:
                        return await asks.tokenize(text, special=True)

                    running.encode, running.decode = encode, asks.detokenize
                yield running

    return serve


def _plug_in(name: str) -> Subject:
    (entry, *_) = entry_points(group=ENTRY_POINTS, name=name)

    @asynccontextmanager
    async def serve(_: Path, **changes: Any) -> AsyncIterator[Running]:
        settings = load_settings().worker.model_copy(update=changes)
        async with started(Running(entry.load()(settings, SystemClock()), settings.models[0])) as running:
            yield running

    return Subject(name, serve)


SUBJECTS: tuple[Subject, ...] = (
    Subject("simulated", _simulated),
    Subject("llamacpp", _llamacpp, _llamacpp_missing),
    Subject("openai-llamacpp", _openai("auto"), _llamacpp_missing),
    Subject("openai-plain", _openai("plain"), _llamacpp_missing, reports_ids=False),
    *(_plug_in(name) for name in sorted(entry_points(group=ENTRY_POINTS).names)),
)


async def refused(running: Running, error: type[TokenworksError], prompt: Prompt | str, **options: Any) -> str:
    """Submits what must be refused; the message. Nothing may have been started or reported for it."""
    before, reported = running.engine.stats(), len(running.steps)
    try:
        await running.submit(prompt, **options)
    except error as refusal:
        after = running.engine.stats()
        assert (after.running, after.waiting) == (before.running, before.waiting)
        assert len(running.steps) == reported
        return str(refusal)
    raise AssertionError(f"{error.__name__} was expected")
