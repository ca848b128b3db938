from collections.abc import Sequence
from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.mesh.accelerators import load_catalogue
from services.worker.core.batching import BatchLimits, Scheduler, StepPlan
from services.worker.core.kv_cache import BLOCK_TOKENS, blocks_for, chain_hashes
from services.worker.core.sequences import BatchedSequence, Phase

_CATALOGUE = load_catalogue()
TIMING = _CATALOGUE.timing(_CATALOGUE.accelerator("nvidia-h100-sxm"), _CATALOGUE.model("llama-3.1-8b"))


def scheduler(
    *, max_batch: int = 8, max_waiting: int = 1000, prefill_chunk_tokens: int = 64, kv_blocks: int = 1000
) -> Scheduler:
    return Scheduler(
        BatchLimits(
            max_batch=max_batch,
            max_waiting=max_waiting,
            prefill_chunk_tokens=prefill_chunk_tokens,
            kv_blocks=kv_blocks,
        )
    )


class Run:
    """A scheduler, and what its steps have made for each sequence."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.made: dict[int, int] = {}
        self.ended: list[int] = []

    def submit(
        self, sequence: int, prompt: int, new: int, priority: int = 0, ids: Sequence[int] = ()
    ) -> BatchedSequence:
        found = BatchedSequence(
            id=sequence, prompt_tokens=prompt, new_tokens=new, priority=priority, block_hashes=chain_hashes(ids)
        )
        self.made[sequence] = 0
        self.scheduler.submit(found)
        return found

    def step(self) -> StepPlan | None:
        plan = self.scheduler.plan_step()
        if plan is None:
            return None
        for sequence in plan.decodes:
            self.made[sequence.id] += 1
        for sequence, tokens, _ in plan.chunks:
            if sequence.computed_tokens + tokens == sequence.prefill_goal:
                self.made[sequence.id] += 1
        self.ended += [sequence.id for sequence in self.scheduler.complete_step()]
        return plan

    def run(self, most_steps: int = 100_000) -> list[StepPlan]:
        plans = []
        while (plan := self.step()) is not None:
            plans.append(plan)
            assert len(plans) < most_steps, "it does not end"
        return plans


def test_a_step_mixes_chunks_of_a_prompt_with_decodes() -> None:
    run = Run(scheduler(prefill_chunk_tokens=64))
    run.submit(1, prompt=10, new=50)
    run.step()
    run.submit(2, prompt=150, new=5)
    loads = [plan.load for _ in range(4) if (plan := run.step()) is not None]
    assert [load.prefill_tokens for load in loads] == [64, 64, 22, 0]
    assert [load.decode_sequences for load in loads] == [1, 1, 1, 2]
    assert [load.kv_tokens for load in loads] == [11, 12, 13, 14 + 151]
    assert sum(load.attended_tokens for load in loads) == 150 * 151 // 2


def test_a_cached_prefix_is_not_computed_again() -> None:
    run = Run(scheduler(prefill_chunk_tokens=1000))
    ids = list(range(100))
    run.submit(1, prompt=100, new=1, ids=ids)
    run.run()
    second = run.submit(2, prompt=100, new=1, ids=ids)
    plan = run.step()
    assert plan is not None
    assert (plan.load.prefill_tokens, second.cached_tokens) == (4, 96)


def test_at_least_the_last_token_of_a_prompt_is_computed() -> None:
    run = Run(scheduler())
    ids = list(range(4 * BLOCK_TOKENS))
    run.submit(1, prompt=len(ids), new=1, ids=ids)
    run.run()
    second = run.submit(2, prompt=len(ids), new=1, ids=ids)
    run.run()
    assert second.cached_tokens == 3 * BLOCK_TOKENS
    assert run.made == {1: 1, 2: 1}


def test_lower_priority_numbers_go_first_then_who_came_first() -> None:
    run = Run(scheduler(max_batch=1))
    for sequence, priority in enumerate([1, 2, 0, 1, 0]):
        run.submit(sequence, prompt=4, new=3, priority=priority)
    run.run()
    assert run.ended == [2, 4, 0, 3, 1]


def test_an_urgent_prompt_is_computed_before_a_long_one_that_has_begun() -> None:
    run = Run(scheduler(prefill_chunk_tokens=16))
    run.submit(1, prompt=1000, new=1, priority=2)
    run.step()
    run.submit(2, prompt=16, new=1, priority=0)
    run.step()
    assert run.made == {1: 0, 2: 1}


def test_a_large_request_is_not_overtaken_for_ever_by_small_ones() -> None:
    run = Run(scheduler(kv_blocks=10, max_batch=4))
    run.submit(0, prompt=9 * BLOCK_TOKENS, new=2)
    run.submit(1, prompt=9 * BLOCK_TOKENS, new=2)
    for sequence in range(2, 100):
        run.submit(sequence, prompt=BLOCK_TOKENS, new=4)
    run.run()
    assert run.ended.index(1) < 2


def test_a_full_cache_preempts_the_last_and_computes_it_again() -> None:
    run = Run(scheduler(kv_blocks=8))
    first = run.submit(1, prompt=3 * BLOCK_TOKENS, new=2 * BLOCK_TOKENS)
    second = run.submit(2, prompt=3 * BLOCK_TOKENS, new=2 * BLOCK_TOKENS)
    run.run()
    assert run.made == {1: 2 * BLOCK_TOKENS, 2: 2 * BLOCK_TOKENS}
    assert first.preemptions == 0
    assert second.preemptions >= 1
    assert run.ended == [1, 2]


def test_a_cancelled_sequence_frees_slot_and_blocks_with_the_step_under_way() -> None:
    run = Run(scheduler(max_batch=1, kv_blocks=10))
    running = run.submit(1, prompt=20, new=100)
    run.submit(2, prompt=20, new=1)
    run.step()
    plan = run.scheduler.plan_step()
    assert plan is not None
    assert run.scheduler.cancel(running) is False
    assert run.scheduler.complete_step() == [running]
    assert (run.scheduler.running, run.scheduler.kv.available_blocks) == (0, 10)
    following = run.scheduler.plan_step()
    assert following is not None
    assert [sequence.id for sequence, _, _ in following.chunks] == [2]


def test_a_cancelled_sequence_that_waits_leaves_at_once() -> None:
    run = Run(scheduler(max_batch=1))
    run.submit(1, prompt=20, new=100)
    waiting = run.submit(2, prompt=20, new=1)
    run.step()
    assert run.scheduler.cancel(waiting) is True
    assert run.scheduler.cancel(waiting) is False
    assert (run.scheduler.waiting, run.scheduler.uncomputed_tokens) == (0, 0)


def test_a_step_with_many_decodes_visits_none_of_them() -> None:
    run = Run(scheduler(max_batch=300, prefill_chunk_tokens=10_000))
    sequences = [run.submit(index, prompt=BLOCK_TOKENS + index % BLOCK_TOKENS, new=1000) for index in range(256)]
    run.step()
    before = [(each.made_base, each.length_base) for each in sequences]
    plan = run.step()
    assert plan is not None
    assert plan.load.decode_sequences == 256
    assert [(each.made_base, each.length_base) for each in sequences] == before


REQUEST = st.tuples(
    st.integers(1, 150),  # prompt tokens
    st.integers(1, 60),  # new tokens
    st.integers(0, 2),  # priority
    st.integers(0, 2),  # which prompt
)


@settings(deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=30), st.integers(14, 60), st.integers(1, 6), st.integers(16, 200))
def test_every_sequence_gets_all_its_tokens_however_tight_the_cache(
    requests: list[tuple[int, int, int, int]], kv_blocks: int, max_batch: int, chunk: int
) -> None:
    run = Run(scheduler(kv_blocks=kv_blocks, max_batch=max_batch, prefill_chunk_tokens=chunk))
    for sequence, (prompt, new, priority, which) in enumerate(requests):
        run.submit(sequence, prompt, new, priority, [which] * prompt)
    for plan in run.run():
        assert 0 <= plan.load.prefill_tokens <= chunk
        assert len(plan.decodes) + len(plan.chunks) <= max_batch
    assert run.made == {sequence: request[1] for sequence, request in enumerate(requests)}
    assert sorted(run.ended) == list(range(len(requests)))
    assert run.scheduler.kv.available_blocks == kv_blocks
    assert run.scheduler.uncomputed_tokens == 0


class AnyUseOfTheScheduler(RuleBasedStateMachine):
    """Whatever comes, is cancelled or stops: sums, blocks and slots are as they should be after every step."""

    @initialize(kv_blocks=st.integers(14, 40), max_batch=st.integers(1, 6), chunk=st.integers(16, 100))
    def begin(self, kv_blocks: int, max_batch: int, chunk: int) -> None:
        self.scheduler = scheduler(kv_blocks=kv_blocks, max_batch=max_batch, prefill_chunk_tokens=chunk, max_waiting=10)
        self.there: dict[int, BatchedSequence] = {}
        self.made: dict[int, int] = {}
        self.plan: StepPlan | None = None
        self.next_id = 0

    @precondition(lambda self: not self.scheduler.is_full)
    @rule(request=REQUEST)
    def submit(self, request: tuple[int, int, int, int]) -> None:
        prompt, new, priority, which = request
        self.next_id += 1
        sequence = BatchedSequence(
            id=self.next_id,
            prompt_tokens=prompt,
            new_tokens=new,
            priority=priority,
            block_hashes=chain_hashes([which] * prompt),
        )
        self.scheduler.submit(sequence)
        self.there[sequence.id], self.made[sequence.id] = sequence, 0

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = self.there[data.draw(st.sampled_from(sorted(self.there)))]
        was_cancelled = sequence.cancelled
        if self.scheduler.cancel(sequence):
            assert not was_cancelled
            del self.there[sequence.id]

    @precondition(lambda self: self.plan is None)
    @rule()
    def plan_step(self) -> None:
        self.plan = self.scheduler.plan_step()
        if self.plan is None:
            assert not self.there, "nobody may be left behind"
            return
        assert self.plan.load.prefill_tokens + self.plan.load.decode_sequences > 0
        assert self.plan.load.prefill_tokens <= self.scheduler.limits.prefill_chunk_tokens
        assert (
            self.plan.load.kv_tokens
            == sum(each.prompt_tokens + self.made[each.id] for each in self.plan.decodes)
            == sum(self.scheduler.kv_tokens(self.plan.decodes))
        )

    @precondition(lambda self: self.plan is not None)
    @rule(stops=st.booleans())
    def complete_step(self, stops: bool) -> None:
        assert self.plan is not None
        got_one = [
            *self.plan.decodes,
            *(each for each, tokens, _ in self.plan.chunks if each.computed_tokens + tokens == each.prefill_goal),
        ]
        for sequence in got_one:
            self.made[sequence.id] += 1
        stopped = got_one[:1] if stops else []
        due = {each.id for each in got_one if self.made[each.id] == each.new_tokens}
        due |= {each.id for each in self.there.values() if each.cancelled} | {each.id for each in stopped}
        ended = self.scheduler.complete_step(stopped)
        self.plan = None
        assert len(ended) == len({each.id for each in ended})
        assert {each.id for each in ended} == due
        for sequence in ended:
            assert sequence.made_tokens == self.made[sequence.id]
            del self.there[sequence.id]

    @invariant()
    def sums_are_right(self) -> None:
        scheduler, there = self.scheduler, self.there.values()
        assert scheduler.running + scheduler.waiting == len(self.there)
        assert scheduler.running <= scheduler.limits.max_batch
        prompts = [each for each in there if each.phase in {Phase.WAITING, Phase.PREFILL}]
        assert scheduler.uncomputed_tokens == sum(each.prefill_goal - each.computed_tokens for each in prompts)
        for sequence in there:
            assert scheduler.made_tokens(sequence) == self.made[sequence.id]

    @invariant()
    def blocks_are_conserved_and_hold_what_is_computed(self) -> None:
        kv = self.scheduler.kv
        shared = {block for each in self.there.values() for block in each.holding.shared}
        private = sum(each.holding.private for each in self.there.values())
        assert kv.available_blocks + len(shared) + private == kv.capacity_blocks
        for each in self.there.values():
            if each.phase is Phase.WAITING:
                assert each.holding.blocks == 0
            if each.phase is Phase.PREFILL:
                assert each.holding.blocks == blocks_for(each.prefill_goal)
            if each.phase is Phase.DECODE:
                written = each.prompt_tokens + self.made[each.id] - (self.plan is None)
                assert each.holding.blocks == blocks_for(written)


AnyUseOfTheScheduler.TestCase.settings = settings(deadline=None, stateful_step_count=60, max_examples=60)
TestAnyUseOfTheScheduler = AnyUseOfTheScheduler.TestCase


def _timed(step_s: float, max_batch: int = 0, chunk: int = 2048) -> Scheduler:
    limits = BatchLimits(max_batch=64, max_waiting=100, prefill_chunk_tokens=chunk, kv_blocks=20_000)
    scheduler = Scheduler(limits, timing=TIMING)
    scheduler.tune(step_s, max_batch)
    return scheduler


@given(step_s=st.floats(0.001, 0.2), prompts=st.lists(st.integers(1, 30_000), min_size=1, max_size=6))
@settings(deadline=None)
def test_steps_that_compute_prompts_take_no_longer_than_tuned_and_all_get_done(
    step_s: float, prompts: list[int]
) -> None:
    scheduler = _timed(step_s)
    for number, prompt in enumerate(prompts):
        scheduler.submit(BatchedSequence(id=number, prompt_tokens=prompt, new_tokens=3))
    ended = 0
    while (plan := scheduler.plan_step()) is not None:
        reading_s = 1.125 * TIMING.step_s(replace(plan.load, prefill_tokens=0, attended_tokens=0, decode_sequences=1))
        if plan.load.prefill_tokens > BLOCK_TOKENS:
            assert TIMING.step_s(plan.load) <= max(step_s, reading_s) + 1e-9
        ended += len(scheduler.complete_step())
    assert ended == len(prompts)


def test_no_more_run_at_once_than_tuned_and_never_more_than_the_limits_say() -> None:
    for asked, runs in ((2, 2), (0, 64), (500, 64)):
        scheduler = _timed(0.0, asked)
        for number in range(100):
            scheduler.submit(BatchedSequence(id=number, prompt_tokens=10, new_tokens=50))
        assert scheduler.plan_step() is not None
        assert scheduler.running == scheduler.max_batch == runs
