"""From the engine's blocks to the links that routers know: what is held is told, what is dropped too, and no more."""

from hypothesis import given
from hypothesis import strategies as st

from services.mesh.prefix_chain import Chain, chain_of_text, chain_of_token_ids
from services.worker.core.kv_cache import BLOCK_TOKENS, chain_hashes
from services.worker.core.prefix_view import LinkChanges, PrefixView
from services.worker.core.tokenizer import encode_prompt
from services.worker.engine import BlockChange, BlockKind

TEXT = "So shaken as we are, so wan with care, find we a time for frighted peace to pant. " * 40


def stored(token_ids: list[int], start: int = 0, end: int | None = None, model: str = "") -> BlockChange:
    """The engine stored the full blocks of these tokens, from block `start` to before `end`."""
    hashes = chain_hashes(token_ids)
    end = len(hashes) if end is None else end
    return BlockChange(
        kind=BlockKind.STORED,
        hashes=tuple(hashes[start:end]),
        parent=hashes[start - 1] if start else None,
        token_ids=tuple(token_ids[start * BLOCK_TOKENS : end * BLOCK_TOKENS]),
        block_tokens=BLOCK_TOKENS,
        model=model,
    )


def removed(*hashes: int) -> BlockChange:
    return BlockChange(kind=BlockKind.REMOVED, hashes=hashes)


def prompt(text: str, tenant: str = "t") -> tuple[Chain, list[int]]:
    return chain_of_text(tenant, "m", text), encode_prompt(text)


def test_the_first_word_is_that_nothing_is_held() -> None:
    view = PrefixView()
    assert view.take() == LinkChanges(reset=True, held=(), dropped=())
    assert view.take() is None


def test_a_computed_prompt_holds_the_links_whose_tokens_lie_in_full_blocks() -> None:
    view = PrefixView()
    chain, ids = prompt(TEXT)
    view.changed([stored(ids)])
    view.prompted("m", chain, ids)
    told = view.take()
    assert told is not None
    full = len(ids) // BLOCK_TOKENS * BLOCK_TOKENS
    expected = [link for link, end in zip(chain.links, chain.ends, strict=False) if end * len(ids) / chain.size <= full]
    assert list(told.held) == expected
    assert len(chain.links) - 1 <= len(expected) <= len(chain.links)


def test_it_makes_no_difference_which_is_told_first() -> None:
    chain, ids = prompt(TEXT)
    early, late = PrefixView(), PrefixView()
    early.changed([stored(ids)])
    early.prompted("m", chain, ids)
    late.prompted("m", chain, ids)  # not even the size of a block is known
    for block in range(len(ids) // BLOCK_TOKENS):
        late.changed([stored(ids, block, block + 1)])
    assert late.take() == early.take()


def test_half_a_prompt_in_the_cache_holds_half_its_links() -> None:
    view = PrefixView()
    chain, ids = prompt(TEXT)
    half = len(ids) // BLOCK_TOKENS // 2
    view.changed([stored(ids, 0, half)])
    view.prompted("m", chain, ids)
    told = view.take()
    assert told is not None
    assert 0 < len(told.held) <= len(chain.links) // 2 + 1
    view.changed([stored(ids, half)])
    more = view.take()
    assert more is not None
    assert not more.reset
    assert told.held + more.held == chain.links[: len(told.held) + len(more.held)]


def test_links_end_at_the_very_token_where_the_prompt_is_token_ids() -> None:
    view = PrefixView()
    ids = list(range(64 * 5))
    chain = chain_of_token_ids("t", "m", ids)
    view.changed([stored(ids, 0, 8)])
    view.prompted("m", chain, ids)
    told = view.take()
    assert told is not None
    assert told.held == chain.links[:2]  # 64 tokens each, four blocks


def test_a_prompt_that_reuses_anothers_blocks_is_held_as_far() -> None:
    view = PrefixView()
    chain, ids = prompt(TEXT)
    view.changed([stored(ids)])
    view.prompted("m", chain, ids)
    view.take()
    other, other_ids = prompt(TEXT[:2000] + "x" * 3000, tenant="another")
    view.prompted("m", other, other_ids)
    told = view.take()
    assert told is not None
    assert told.held == other.links[: len(told.held)]
    assert 5 <= len(told.held) <= 8


def test_a_link_is_dropped_with_any_of_its_blocks_and_comes_back_with_the_prompt() -> None:
    view = PrefixView()
    chain, ids = prompt(TEXT)
    hashes = chain_hashes(ids)
    view.changed([stored(ids)])
    view.prompted("m", chain, ids)
    view.take()
    view.changed([removed(hashes[-1], hashes[0])])
    told = view.take()
    assert told is not None
    assert chain.links[0] in told.dropped
    assert not told.held
    view.changed([stored(ids, 0, 1), stored(ids, len(hashes) - 1)])
    view.prompted("m", chain, ids)
    again = view.take()
    assert again is not None
    assert set(again.held) == set(told.dropped)


def test_what_came_and_went_between_two_tellings_is_not_told() -> None:
    view = PrefixView()
    chain, ids = prompt(TEXT)
    view.take()
    view.changed([stored(ids)])
    view.prompted("m", chain, ids)
    view.changed([removed(*chain_hashes(ids))])
    assert view.take() is None


def test_a_cleared_cache_is_told_as_nothing_held() -> None:
    view = PrefixView()
    chain, ids = prompt(TEXT)
    view.changed([stored(ids)])
    view.prompted("m", chain, ids)
    view.take()
    view.changed([BlockChange(kind=BlockKind.CLEARED)])
    assert view.take() == LinkChanges(reset=True, held=(), dropped=())


def test_everything_can_be_told_anew() -> None:
    view = PrefixView()
    chain, ids = prompt(TEXT)
    view.changed([stored(ids)])
    view.prompted("m", chain, ids)
    told = view.take()
    view.announce_all()
    assert view.take() == told


def test_the_same_tokens_of_two_models_are_two_prompts() -> None:
    view = PrefixView()
    chain, ids = prompt(TEXT)
    view.changed([stored(ids, model="m"), stored([9] * 64, model="n")])
    view.take()
    view.prompted("n", chain, ids)
    assert view.take() is None
    view.prompted("m", chain, ids)
    assert view.take() is not None


def test_links_used_least_recently_give_way_and_are_told_as_dropped() -> None:
    view = PrefixView(most_links=8)
    told: set[int] = set()
    for letter in "abcd":
        chain, ids = prompt(letter * 4 + TEXT[:1200])
        view.changed([stored(ids)])
        view.prompted("m", chain, ids)
        changes = view.take()
        assert changes is not None
        told = (told | set(changes.held)) - set(changes.dropped)
    assert len(view) == len(told) == 8


def test_blocks_beyond_the_bound_are_forgotten_oldest_first() -> None:
    view = PrefixView(most_blocks=64)
    for seed in range(20):
        ids = list(range(seed * 1000, seed * 1000 + 16 * BLOCK_TOKENS))
        view.changed([stored(ids)])
        view.prompted("m", chain_of_token_ids("t", "m", ids), ids)
    assert view.blocks <= 64
    assert 0 < len(view) <= 16


def test_prompts_whose_blocks_never_come_are_not_kept_for_ever() -> None:
    view = PrefixView(most_waiting=4)
    view.changed([stored([1] * BLOCK_TOKENS)])
    for seed in range(100):
        ids = list(range(seed, seed + 200))
        for _ in range(3):
            view.prompted("m", chain_of_token_ids("t", "m", ids), ids)
    assert view.waiting <= 16


BLOCKS = [list(range(at, at + BLOCK_TOKENS)) for at in range(0, 6 * BLOCK_TOKENS, BLOCK_TOKENS)]
PROMPTS = st.lists(st.sampled_from(range(6)), min_size=4, max_size=12)
STEPS = st.lists(
    st.tuples(st.sampled_from(["store", "prompt", "remove", "clear", "tell"]), PROMPTS, st.integers(0, 11)), max_size=30
)


@given(STEPS)
def test_what_a_router_was_told_is_what_the_cache_holds(steps: list[tuple[str, list[int], int]]) -> None:
    """Token ids, so that links and blocks end at the same places: a link of four blocks is held when they all are."""
    view, told = PrefixView(), set[int]()
    blocks: set[int] = set()
    prompts: dict[tuple[int, ...], Chain] = {}

    def hear() -> None:
        changes = view.take()
        if changes is not None:
            told.difference_update(told if changes.reset else changes.dropped)
            told.update(changes.held)

    for kind, which, place in steps:
        ids = [each for block in which for each in BLOCKS[block]]
        hashes = chain_hashes(ids)
        match kind:
            case "store":
                view.changed([stored(ids)])
                blocks |= set(hashes)
            case "prompt":
                chain = prompts[tuple(ids)] = chain_of_token_ids("t", "m", ids)
                view.prompted("m", chain, ids)
            case "remove":
                gone = hashes[place % len(hashes) :]
                view.changed([removed(*gone)])
                blocks -= set(gone)
            case "clear":
                view.changed([BlockChange(kind=BlockKind.CLEARED)])
                blocks.clear()
            case "tell":
                hear()
    hear()
    for ids_of, chain in prompts.items():
        hashes = chain_hashes(ids_of)
        for place, link in enumerate(chain.links):
            if link in told:
                assert set(hashes[4 * place : 4 * place + 4]) <= blocks
    view.announce_all()
    before = set(told)
    hear()
    assert told == before
