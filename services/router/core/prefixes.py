"""Which worker probably holds which prompt prefixes in its cache, as seen from what was placed where.

In: the block hashes of prompts, and where they went. Out: for the next prompt, the expected cached tokens by worker.
Bounded: the blocks used least recently are forgotten. A worker that starts again has an empty cache, so entries name
an incarnation (one epoch of one worker), not a worker. How far the expectation holds is learnt from what workers report
as cached (`learn`): where an engine caches nothing, the expectation becomes small by itself.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

_BLOCK: Final = 256  # characters or token ids of one block
_BLOCKS: Final = 64  # of one prompt at most
_HOLDERS: Final = 4  # workers remembered per block
_FIRST_TRUST: Final = 0.8
_TRUST_STEP: Final = 0.05
_LEAST_TRUST: Final = 0.05  # above zero, so that a cache that is switched on later is noticed


def chain(tenant: str, model: str, prompt: str | Sequence[int]) -> tuple[int, ...]:
    """Chained hashes of the prompt's whole blocks: two prompts share the first n exactly when they share n blocks.

    The tenant is part of the chain: one tenant's prompts tell nothing about another's.
    """
    link = hash((tenant, model))
    hashes = []
    for end in range(_BLOCK, min(len(prompt), _BLOCK * _BLOCKS) + 1, _BLOCK):
        block = prompt[end - _BLOCK : end]
        link = hash((link, block if isinstance(block, str) else tuple(block)))
        hashes.append(link)
    return tuple(hashes)


class PrefixIndex:
    """Blocks by hash, each with the incarnations that were sent it, latest last."""

    def __init__(self, capacity_blocks: int = 65_536) -> None:
        self._capacity = capacity_blocks
        self._holders: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._trust: dict[str, float] = {}  # by model

    def __len__(self) -> int:
        return len(self._holders)

    def cached_share(self, model: str, blocks: Sequence[int], size: int) -> dict[int, float]:
        """Expected cached part of a prompt, 0 to 1, by incarnation that holds at least its first block.

        Args:
            blocks: from `chain`.
            size: of the whole prompt, in the unit of its blocks.
        """
        trust = self._trust.get(model, _FIRST_TRUST)
        if not blocks:
            return {}
        held: dict[int, int] = {}
        for depth, block in enumerate(blocks):
            holders = self._holders.get(block, ())
            reached = [each for each in holders if held.get(each, 0) == depth]
            if not reached:
                break
            held.update(dict.fromkeys(reached, depth + 1))
        return {each: trust * depth * _BLOCK / size for each, depth in held.items()}

    def placed(self, blocks: Sequence[int], incarnation: int) -> None:
        """The prompt went to `incarnation`, which will hold its blocks."""
        for block in blocks:
            others = self._holders.pop(block, ())
            kept = tuple(each for each in others if each != incarnation)[-(_HOLDERS - 1) :]
            self._holders[block] = (*kept, incarnation)
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)

    def learn(self, model: str, expected_tokens: int, cached_tokens: int) -> None:
        """Folds in how many of the tokens expected to be cached were."""
        if expected_tokens <= 0:
            return
        trust = self._trust.get(model, _FIRST_TRUST)
        # The expectation was scaled by the trust already, so the unscaled one is what the outcome is held against.
        share = min(1.0, cached_tokens * trust / expected_tokens)
        self._trust[model] = max(_LEAST_TRUST, trust + _TRUST_STEP * (share - trust))
