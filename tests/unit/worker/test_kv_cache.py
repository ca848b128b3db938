import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.worker.core.kv_cache import BLOCK_TOKENS, Holding, KvCache, blocks_for, chain_hashes
from services.worker.engine import BlockKind

PROMPT = list(range(10 * BLOCK_TOKENS))


def held(cache: KvCache, token_ids: list[int]) -> Holding:
    holding = cache.hold(chain_hashes(token_ids), len(token_ids))
    assert holding is not None
    return holding


def computed(cache: KvCache, token_ids: list[int]) -> Holding:
    """A sequence whose tokens are all computed."""
    holding = held(cache, token_ids)
    cache.know(holding, chain_hashes(token_ids), len(token_ids))
    return holding


def test_a_prompt_that_was_computed_is_reused_but_for_what_makes_its_next_token() -> None:
    cache = KvCache(100)
    cache.release(computed(cache, PROMPT))
    assert len(held(cache, PROMPT).shared) == 9
    assert len(held(cache, [*PROMPT, 1]).shared) == 10


def test_a_prompt_is_reused_up_to_where_it_differs() -> None:
    cache = KvCache(100)
    cache.release(computed(cache, PROMPT))
    other = [*PROMPT[: 3 * BLOCK_TOKENS + 5], 999, *PROMPT[3 * BLOCK_TOKENS + 6 :]]
    assert len(held(cache, other).shared) == 3


def test_the_same_block_after_another_beginning_is_another_block() -> None:
    same = list(range(BLOCK_TOKENS))
    first, second = chain_hashes([0] * BLOCK_TOKENS + same), chain_hashes([1] * BLOCK_TOKENS + same)
    assert first[1] != second[1]


def test_hashes_go_on_from_a_parent() -> None:
    whole = chain_hashes(PROMPT)
    assert chain_hashes(PROMPT[4 * BLOCK_TOKENS :], whole[3]) == whole[4:]


def test_what_was_left_longest_ago_is_thrown_away_first_and_its_end_before_its_beginning() -> None:
    cache = KvCache(20)
    old, new = PROMPT, [7, *PROMPT[1:]]
    cache.release(computed(cache, old))
    cache.release(computed(cache, new))
    room = cache.hold([], 5 * BLOCK_TOKENS)
    assert room is not None
    cache.release(room)
    assert len(held(cache, old[: 6 * BLOCK_TOKENS]).shared) == 5
    assert len(held(cache, [*new[:-1], 1]).shared) == 9


def test_blocks_in_use_are_never_thrown_away() -> None:
    cache = KvCache(12)
    running = computed(cache, PROMPT)
    assert cache.hold([], 3 * BLOCK_TOKENS) is None
    assert cache.usage == 10 / 12
    cache.release(running)
    assert cache.hold([], 12 * BLOCK_TOKENS) is not None


def test_two_that_computed_the_same_block_hold_it_once() -> None:
    cache = KvCache(100)
    first, second = held(cache, PROMPT), held(cache, PROMPT)
    hashes = chain_hashes(PROMPT)
    cache.know(first, hashes, len(PROMPT))
    cache.know(second, hashes, len(PROMPT))
    assert cache.available_blocks == 90
    cache.release(first)
    assert cache.available_blocks == 90
    cache.release(second)
    assert cache.available_blocks == 100


@given(st.integers(0, 10_000))
def test_blocks_hold_their_tokens_without_one_too_many(tokens: int) -> None:
    assert 0 <= blocks_for(tokens) * BLOCK_TOKENS - tokens < BLOCK_TOKENS


class AnyUseOfTheCache(RuleBasedStateMachine):
    """Whatever sequences do, blocks are conserved, and each sequence has room for what it computes."""

    @initialize(capacity=st.integers(1, 40))
    def begin(self, capacity: int) -> None:
        self.cache = KvCache(capacity)
        self.running: list[tuple[Holding, list[int], int]] = []  # holding, token ids, computed tokens

    @rule(
        start=st.integers(0, 3), length=st.integers(1, 12 * BLOCK_TOKENS), spare=st.integers(0, 3), known=st.booleans()
    )
    def hold(self, start: int, length: int, spare: int, known: bool) -> None:
        token_ids = [start, *range(1, length)]
        before = self.cache.available_blocks
        holding = self.cache.hold(chain_hashes(token_ids) if known else [], length, spare)
        if holding is None:
            assert self.cache.available_blocks == before
            return
        assert holding.blocks == blocks_for(length)
        assert len(holding.shared) * BLOCK_TOKENS < length
        assert self.cache.available_blocks >= spare
        self.running.append((holding, token_ids, len(holding.shared) * BLOCK_TOKENS))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.running) - 1))
        holding, token_ids, done = self.running[index]
        done = data.draw(st.integers(done, min(len(token_ids), holding.blocks * BLOCK_TOKENS)))
        self.cache.know(holding, chain_hashes(token_ids), done)
        self.running[index] = (holding, token_ids, done)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        holding, _, _ = data.draw(st.sampled_from(self.running))
        blocks, available = holding.blocks, self.cache.available_blocks
        assert self.cache.extend(holding) == (available > 0)
        assert holding.blocks == blocks + (available > 0)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holding, _, _ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.cache.release(holding)

    @invariant()
    def blocks_are_conserved(self) -> None:
        shared = {block for holding, _, _ in self.running for block in holding.shared}
        private = sum(holding.private for holding, _, _ in self.running)
        cache = self.cache
        assert cache.available_blocks + len(shared) + private == cache.capacity_blocks
        assert len(shared) <= cache.known_blocks <= cache.capacity_blocks
        assert 0.0 <= cache.usage <= 1.0


TestAnyUseOfTheCache = AnyUseOfTheCache.TestCase


def test_who_wants_to_know_is_told_of_every_block_that_comes_and_goes() -> None:
    cache, known = KvCache(12, told_as="m"), dict[int, tuple[int, ...]]()

    def compute(token_ids: list[int]) -> None:
        holding = held(cache, token_ids)
        cache.know(holding, chain_hashes(token_ids), len(token_ids), token_ids)
        cache.release(holding)
        for change in cache.take_changes():
            assert change.model == "m"
            if change.kind is BlockKind.REMOVED:
                for each in change.hashes:
                    del known[change_key(each)]
                continue
            assert change.parent is None or change.parent in known
            for place, each in enumerate(change.hashes):
                known[change_key(each)] = change.token_ids[place * BLOCK_TOKENS : (place + 1) * BLOCK_TOKENS]
        assert len(known) == cache.known_blocks

    def change_key(block: int | bytes) -> int:
        assert isinstance(block, int)
        return block

    for seed in range(8):
        prompt = [*PROMPT[: 3 * BLOCK_TOKENS], *[seed] * (4 * BLOCK_TOKENS)]
        compute(prompt)
        for block, tokens in zip(chain_hashes(prompt), _blocks(prompt), strict=True):
            assert known[block] == tokens


def _blocks(token_ids: list[int]) -> list[tuple[int, ...]]:
    return [tuple(token_ids[at : at + BLOCK_TOKENS]) for at in range(0, len(token_ids), BLOCK_TOKENS)]


def test_nobody_is_told_where_nobody_wants_to_know() -> None:
    cache = KvCache(100)
    computed(cache, PROMPT)
    assert cache.take_changes() == []
