"""The chain of a prompt: the same everywhere, shared exactly as far as prompts are the same, and nobody else's."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from services.mesh.prefix_chain import ENDS, Chain, chain_of_chat, chain_of_text, chain_of_token_ids

_TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 20


def _shared(one: Chain, other: Chain) -> int:
    pairs = zip(one.links, other.links, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one.links), len(other.links)))


def test_ends_grow_and_never_come_closer() -> None:
    steps = [end - start for start, end in zip((0, *ENDS), ENDS, strict=False)]
    assert steps == sorted(steps)
    assert ENDS[0] == 256
    assert ENDS[-1] == 256 << 10


def test_a_chain_is_the_same_in_another_process() -> None:
    code = (
        "from services.mesh.prefix_chain import chain_of_text, chain_of_token_ids as ids, chain_of_chat as chat;"
        "print(chain_of_text('t', 'm', 'abc é' * 99), ids('t', 'm', range(200)), chat('t', 'm', [('user', 'x' * 300)]))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = (
        chain_of_text("t", "m", "abc é" * 99),
        chain_of_token_ids("t", "m", range(200)),
        chain_of_chat("t", "m", [("user", "x" * 300)]),
    )
    assert other == " ".join(map(str, here))


def test_links_are_known_figures_so_that_versions_of_the_mesh_agree() -> None:
    assert chain_of_text("acme", "llama-3.1-8b", _TEXT).links[:2] == (7290099946551120689, 1337779711152826105)


@given(st.text(max_size=3000), st.text(max_size=600), st.text(max_size=600))
def test_prompts_share_links_exactly_as_far_as_their_bytes_are_the_same(start: str, one: str, other: str) -> None:
    first, second = (start + one).encode("utf-8", "surrogatepass"), (start + other).encode("utf-8", "surrogatepass")
    same = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    same = min(len(first), len(second)) if same is None else same
    shared = _shared(chain_of_text("t", "m", start + one), chain_of_text("t", "m", start + other))
    assert shared == sum(end <= same for end in ENDS)


def test_a_chat_that_goes_on_begins_with_what_it_was() -> None:
    turns = [("system", _TEXT), ("user", "and now?" * 100), ("assistant", "then " * 200), ("user", "and then?")]
    before, after = chain_of_chat("t", "m", turns[:2]), chain_of_chat("t", "m", turns)
    assert after.links[: len(before.links)] == before.links
    assert len(before.links) > 5


def test_where_one_message_ends_and_the_next_begins_is_part_of_a_chat() -> None:
    one = chain_of_chat("t", "m", [("user", _TEXT[:100]), ("user", _TEXT[100:400])])
    other = chain_of_chat("t", "m", [("user", _TEXT[:101]), ("user", _TEXT[101:400])])
    assert _shared(one, other) == 0


def test_tools_come_before_all_messages() -> None:
    chat = [("user", _TEXT)]
    assert _shared(chain_of_chat("t", "m", chat, '[{"type": "function"}]'), chain_of_chat("t", "m", chat)) == 0


def test_empty_parts_of_a_message_change_nothing() -> None:
    assert chain_of_chat("t", "m", [("user", _TEXT, "", "")]) == chain_of_chat("t", "m", [("user", _TEXT)])


def test_tenants_models_and_forms_share_no_link() -> None:
    chains = [
        chain_of_text("a", "m", _TEXT),
        chain_of_text("b", "m", _TEXT),
        chain_of_text("a", "n", _TEXT),
        chain_of_chat("a", "m", [("user", _TEXT)]),
        chain_of_token_ids("a", "m", list(_TEXT.encode())),
    ]
    links = [link for chain in chains for link in chain.links]
    assert len(set(links)) == len(links)


def test_a_link_fits_sixty_four_bits_and_a_long_prompt_has_few() -> None:
    chain = chain_of_text("t", "m", _TEXT * 400)
    assert len(chain.links) == len(ENDS) < 128
    assert all(0 <= link < 1 << 64 for link in chain.links)
    assert chain.size > ENDS[-1]


def test_token_ids_have_as_many_links_as_a_text_of_four_bytes_each() -> None:
    chain = chain_of_token_ids("t", "m", range(1000))
    assert (len(chain.links), chain.size) == (sum(end <= 4000 for end in ENDS), 4000)
    assert chain_of_token_ids("t", "m", range(100_000)).size == 400_000
