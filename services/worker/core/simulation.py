"""One model on one simulated accelerator: requests in, steps with their load, outputs with their cost. Pure.

Puts together the scheduler (who is computed), the synthesis (what is said), the stop strings (when it ends) and the
attribution (who caused how much). Its caller decides how long a step takes, and tells the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.errors import DuplicateRequest, PromptTooLong, QueueFull
from services.mesh.timing import StepLoad, Timing
from services.worker.core.attribution import decode_work_s, prefill_work_s, share_out, work_units
from services.worker.core.batching import BatchLimits, Scheduler, StepPlan
from services.worker.core.kv_cache import BLOCK_TOKENS, chain_hashes
from services.worker.core.sequences import BatchedSequence
from services.worker.core.stop_strings import StopMatcher
from services.worker.core.synthesis import Answer, answer_key, natural_tokens
from services.worker.core.tokenizer import decode, encode, encode_chat, encode_prompt
from services.worker.core.tokenizer_print import PROBE, fingerprint
from services.worker.engine import BlockChange, EngineRequest, FinishReason, Prompt, SequenceOutput

TOKENIZER: Final = fingerprint(encode(PROBE))


def prompt_ids(prompt: Prompt) -> list[int]:
    """Token ids of a prompt in any of its three forms."""
    if prompt.token_ids is not None:
        return list(prompt.token_ids)
    if prompt.chat is not None:
        return encode_chat((message.role, message.content) for message in prompt.chat)
    return encode_prompt(prompt.text or "")


@dataclass(slots=True, eq=False)
class _Generation:
    """A request while it is in the engine.

    Attributes:
        known_ids: prompt, what was resumed, and what was made, for the hashes of its blocks.
        untold_ids: of the prompt, until the first output has told them; empty where nobody wants to know of blocks.
        ends_with: why it ends when it has made all of `sequence.new_tokens`.
    """

    sequence: BatchedSequence
    answer: Answer
    known_ids: list[int]
    untold_ids: Sequence[int]
    prompt_tokens: int
    ends_with: FinishReason
    submitted_s: float
    stop: StopMatcher | None
    made: int = 0
    queue_s: float | None = None

    def output(self, device_ns: int = 0, energy_uj: int = 0, *, finish: FinishReason | None = None) -> SequenceOutput:
        """What is told of the sequence where it got no token."""
        untold_ids, self.untold_ids = self.untold_ids, ()
        return SequenceOutput(
            prompt_token_ids=untold_ids,
            sequence=self.sequence.id,
            token_count=0,
            text="",
            finish=finish,
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=min(self.sequence.cached_tokens, self.prompt_tokens),
            device_ns=device_ns,
            energy_uj=energy_uj,
            queue_s=self.queue_s or 0.0,
        )


class SimulatedModel:
    """Plans steps one at a time: `plan_step`, then `complete_step`; `take_ended` has who ended without a step."""

    def __init__(
        self, model: str, timing: Timing, limits: BatchLimits, context_tokens: int, *, tells_blocks: bool = False
    ) -> None:
        """
        Args:
            context_tokens: prompt and answer together; at most what the KV cache holds.
            tells_blocks: `take_blocks` has what happens in the prefix cache, and outputs have the prompts' ids.
        """
        assert context_tokens <= limits.kv_blocks * BLOCK_TOKENS, (context_tokens, limits)
        self.model = model
        self.timing = timing
        self.context_tokens = context_tokens
        self.scheduler = Scheduler(limits, model if tells_blocks else None, timing)
        self._tells_blocks = tells_blocks
        self._root = hash(model)  # the same tokens are other blocks in another model's cache
        self._generations: dict[int, _Generation] = {}
        self._plan: StepPlan | None = None
        self._ended: list[SequenceOutput] = []

    def submit(self, request: EngineRequest, now_s: float) -> None:
        """Queues a request.

        Raises:
            PromptTooLong: the prompt leaves no room for a token in the context.
            QueueFull: as many wait as may.
            DuplicateRequest: the sequence runs already.
        """
        if request.sequence in self._generations:
            raise DuplicateRequest(f"sequence {request.sequence} runs already")
        ids = prompt_ids(request.prompt)
        prompt_tokens = len(ids)
        if prompt_tokens >= self.context_tokens:
            raise PromptTooLong(
                f"the prompt has {prompt_tokens} tokens and {self.model} takes {self.context_tokens} on this worker,"
                " answer included; send less"
            )
        if self.scheduler.is_full:
            raise QueueFull(f"{self.scheduler.waiting} requests wait for {self.model} already, which is the most")
        key = answer_key(self.model, ids, request.sampling.seed)
        resumed, made = _resumed_ids(request, key), request.resume_from
        # Tokens, counted as their index goes: another tokenizer may have made more or fewer of the same text.
        most = min(request.sampling.max_tokens, self.context_tokens - prompt_tokens - len(resumed) + made)
        natural = most + 1 if request.sampling.ignore_eos else natural_tokens(key)
        known_ids = ids + resumed
        generation = _Generation(
            sequence=BatchedSequence(
                id=request.sequence,
                prompt_tokens=prompt_tokens + len(resumed),
                new_tokens=max(1, min(most, natural) - made),
                priority=request.priority,
                block_hashes=chain_hashes(known_ids, self._root),
                token_ids=known_ids,
            ),
            answer=Answer(key, made),
            known_ids=known_ids,
            untold_ids=ids if self._tells_blocks else (),
            prompt_tokens=prompt_tokens,
            ends_with=FinishReason.STOP if natural <= most else FinishReason.LENGTH,
            submitted_s=now_s,
            stop=_stop_matcher(request.sampling.stop, resumed),
        )
        if made >= min(most, natural):
            self._ended.append(generation.output(finish=generation.ends_with))
            return
        self._generations[request.sequence] = generation
        self.scheduler.submit(generation.sequence)

    def cancel(self, sequence: int) -> bool:
        """Whether this model has the sequence. Its last output comes with the step under way, or is among the ended."""
        generation = self._generations.get(sequence)
        if generation is None:
            return False
        if self.scheduler.cancel(generation.sequence):
            del self._generations[sequence]
            self._ended.append(generation.output(finish=FinishReason.CANCELLED))
        return True

    def cancel_all(self) -> None:
        for sequence in list(self._generations):
            self.cancel(sequence)

    def plan_step(self, now_s: float) -> StepLoad | None:
        """The load of the next step; None when there is nothing to do."""
        self._plan = self.scheduler.plan_step()
        if self._plan is None:
            return None
        for sequence, _, _ in self._plan.chunks:
            generation = self._generations[sequence.id]
            if generation.queue_s is None:
                generation.queue_s = max(0.0, now_s - generation.submitted_s)
        return self._plan.load

    def complete_step(self, device_ns: int, energy_uj: int) -> tuple[SequenceOutput, ...]:
        """The planned step is done and took this much: outputs of all its sequences, whose parts add up to it."""
        plan, self._plan = self._plan, None
        assert plan is not None, "no step is planned"
        scheduler = self.scheduler
        own_s = decode_work_s(self.timing, scheduler.kv_tokens(plan.decodes))
        own_s += [prefill_work_s(self.timing, tokens, attended) for _, tokens, attended in plan.chunks]
        units = work_units(self.timing, own_s)
        parts = zip(share_out(device_ns, units), share_out(energy_uj, units), strict=True)
        stopped: list[BatchedSequence] = []
        outputs = [self._advance(self._generations[each.id], *next(parts), stopped) for each in plan.decodes]
        for sequence, tokens, _ in plan.chunks:
            generation = self._generations[sequence.id]
            if sequence.cancelled or sequence.computed_tokens + tokens < sequence.prefill_goal:
                finish = FinishReason.CANCELLED if sequence.cancelled else None
                outputs.append(generation.output(*next(parts), finish=finish))
            else:
                outputs.append(self._advance(generation, *next(parts), stopped))
        told = {each.sequence for each in outputs if each.finish is not None}
        for sequence in scheduler.complete_step(stopped):
            generation = self._generations.pop(sequence.id)
            if sequence.id not in told:
                outputs.append(generation.output(finish=FinishReason.CANCELLED))
        return tuple(outputs)

    def take_blocks(self) -> list[BlockChange]:
        """What has happened in the prefix cache since the last time."""
        return self.scheduler.kv.take_changes()

    def take_ended(self) -> tuple[SequenceOutput, ...]:
        """Last outputs of those that ended without a step: nothing left to make, or cancelled while they waited."""
        ended, self._ended = tuple(self._ended), []
        return ended

    def _advance(
        self, generation: _Generation, device_ns: int, energy_uj: int, stopped: list[BatchedSequence]
    ) -> SequenceOutput:
        """The output of a sequence that gets its next token in this step."""
        sequence = generation.sequence
        if sequence.cancelled:
            return generation.output(device_ns, energy_uj, finish=FinishReason.CANCELLED)
        token_id, text = generation.answer.next_token()
        generation.known_ids.append(token_id)
        generation.made += 1
        finish = generation.ends_with if generation.made == sequence.new_tokens else None
        if generation.stop is not None:
            text = generation.stop.feed(text)
            if generation.stop.stopped:
                finish = FinishReason.STOP
                stopped.append(sequence)
            elif finish is not None:
                text += generation.stop.flush()
        if finish is not None:
            hashes = sequence.block_hashes
            parent = hashes[-1] if hashes else self._root
            hashes += chain_hashes(generation.known_ids[len(hashes) * BLOCK_TOKENS :], parent)
        untold_ids, generation.untold_ids = generation.untold_ids, ()
        return SequenceOutput(
            prompt_token_ids=untold_ids,
            sequence=sequence.id,
            token_count=1,
            text=text,
            token_ids=(token_id,),
            finish=finish,
            prompt_tokens=generation.prompt_tokens,
            cached_prompt_tokens=min(sequence.cached_tokens, generation.prompt_tokens),
            device_ns=device_ns,
            energy_uj=energy_uj,
            queue_s=generation.queue_s or 0.0,
        )


def _resumed_ids(request: EngineRequest, key: bytes) -> list[int]:
    """Ids of the tokens delivered already: of their text where another tokenizer made them, else as they were told,
    else as this model makes them.
    """
    if request.resume_from and request.resumed_tokenizer not in ("", TOKENIZER):
        return encode(request.resumed_text)
    if len(request.resumed_token_ids) == request.resume_from:
        return list(request.resumed_token_ids)
    answer = Answer(key)
    return [answer.next_token()[0] for _ in range(request.resume_from)]


def _stop_matcher(stops: Sequence[str], resumed_ids: Sequence[int]) -> StopMatcher | None:
    """A matcher that has seen the text delivered already, for a stop string that spans the seam."""
    if not stops:
        return None
    matcher = StopMatcher(stops)
    matcher.feed(decode(resumed_ids))
    # Tokens of another engine may contain what would have stopped here: they were delivered, so it does not count.
    return StopMatcher(stops) if matcher.stopped else matcher
