"""Continuous batching: which sequences the next engine step computes, and how much of each.

In: sequences that come, that are cancelled, that found their stop string. Out: the plan of each step, with its load for
the timing model, and who has left when it is complete. Pure: a step takes as long as its caller says.

Every step decodes one token for every sequence that is past its prompt, and computes up to `prefill_chunk_tokens`
tokens of prompt, of those that come first by priority, then by arrival; a long prompt takes several steps. Where a
step is to take no longer than `tune` says, fewer: as many as its decodes leave time for, by the timing model. The step
that completes a prompt makes its first token. A sequence is taken up when a slot and blocks for its whole prompt are
free, with 1 % of the cache to spare for the others' growth; nobody overtakes the first in the queue, however small, so
nobody starves behind those of the same priority. When a decoding sequence needs a block and there is none, the last in
order gives up its blocks and goes back to its place in the queue; it is computed again later, from what is still
cached (recompute, as vLLM does it).

Cost. All decoding sequences advance in lockstep, so a step does not visit them: a wheel of `BLOCK_TOKENS` buckets holds
who needs a block at which step, a calendar holds who makes the last token when, and sums are kept as differences.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.priorities import RANKS, by_rank
from services.mesh.timing import StepLoad, Timing
from services.worker.core.kv_cache import BLOCK_TOKENS, Holding, KvCache, blocks_for
from services.worker.core.sequences import BatchedSequence, Phase

_SPARE_PART: Final = 100  # one block in so many stays free when a sequence is taken up


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Bounds of a scheduler; all >= 1.

    Attributes:
        max_batch: sequences that are prefilled or decode at once.
        max_waiting: sequences that may wait; preempted ones come on top.
        prefill_chunk_tokens: prompt tokens per step.
        kv_blocks: blocks of the KV cache.
    """

    max_batch: int
    max_waiting: int
    prefill_chunk_tokens: int
    kv_blocks: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes.

    Attributes:
        chunks: (sequence, tokens >= 1, tokens that these attend to, summed).
        decodes: sequences that get one token each; those whose prompt a chunk completes get one too.
    """

    load: StepLoad
    chunks: tuple[tuple[BatchedSequence, int, int], ...]
    decodes: tuple[BatchedSequence, ...]


class Scheduler:
    """Plans steps one at a time: `plan_step`, then `complete_step`."""

    def __init__(self, limits: BatchLimits, blocks_told_as: str | None = None, timing: Timing | None = None) -> None:
        """
        Args:
            blocks_told_as: see `KvCache`.
            timing: what steps are expected to take; without, `tune` bounds no step.
        """
        self.limits = limits
        self._timing = timing
        self._step_s = 0.0
        self._max_batch = limits.max_batch
        self.kv = KvCache(limits.kv_blocks, blocks_told_as)
        self._arrivals = 0
        self._step = 0
        self._in_flight: StepPlan | None = None
        self._waiting: list[BatchedSequence] = []  # by order
        self._prefilling: list[BatchedSequence] = []  # by order
        self._decoding: dict[int, BatchedSequence] = {}
        self._decode_kv_tokens = 0  # read by the decodes of the next step
        self._wheel: tuple[dict[int, BatchedSequence], ...] = tuple({} for _ in range(BLOCK_TOKENS))
        self._calendar: dict[int, dict[int, BatchedSequence]] = {}  # step -> who makes the last token in it
        self._cancelled: list[BatchedSequence] = []  # leave with the step under way
        self._uncomputed_tokens = [0] * RANKS
        self._preempting = False
        self._blocked: tuple[BatchedSequence, int] | None = None  # the first in the queue, blocks available to it

    def tune(self, step_s: float, max_batch: int) -> None:
        """From now on, steps that compute prompts take about `step_s` at most, and at most `max_batch` sequences run at
        once; 0: as `limits` say, which are never passed. What runs already goes on.
        """
        self._step_s = step_s
        self._max_batch = min(max_batch or self.limits.max_batch, self.limits.max_batch)

    @property
    def max_batch(self) -> int:
        """Sequences that may run at once."""
        return self._max_batch

    @property
    def step_s(self) -> float:
        """What steps that compute prompts take at most, about; 0: their tokens alone are bounded."""
        return self._step_s if self._timing is not None else 0.0

    @property
    def running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def uncomputed_tokens(self) -> int:
        """Prompt tokens queued or begun, and not computed yet."""
        return sum(self._uncomputed_tokens)

    @property
    def uncomputed_by_rank(self) -> tuple[int, ...]:
        """The same by rank of priority."""
        return tuple(self._uncomputed_tokens)

    @property
    def waiting_by_rank(self) -> tuple[int, ...]:
        """How many wait, by rank of priority."""
        return by_rank((each.priority, 1) for each in self._waiting)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self.limits.max_waiting

    def fits(self, prompt_tokens: int, new_tokens: int) -> bool:
        """Whether a sequence fits into the cache when it is alone. The last new token is never computed on."""
        return blocks_for(prompt_tokens + new_tokens - 1) <= self.kv.capacity_blocks

    def made_tokens(self, sequence: BatchedSequence) -> int:
        """New tokens that the completed steps have made for the sequence."""
        return sequence.made_base + self._step if sequence.phase is Phase.DECODE else sequence.made_tokens

    def kv_tokens(self, decodes: Sequence[BatchedSequence]) -> list[int]:
        """Tokens of KV cache that each of the planned decodes reads."""
        step = self._step
        return [each.length_base + step for each in decodes]

    def submit(self, sequence: BatchedSequence) -> None:
        """Queues a sequence that `fits`, while not `is_full`."""
        assert not self.is_full, f"{self.waiting} wait already"
        assert self.fits(sequence.prompt_tokens, sequence.new_tokens), "it could never run"
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._enqueue(sequence)

    def cancel(self, sequence: BatchedSequence) -> bool:
        """True: the sequence has left. False: it leaves when the step under way is complete, or has left before."""
        if sequence.phase is Phase.ENDED or sequence.cancelled:
            return False
        sequence.cancelled = True
        if sequence.phase is not Phase.WAITING and self._in_flight is not None:
            self._cancelled.append(sequence)
            return False
        self._end(sequence)
        return True

    def plan_step(self) -> StepPlan | None:
        """What the next step computes; None when there is nothing to do."""
        assert self._in_flight is None, "the step before is not complete"
        self._preempting = False
        self._grow()
        # Blocks that a preemption has freed are for those that run.
        if not self._preempting:
            self._admit()
        chunks = self._chunks()
        if not chunks and not self._decoding:
            return None
        load = StepLoad(
            prefill_tokens=sum(tokens for _, tokens, _ in chunks),
            attended_tokens=sum(attended for _, _, attended in chunks),
            decode_sequences=len(self._decoding),
            kv_tokens=self._decode_kv_tokens,
        )
        self._in_flight = StepPlan(load, chunks, tuple(self._decoding.values()))
        return self._in_flight

    def like_it(self, most: int) -> int:
        """How many steps after the one in flight will decode the same sequences and do nothing else, where nobody
        comes, is cancelled or stops, and nothing is tuned; `most` at most. In the last of them somebody may end.
        """
        plan = self._in_flight
        assert plan is not None, "no step is planned"
        # Who waits now found no room, and decodes only take more; but after a preemption nobody has looked.
        if plan.chunks or self._prefilling or self._cancelled or (self._preempting and self._waiting):
            return 0
        steps = min(most, min(self._calendar) - self._step)
        room = self.kv.available_blocks
        for ahead in range(1, steps + 1):
            room -= len(self._wheel[(self._step + ahead) % BLOCK_TOKENS])
            if room < 0:
                return ahead - 1
        return steps

    def skip(self, steps: int) -> StepPlan:
        """As `complete_step` and `plan_step` in turns, `steps` times, where `like_it` said that they are alike.

        Returns:
            The plan that is in flight then.
        """
        plan = self._in_flight
        assert plan is not None, "no step is planned"
        for _ in range(steps):
            self._step += 1
            for sequence in self._wheel[self._step % BLOCK_TOKENS].values():
                grown = self.kv.extend(sequence.holding)
                assert grown, "there is room for steps that are alike"
        sequences = len(self._decoding)
        self._decode_kv_tokens += steps * sequences
        self._in_flight = StepPlan(
            StepLoad(decode_sequences=sequences, kv_tokens=self._decode_kv_tokens), (), plan.decodes
        )
        return self._in_flight

    def complete_step(self, stopped: Iterable[BatchedSequence] = ()) -> list[BatchedSequence]:
        """The planned step is done: every planned token is made.

        Args:
            stopped: sequences whose token of this step was their last, before `new_tokens`.

        Returns:
            Who has left: made all tokens, stopped, or was cancelled.
        """
        plan = self._in_flight
        assert plan is not None, "no step is planned"
        self._in_flight = None
        ended = list(self._calendar.pop(self._step, {}).values())
        self._step += 1
        self._decode_kv_tokens += len(self._decoding)
        for sequence, tokens, _ in plan.chunks:
            self._advance_prefill(sequence, tokens, ended)
        leaving = list(dict.fromkeys((*ended, *stopped, *self._cancelled)))
        self._cancelled.clear()
        for each in leaving:
            self._end(each)
        return leaving

    def _advance_prefill(self, sequence: BatchedSequence, tokens: int, ended: list[BatchedSequence]) -> None:
        sequence.computed_tokens += tokens
        self._uncomputed_tokens[sequence.rank] -= tokens
        self._know(sequence)
        if sequence.computed_tokens < sequence.prefill_goal:
            return
        self._prefilling.remove(sequence)
        self._begin_decode(sequence)
        if sequence.made_tokens >= sequence.new_tokens:
            ended.append(sequence)

    def _begin_decode(self, sequence: BatchedSequence) -> None:
        """The prompt is computed and has given the first token, which the next step reads."""
        length = sequence.prefill_goal + 1
        sequence.made_tokens += 1
        sequence.phase = Phase.DECODE
        sequence.made_base = sequence.made_tokens - self._step
        sequence.length_base = length - self._step
        self._decoding[sequence.id] = sequence
        self._decode_kv_tokens += length
        # A token at a position that is a multiple of the block opens one; step t writes position length_base + t - 1.
        self._wheel[(1 - sequence.length_base) % BLOCK_TOKENS][sequence.id] = sequence
        last_step = sequence.new_tokens - 1 - sequence.made_base
        self._calendar.setdefault(last_step, {})[sequence.id] = sequence

    def _leave_decode(self, sequence: BatchedSequence) -> None:
        sequence.made_tokens = sequence.made_base + self._step
        # The newest token was made but not computed on.
        sequence.computed_tokens = sequence.length_base + self._step - 1
        del self._decoding[sequence.id]
        self._decode_kv_tokens -= sequence.length_base + self._step
        del self._wheel[(1 - sequence.length_base) % BLOCK_TOKENS][sequence.id]
        last_step = sequence.new_tokens - 1 - sequence.made_base
        if day := self._calendar.get(last_step):
            day.pop(sequence.id, None)
            if not day:
                del self._calendar[last_step]

    def _grow(self) -> None:
        """A block for every decoding sequence whose next token opens one."""
        for sequence in list(self._wheel[self._step % BLOCK_TOKENS].values()):
            while sequence.phase is Phase.DECODE and not self.kv.extend(sequence.holding):
                self._preempt()

    def _preempt(self) -> None:
        """The last in order among those that run gives up its blocks."""
        last = max(self._decoding.values(), key=lambda each: each.order)
        if self._prefilling and self._prefilling[-1].order > last.order:
            last = self._prefilling[-1]
        self._preempting = True
        last.preemptions += 1
        self._leave(last)
        last.computed_tokens = 0
        self._enqueue(last)

    def _admit(self) -> None:
        budget = self.limits.prefill_chunk_tokens
        backlog = sum(each.prefill_goal - each.computed_tokens for each in self._prefilling)
        while self._waiting and self.running < self._max_batch:
            first = self._waiting[0]
            if backlog >= budget and self._prefilling and first.order > self._prefilling[-1].order:
                return  # its turn is not in this step
            if self._blocked is not None and self._blocked == (first, self.kv.available_blocks):
                return
            spare = self.kv.capacity_blocks // _SPARE_PART if self.running else 0
            holding = self.kv.hold(first.block_hashes, first.prefill_goal, spare)
            if holding is None:
                self._blocked = (first, self.kv.available_blocks)
                return
            self._blocked = None
            del self._waiting[0]
            self._take_up(first, holding)
            backlog += first.prefill_goal - first.computed_tokens

    def _take_up(self, sequence: BatchedSequence, holding: Holding) -> None:
        sequence.holding = holding
        sequence.computed_tokens = len(holding.shared) * BLOCK_TOKENS
        self._uncomputed_tokens[sequence.rank] -= sequence.computed_tokens
        if not sequence.started:
            sequence.started = True
            sequence.cached_tokens = sequence.computed_tokens
        sequence.phase = Phase.PREFILL
        insort(self._prefilling, sequence, key=lambda each: each.order)

    def _chunks(self) -> tuple[tuple[BatchedSequence, int, int], ...]:
        left, left_s, timing = self.limits.prefill_chunk_tokens, 0.0, self._timing if self._step_s > 0 else None
        if timing is not None:
            left_s = timing.prefill_room_s(self._step_s, len(self._decoding), self._decode_kv_tokens)
        chunks: list[tuple[BatchedSequence, int, int]] = []
        for sequence in self._prefilling:
            if left <= 0:
                break
            done = sequence.computed_tokens
            tokens = min(left, sequence.prefill_goal - done)
            left -= tokens
            if timing is not None:
                attended = done + tokens / 2
                if (within := timing.prefill_within(left_s, attended)) < tokens:
                    # Whole blocks; and one at least, or it would never go on.
                    within = int(max(within, 0.0 if chunks else BLOCK_TOKENS)) // BLOCK_TOKENS * BLOCK_TOKENS
                    tokens, left = min(tokens, within), 0
                    if not tokens:
                        break
                left_s -= tokens * (timing.prefill_s_per_token + timing.prefill_s_per_attended_token * attended)
            # The token at position p attends to p + 1 tokens, itself included.
            chunks.append((sequence, tokens, tokens * (2 * done + tokens + 1) // 2))
        return tuple(chunks)

    def _enqueue(self, sequence: BatchedSequence) -> None:
        sequence.phase = Phase.WAITING
        self._uncomputed_tokens[sequence.rank] += sequence.prefill_goal
        insort(self._waiting, sequence, key=lambda each: each.order)

    def _leave(self, sequence: BatchedSequence) -> None:
        """Out of queue or batch, with its blocks given back; what they hold stays reusable."""
        if sequence.phase is Phase.DECODE:
            self._leave_decode(sequence)
        else:
            (self._waiting if sequence.phase is Phase.WAITING else self._prefilling).remove(sequence)
            self._uncomputed_tokens[sequence.rank] -= sequence.prefill_goal - sequence.computed_tokens
        self._know(sequence)
        self.kv.release(sequence.holding)

    def _know(self, sequence: BatchedSequence) -> None:
        self.kv.know(sequence.holding, sequence.block_hashes, sequence.computed_tokens, sequence.token_ids)

    def _end(self, sequence: BatchedSequence) -> None:
        self._leave(sequence)
        sequence.phase = Phase.ENDED
