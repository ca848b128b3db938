"""The beginnings of a prompt as a chain of links, so that router and worker name them alike, each on its own.

In: a prompt in the form it was asked in (text, token ids, chat), whose it is, and for which model. Out: one 64-bit link
for each of its beginnings at fixed ends. Two prompts of one tenant for one model have the same first n links exactly
when they are the same up to the n-th end; the same in every process and on every machine. The tenant is part of the
chain: one tenant's prompts tell nothing about another's.

A prompt is taken as bytes: UTF-8 of a text, four bytes of each token id, the messages of a chat one after the other, so
that a conversation that goes on begins with all it was before. The ends lie close together where prompts are short and
further apart where they are long (256 bytes, about 64 tokens, then 1 KiB and 4 KiB), so that a prompt of 8,000
characters has 19 links and one of 250,000 has 123. XXH3 makes a link of the link before and the bytes since: a fifth of
what BLAKE2 takes, and nothing rests on a link beyond where a request is expected to be cheap.
"""

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

_STEPS: Final = ((256, 4 << 10), (1 << 10, 64 << 10), (4 << 10, 256 << 10))  # bytes of a link, up to where


def _ends() -> tuple[int, ...]:
    ends = [0]
    for step, until in _STEPS:
        ends += range(ends[-1] + step, until + 1, step)
    return tuple(ends[1:])


ENDS: Final = _ends()
"""Where each link of a chain ends: bytes from the prompt's beginning."""


class Chain(NamedTuple):
    """A prompt's links, first to last.

    Attributes:
        links: link i stands for all that comes before `ends[i]`.
        size: of the whole prompt, >= the last link's end, in the unit of `ends`: bytes.
    """

    links: tuple[int, ...]
    size: int
    ends: Sequence[int] = ENDS


NO_CHAIN: Final = Chain((), 0)


def chain_of_text(tenant: str, model: str, text: str) -> Chain:
    return _chain(_root(tenant, model, "text"), text.encode("utf-8", "surrogatepass"))


def chain_of_token_ids(tenant: str, model: str, token_ids: Sequence[int]) -> Chain:
    """`token_ids`: each 0 to 2^32 - 1."""
    words = array("I", token_ids[: ENDS[-1] // 4 + 1])
    if sys.byteorder == "big":
        words.byteswap()
    chain = _chain(_root(tenant, model, "token_ids"), words.tobytes())
    return Chain(chain.links, 4 * len(token_ids))


def chain_of_chat(tenant: str, model: str, messages: Iterable[Sequence[str]], tools_json: str = "") -> Chain:
    """
    Args:
        messages: each its role, its content, and what else of it the model sees, in a fixed order.
        tools_json: the tools that the model is told of before all messages.
    """
    # A message's parts and messages are kept apart, and empty parts at the end left out, so that a part that comes to
    # be known later does not change the chains of those that lack it.
    text = "".join(["\x1f".join(each).rstrip("\x1f") + "\x1e" for each in messages])
    return _chain(_root(tenant, model, f"chat\x1f{tools_json}"), text.encode("utf-8", "surrogatepass"))


def _root(tenant: str, model: str, form: str) -> int:
    return xxh3_64_intdigest(f"{tenant}\x1f{model}\x1f{form}".encode("utf-8", "surrogatepass"))


def _chain(link: int, prompt: bytes) -> Chain:
    links = []
    start = 0
    for end in ENDS[: bisect_right(ENDS, len(prompt))]:
        link = xxh3_64_intdigest(prompt[start:end], link)
        links.append(link)
        start = end
    return Chain(tuple(links), len(prompt))
