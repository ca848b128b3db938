"""What a worker asks of an engine, whatever makes the tokens: a simulated accelerator, llama.cpp, vLLM, a server.

An engine runs many sequences in steps. It reports each step once, through the `on_step` callback given to `start`, with
the tokens of all sequences that got one; the worker turns a step into one frame per router and into entries for the
meter. So what costs is paid per step, not per token.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, runtime_checkable

from services.mesh.errors import ResumeRefused, Unsupported
from services.mesh.events import MODELLED
from services.mesh.features import features_needed
from services.mesh.timing import StepLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Validated sampling values; see `Sampling` in inference.proto for the ranges.

    Attributes:
        logprobs: tell each token's log probability, with this many alternatives; None: do not.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None


class ChatMessage(NamedTuple):
    """One message of a chat.

    Attributes:
        tool_calls_json: of an assistant: the calls it made, OpenAI's JSON list; empty: none.
        tool_call_id: of a tool: the call that it answers.
    """

    role: str
    content: str
    tool_calls_json: str = ""
    tool_call_id: str = ""
    name: str = ""

    def as_openai(self) -> dict[str, Any]:
        """The message as OpenAI's API and chat templates take it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls_json:
            message["tool_calls"] = json.loads(self.tool_calls_json)
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        if self.name:
            message["name"] = self.name
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Exactly one of the three is set."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    chat: tuple[ChatMessage, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A request as the engine sees it.

    Attributes:
        sequence: the worker's handle; unique among those running.
        resume_from: tokens that were delivered already; the engine makes token `resume_from` next.
        resumed_token_ids: (resume_from,) ids of the tokens delivered already, where they are known.
        resumed_text: their text, for engines that resume from text.
        resumed_tokenizer: what `resumed_token_ids` are of; empty: not known.
        priority: lower is sooner.
        tenant: whose it is; what one tenant's prompts left in a cache is not shared with another's.
    """

    sequence: int
    request_id: str
    model: str
    prompt: Prompt
    sampling: Sampling
    priority: int = 0
    resume_from: int = 0
    resumed_token_ids: tuple[int, ...] = ()
    resumed_text: str = ""
    resumed_tokenizer: str = ""
    response_format_json: str = ""
    tools_json: str = ""
    tool_choice_json: str = ""
    tenant: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        """What of an engine it needs beyond plain generation, sorted."""
        return features_needed(
            logprobs=self.sampling.logprobs is not None,
            response_format=bool(self.response_format_json),
            tools=bool(self.tools_json),
        )

    def require(self, features: Sequence[str]) -> None:
        """Checks what the request needs against an engine's `features`.

        Raises:
            Unsupported: names what is not among them.
            ResumeRefused: it needs one, and goes on after a break.
        """
        if self.resume_from and self.features:
            raise ResumeRefused(
                f"request {self.request_id} cannot go on at token {self.resume_from}: what another engine began with "
                f"{', '.join(self.features)} cannot be gone on with faithfully"
            )
        missing = [name for name in self.features if name not in features]
        if missing:
            raise Unsupported(f"{', '.join(missing)}: the engine that serves {self.model!r} here does not have it")


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class TokenLogprob(NamedTuple):
    """Log probability of one token, and of the likeliest in its place as (text, logprob), likeliest first."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


def joined_lists(one: str, other: str) -> str:
    """Two JSON lists as one; "" is an empty one."""
    return f"{one[:-1]},{other[1:]}" if one and other else one or other


@dataclass(slots=True, kw_only=True)  # not frozen: one is made per token, and a frozen one costs three times as much
class SequenceOutput:
    """What one step made for one sequence; nobody changes it.

    Attributes:
        token_count: >= 0; 0 in a last output without a token (a cancellation, an error).
        token_ids: (token_count,) or empty where the engine does not report ids.
        prompt_token_ids: of the prompt as the engine encoded it, in the sequence's first output; only from engines that
            report their blocks, and empty in all other outputs.
        finish: set in the sequence's last output.
        error: name of an error in mesh/errors.py and its message, when finish is ERROR.
        device_ns, energy_uj: this sequence's part of the step.
        logprobs: one per token where they were asked for, fewer where the engine does not know each; else empty.
        tool_calls_json: OpenAI's `delta.tool_calls`, a JSON list, where the model calls a tool; empty: none.
    """

    sequence: int
    token_count: int
    text: str
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    error: tuple[str, str] | None = None
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    device_ns: int = 0
    energy_uj: int = 0
    queue_s: float = 0.0
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls_json: str = ""
    prompt_token_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """One engine step. Several may be reported together when an engine runs ahead of its reader.

    Attributes:
        step_s: how long the step took.
        load: what was in it; None where the engine does not tell.
    """

    step_s: float
    outputs: tuple[SequenceOutput, ...]
    load: StepLoad | None = None
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """How an engine stands.

    Attributes:
        running, waiting: sequences; on a server that others use too, theirs included.
        kv_cache_usage: 0 to 1.
        slowdown: observed over modelled seconds of a step, recent; 1.0 when nothing ran.
        busy_ns, energy_uj, steps: totals since the start.
        waiting_by_priority, prefill_tokens_by_priority: see `WorkerHeartbeat`.
        max_batch: sequences that may run at once, as it was tuned; 0: as its info says.
        step_s: see `WorkerHeartbeat`.
        complaints: answers about which a server told what cannot be; `complaint` is the latest of them.
    """

    running: int
    waiting: int
    waiting_prefill_tokens: int
    kv_cache_usage: float
    slowdown: float
    power_w: float
    busy_ns: int
    energy_uj: int
    steps: int
    complaints: int = 0
    complaint: str = ""
    waiting_by_priority: tuple[int, ...] = ()
    prefill_tokens_by_priority: tuple[int, ...] = ()
    max_batch: int = 0
    step_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """Fixed facts of a started engine.

    Attributes:
        note: for a reader, e.g. why a real model is simulated on this platform; empty otherwise.
        power_source: what the engine's own watts and energy come from: "catalogue" where they are modelled; else what
            measures them there.
        elsewhere: its tokens are made on another machine, so that what is measured on this one is not theirs.
        features: which of LOGPROBS, RESPONSE_FORMAT and TOOLS it does; a request for another is refused.
        platform: what the engine says it runs on, as "kind: name", e.g. "cuda: NVIDIA H100 80GB HBM3"; empty where it
            does not say.
        tokenizer: what its token ids are of, see `core/tokenizer_print.py`; empty: it reports none, or cannot tell.
        lacks: what the contract (services/worker/contract) asks for and this engine cannot do: (capability, why).
    """

    engine: str
    simulated: bool
    models: tuple[str, ...]
    context_tokens: int
    max_batch: int
    max_waiting: int
    kv_capacity_tokens: int
    prefill_chunk_tokens: int
    note: str = ""
    power_source: str = MODELLED
    elsewhere: bool = False
    features: tuple[str, ...] = ()
    platform: str = ""
    tokenizer: str = ""
    lacks: tuple[tuple[str, str], ...] = ()


class BlockKind(StrEnum):
    STORED = "stored"
    REMOVED = "removed"
    CLEARED = "cleared"


BlockHash = int | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockChange:
    """What changed in the engine's prefix cache, in the engine's own blocks.

    Attributes:
        hashes: the engine's names of the blocks, first to last; each stands for its tokens and all before them. Empty
            where everything was cleared.
        parent: of stored blocks: the block before the first; None where they begin a prompt.
        token_ids: of stored blocks: (len(hashes) * block_tokens,) what is in them.
        block_tokens: of stored blocks: tokens in each.
        model: whose cache it is; empty where the engine serves one model.
    """

    kind: BlockKind
    hashes: tuple[BlockHash, ...] = ()
    parent: BlockHash | None = None
    token_ids: tuple[int, ...] = ()
    block_tokens: int = 0
    model: str = ""


OnStep = Callable[[Sequence[StepOutput]], None]
OnFailure = Callable[[str], None]
OnBlocks = Callable[[Sequence[BlockChange]], None]


class Engine(Protocol):
    """All methods are called from the event loop's thread; callbacks come back on it."""

    async def start(self, on_step: OnStep, on_failure: OnFailure) -> EngineInfo:
        """Loads the model and starts stepping; `on_failure` gets a reason when the engine dies later on its own.

        Raises:
            EngineFailed: the engine cannot start; the message says what would do.
        """
        ...

    async def submit(self, request: EngineRequest) -> None:
        """Queues the request; its outputs come through `on_step`, the last one with `finish` set.

        Raises:
            PromptTooLong: prompt (and what is resumed) leaves no room in the context.
            QueueFull: `max_waiting` requests wait already.
            DuplicateRequest: the sequence runs already.
            UnknownModel: the model is not served here.
            Unsupported: a feature or a sampling value that this engine cannot honour; names it.
            ResumeRefused: what was delivered before the break is not known well enough to go on from it, or the
                request has a feature that cannot be gone on with.
            EngineFailed: the engine is stopped.
        """
        ...

    def cancel(self, sequence: int) -> None:
        """Ends the sequence within one step; its last output has finish CANCELLED. Unknown sequences are ignored."""
        ...

    def stats(self) -> EngineStats:
        """How it stands; may be asked before `start`, after a failure and after `stop` too."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Ends stepping; sequences that still run after `grace_s` seconds are cancelled.

        A dead engine, and one that did not start, gives back what it holds: another may be made in this process next.
        """
        ...


@runtime_checkable
class Tunable(Protocol):
    """An engine whose steps can be made shorter while it runs, beside being an `Engine`."""

    def tune(self, model: str, step_s: float, max_batch: int) -> None:
        """From now on a model's steps that compute prompts take about `step_s` at most, and no more than `max_batch` of
        its sequences run at once; 0: as the engine was set up, whose bounds are never passed.
        """
        ...


@runtime_checkable
class ReportsBlocks(Protocol):
    """An engine that tells what its prefix cache holds, beside being an `Engine`."""

    def watch_blocks(self, on_blocks: OnBlocks) -> None:
        """Called once, before `start`: from then on `on_blocks` gets each change, in order, on the event loop's thread.

        Changes may come batched, before or after the outputs of the step that made them.
        """
        ...
