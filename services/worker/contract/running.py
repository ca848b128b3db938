"""A started engine as the cases see it: what it is asked, and everything that it reported, checked as it came."""

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import pytest

from services.mesh.errors import TokenworksError
from services.worker.engine import (
    Engine,
    EngineInfo,
    EngineRequest,
    FinishReason,
    Prompt,
    Sampling,
    SequenceOutput,
    StepOutput,
    TokenLogprob,
)
from services.worker.engines.prompts import Tokenizer

DEADLINE_S: Final = 60.0  # for whatever is waited for


class Capability(StrEnum):
    """What `EngineInfo.lacks` may name."""

    TOKEN_IDS = "token_ids"  # the id of every token is told
    TOKENIZER = "tokenizer"  # `engine.tokenizer`; prompts that are too long are refused before any work
    CHAT_TEXT = "chat_text"  # `tokenizer.render` gives the text of a chat, which makes the same tokens
    SEEDS = "seeds"  # a seed repeats itself
    IGNORE_EOS = "ignore_eos"  # goes on to max_tokens
    RESUMING = "resuming"  # goes on as the unbroken stream would
    PRIORITY = "priority"  # lower values go first
    LOAD = "load"  # what was in a step is told
    PROCESS = "process"  # of its own, which can be killed
    FORCED_TOOLS = "forced_tools"  # a tool_choice that names a tool is kept to


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
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(logprob for each in self.outputs for logprob in each.logprobs)

    @property
    def finish(self) -> FinishReason | None:
        return self.outputs[-1].finish if self.outputs else None

    @property
    def error(self) -> tuple[str, str]:
        """Name and message; empty where it ended without one."""
        return self.outputs[-1].error or ("", "")

    @property
    def prompt_tokens(self) -> int:
        return self.outputs[-1].prompt_tokens

    @property
    def cached_prompt_tokens(self) -> int:
        return self.outputs[-1].cached_prompt_tokens

    @property
    def cuts(self) -> dict[int, str]:
        """Where the stream can be broken, between two outputs: after how many tokens, and the text shown up to there.

        An engine may report several tokens at once, so not every token need be there.
        """
        cuts: dict[int, str] = {}
        count, shown = 0, ""
        for output in self.outputs:
            count, shown = count + output.token_count, shown + output.text
            cuts[count] = shown
        return {at: shown for at, shown in cuts.items() if 0 < at < self.count}

    def shown_before(self, at: int) -> str:
        """The text that came with the first `at` tokens: one of `cuts`, or all."""
        return self.text if at == self.count else self.cuts[at]


@dataclass
class Running:
    """A started engine.

    Attributes:
        kill: kills what makes the tokens, as the kernel would; None: the engine's `process_id` is killed.
        on_failure: where an engine that fails is expected; elsewhere it ends the case.
    """

    engine: Engine
    model: str
    kill: Callable[[], object] | None = None
    on_failure: Callable[[str], None] | None = None
    steps: list[StepOutput] = field(default_factory=list)
    _made: dict[int, list[SequenceOutput]] = field(default_factory=lambda: defaultdict(list))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _sequences: int = 0
    info: EngineInfo = field(init=False)

    async def start(self) -> None:
        def failed(reason: str) -> None:
            if self.on_failure is None:
                raise AssertionError(f"the engine failed: {reason}")
            self.on_failure(reason)

        self.info = await self.engine.start(self._on_step, failed)

    def need(self, capability: Capability) -> None:
        """Skips the case where the engine says that it lacks the capability, with what it says."""
        for lacking, why in self.info.lacks:
            if lacking == capability:
                pytest.skip(f"{self.info.engine} has no {capability}: {why}")

    @property
    def tokenizer(self) -> Tokenizer:
        """The engine's own; skips the case where it says that it has none."""
        self.need(Capability.TOKENIZER)
        found: Tokenizer | None = getattr(self.engine, "tokenizer", None)
        assert found is not None, (
            "the engine has no `tokenizer`, and does not say in EngineInfo.lacks that it lacks one"
        )
        return found

    @property
    def has_tokenizer(self) -> bool:
        return self.can(Capability.TOKENIZER)

    def can(self, capability: Capability) -> bool:
        """Whether the engine does not say that it lacks the capability."""
        return capability not in dict(self.info.lacks)

    def kill_process(self) -> None:
        """SIGKILL to what makes the tokens; skips the case where the engine says that it has no process of its own."""
        if self.kill is not None:
            self.kill()
            return
        self.need(Capability.PROCESS)
        process_id: int | None = getattr(self.engine, "process_id", None)
        assert process_id, (
            "the engine has no `process_id`, and does not say in EngineInfo.lacks that it lacks a process"
        )
        os.kill(process_id, signal.SIGKILL)

    def _on_step(self, steps: Sequence[StepOutput]) -> None:
        for step in steps:
            self.steps.append(step)
            told = [output.sequence for output in step.outputs]
            assert len(told) == len(set(told)), f"a sequence is in one step twice: {told}"
            for output in step.outputs:
                made = self._made[output.sequence]
                assert not made or made[-1].finish is None, f"something came after the last output: {output}"
                assert len(output.token_ids) in {0, output.token_count}, output
                assert len(output.logprobs) <= output.token_count, output
                assert (output.error is not None) == (output.finish is FinishReason.ERROR), output
                made.append(output)
        self._changed.set()

    async def submit(
        self,
        prompt: Prompt | str,
        *,
        sequence: int | None = None,
        priority: int = 0,
        model: str = "",
        **options: Any,
    ) -> int:
        """Submits a request, greedy unless told otherwise; the sequence.

        Args:
            options: fields of `EngineRequest`, and of `Sampling`.
        """
        of_request = {name: options.pop(name) for name in list(options) if name in EngineRequest.__dataclass_fields__}
        if sequence is None:
            self._sequences += 1
            sequence = self._sequences
        await self.engine.submit(
            EngineRequest(
                sequence=sequence,
                request_id=f"request-{sequence}",
                model=model or self.model,
                prompt=Prompt(text=prompt) if isinstance(prompt, str) else prompt,
                sampling=Sampling(**{"max_tokens": 16, "temperature": 0.0, "ignore_eos": True, **options}),
                priority=priority,
                **of_request,
            )
        )
        return sequence

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


@asynccontextmanager
async def started(running: Running) -> AsyncIterator[Running]:
    """The engine, from its start to its end."""
    try:
        await running.start()
        yield running
    finally:
        await running.engine.stop(0.0)


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
