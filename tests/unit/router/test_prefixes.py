"""Who is expected to hold which beginnings of prompts: as workers tell, or as prompts were sent to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.events import PrefixesChanged
from services.mesh.prefix_chain import Chain, chain_of_text
from services.router.core.prefixes import Cached, PrefixIndex

SYSTEM = ("You answer questions about the works of William Shakespeare. " * 22)[:1280]


def chain(text: str) -> Chain:
    return chain_of_text("t", "m", text)


def told(
    sequence: int, *, held: tuple[int, ...] = (), dropped: tuple[int, ...] = (), reset: bool = False
) -> PrefixesChanged:
    return PrefixesChanged(
        worker="w", epoch="e", sequence=sequence, reset=reset, held=held, dropped=dropped, at_unix_ms=0
    )


def tokens_at(index: PrefixIndex, prompt: Chain, slot: int, model: str = "m") -> float:
    """Of a prompt of a thousand tokens."""
    return dict(index.expected(model, prompt, 1000).each()).get(slot, 0.0)


def share(index: PrefixIndex, prompt: Chain, slot: int, model: str = "m") -> float:
    return tokens_at(index, prompt, slot, model) / 1000


def test_the_worker_that_was_sent_the_longest_common_beginning_is_expected_to_hold_it() -> None:
    index = PrefixIndex()
    system, first, second = "s" * 1024, "a" * 1024, "b" * 1024
    index.placed(chain(system + first), 1, 0.0)
    index.placed(chain(system + second), 2, 0.0)
    prompt = chain(system + first + "c" * 512)
    assert share(index, prompt, 1) == pytest.approx(0.8 * 2048 / 2560)
    assert share(index, prompt, 2) == pytest.approx(0.8 * 1024 / 2560)
    assert share(index, prompt, 3) == 0
    assert not index.expected("m", chain("z" * 1024), 100)
    assert not index.expected("m", chain("short"), 100)


def test_the_index_is_bounded_and_forgets_what_was_used_least_recently() -> None:
    index = PrefixIndex(most_links=8)
    for letter in "abcdefgh":
        index.placed(chain(letter * 512), 1, 0.0)
    assert len(index) == 8
    assert not index.expected("m", chain("a" * 512), 100)
    assert index.expected("m", chain("h" * 512), 100)


def test_what_one_worker_was_sent_is_bounded_too() -> None:
    index = PrefixIndex(most_expected=4)
    for letter in "abcd":
        index.placed(chain(letter * 512), 1, 0.0)
    assert len(index) == 4
    assert not index.expected("m", chain("a" * 512), 100)


def test_an_engine_without_a_cache_is_soon_expected_to_save_next_to_nothing() -> None:
    index = PrefixIndex()
    prompt = chain("a" * 2560)
    index.placed(prompt, 1, 0.0)
    assert share(index, prompt, 1) == pytest.approx(0.8)
    for _ in range(100):
        index.learn("m", 500, 0)
    assert share(index, prompt, 1) < 0.1
    for _ in range(200):
        index.learn("m", int(tokens_at(index, prompt, 1)), 1000)
    assert share(index, prompt, 1) > 0.9


def test_trust_in_workers_that_tell_is_learnt_apart() -> None:
    index = PrefixIndex()
    prompt = chain("a" * 2560)
    index.placed(prompt, 1, 0.0)
    index.changed(2, told(1, reset=True, held=prompt.links), 0.0)
    for _ in range(100):
        index.learn("m", 500, 0)
    assert share(index, prompt, 1) < 0.1
    assert share(index, prompt, 2) == pytest.approx(0.95)


def test_a_worker_that_tells_is_believed_and_what_it_dropped_is_not_expected() -> None:
    index = PrefixIndex()
    prompt = chain(SYSTEM)
    index.changed(7, told(1, reset=True), 0.0)
    assert index.believes(7)
    index.changed(7, told(2, held=prompt.links), 0.1)
    assert share(index, prompt, 7) == pytest.approx(0.95 * prompt.ends[len(prompt.links) - 1] / prompt.size)
    index.changed(7, told(3, dropped=prompt.links[2:]), 0.2)
    assert share(index, prompt, 7) == pytest.approx(0.95 * 512 / prompt.size)
    index.changed(7, told(4, dropped=prompt.links[:1]), 0.3)
    assert not index.expected("m", prompt, 1000)  # what follows is of no use without the beginning


def test_what_a_telling_worker_was_sent_counts_only_until_it_should_have_told() -> None:
    index = PrefixIndex()
    index.changed(1, told(1, reset=True), 0.0)
    prompt, other = chain(SYSTEM), chain("o" * 512)
    index.placed(prompt, 1, 0.0)
    assert share(index, prompt, 1) > 0.9
    index.placed(other, 1, 60.0)
    assert share(index, prompt, 1) == 0
    assert share(index, other, 1) > 0.9


def test_what_is_told_of_stays_when_the_expectation_ends() -> None:
    index = PrefixIndex()
    index.changed(1, told(1, reset=True), 0.0)
    prompt = chain(SYSTEM)
    index.placed(prompt, 1, 0.0)
    index.changed(1, told(2, held=prompt.links), 1.0)
    index.changed(1, told(3), 100.0)
    assert share(index, prompt, 1) > 0.9


def test_after_a_gap_a_worker_is_not_believed_until_it_tells_everything() -> None:
    index = PrefixIndex()
    kept, lost = chain("k" * 512), chain("l" * 512)
    index.changed(1, told(1, reset=True, held=kept.links + lost.links), 0.0)
    index.changed(1, told(3), 0.1)
    assert not index.believes(1)
    assert share(index, kept, 1) == pytest.approx(0.8)  # as if it had been sent it
    index.changed(1, told(4, reset=True, held=kept.links), 0.2)
    assert index.believes(1)
    assert share(index, kept, 1) == pytest.approx(0.95)
    assert share(index, lost, 1) == 0


def test_a_router_that_starts_late_believes_from_the_next_telling_of_everything() -> None:
    index = PrefixIndex()
    prompt = chain("p" * 512)
    index.changed(1, told(40, held=prompt.links), 0.0)
    assert not index.believes(1)
    assert share(index, prompt, 1) == pytest.approx(0.8)
    index.changed(1, told(41, reset=True, held=prompt.links), 0.1)
    assert index.believes(1)


def test_a_message_that_comes_again_changes_nothing() -> None:
    index = PrefixIndex()
    prompt = chain("p" * 512)
    index.changed(1, told(1, reset=True, held=prompt.links), 0.0)
    index.changed(1, told(2, dropped=prompt.links), 0.1)
    index.changed(1, told(1, reset=True, held=prompt.links), 0.2)
    assert not index.expected("m", prompt, 100)


def test_a_slot_that_is_given_to_another_worker_holds_nothing() -> None:
    index = PrefixIndex()
    sent, telling = chain("s" * 512), chain("t" * 512)
    index.placed(sent, 1, 0.0)
    index.changed(1, told(1, reset=True, held=telling.links), 0.0)
    index.forget(1)
    assert len(index) == 0
    assert not index.believes(1)
    index.changed(1, told(1, reset=True), 0.0)
    assert index.believes(1)


def test_a_beginning_that_all_hold_is_expected_of_all() -> None:
    index = PrefixIndex()
    prompt = chain(SYSTEM)
    for slot in range(1000):
        index.placed(Chain(prompt.links[: 1 + slot % 2], prompt.size), slot, 0.0)
    tokens = index.expected("m", prompt, 1000).by_slot(1000, 999).tolist()[:1000]
    assert tokens[::2] == pytest.approx([0.8 * 256_000 / prompt.size] * 500)
    assert tokens[1::2] == pytest.approx([0.8 * 512_000 / prompt.size] * 500)


@given(st.dictionaries(st.integers(0, 3000), st.floats(1.0, 5000.0), max_size=40), st.floats(1.0, 5000.0))
def test_each_slot_has_its_tokens_and_no_other_has_any(tokens: dict[int, float], most: float) -> None:
    cached = Cached.of(tokens)
    assert dict(cached.each()) == tokens
    by_slot = cached.by_slot(17, most)
    assert len(by_slot) >= 17
    assert {slot: by_slot[slot] for slot in by_slot.nonzero()[0].tolist()} == {
        slot: min(most, each) for slot, each in tokens.items()
    }


LINKS = chain("x" * 4096).links
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["placed", "held", "dropped", "reset", "lost", "forget"]),
        st.integers(0, 2),
        st.lists(st.sampled_from(LINKS), max_size=6, unique=True),
        st.floats(0, 10),
    ),
    max_size=40,
)


@given(CHANGES)
def test_every_link_in_the_index_is_held_or_expected_of_somebody(
    changes: list[tuple[str, int, list[int], float]],
) -> None:
    index, sequences, now_s = PrefixIndex(most_expected=8), [0, 0, 0], 0.0
    holds: list[set[int]] = [set(), set(), set()]
    telling = [False] * 3
    for kind, slot, links, later_s in changes:
        now_s += later_s
        sequences[slot] += 1
        match kind:
            case "placed":
                index.placed(Chain(tuple(links), 9999), slot, now_s)
            case "held":
                index.changed(slot, told(sequences[slot], held=tuple(links)), now_s)
                holds[slot] |= set(links)
            case "dropped":
                index.changed(slot, told(sequences[slot], dropped=tuple(links)), now_s)
                holds[slot] -= set(links)
            case "reset":
                index.changed(slot, told(sequences[slot], reset=True, held=tuple(links)), now_s)
                holds[slot] = set(links)
                telling[slot] = True
            case "forget":
                index.forget(slot)
                holds[slot], sequences[slot], telling[slot] = set(), 0, False
    for slot in range(3):
        for link in holds[slot]:
            assert tokens_at(index, Chain((link,), 256), slot) > 0
        if telling[slot]:
            sequences[slot] += 1
            index.changed(slot, told(sequences[slot], reset=True, held=tuple(holds[slot])), now_s)
            sequences[slot] += 1
            index.changed(slot, told(sequences[slot]), now_s + 100)  # nothing is expected any more
            held = {link for link in LINKS if tokens_at(index, Chain((link,), 256), slot)}
            assert held == holds[slot]
    for slot in range(3):
        index.forget(slot)
    assert len(index) == 0
