"""A finite KV cache in blocks, with prefix reuse: counts what is held, by whom, and what may be thrown away.

In: how many blocks a sequence wants, the hashes of what it has computed. Out: whether it gets them, and which of its
prompt is here already; and, where it is asked for, which known blocks came and went. Pure.

A block holds `BLOCK_TOKENS` tokens. A block whose content is known (all its tokens were computed) is called by its
chain hash, which stands for its tokens and everything before them; it is shared by all sequences that start the same
way, and stays after the last of them has left, until room is needed: then the one that was left longest ago goes first,
and of one sequence the last block first, so that the beginning of a prompt outlives its end. A block that is not full
belongs to one sequence alone, and only their number matters. At any time

    empty + private + shared + idle = capacity.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from services.worker.engine import BlockChange, BlockKind

BLOCK_TOKENS: Final = 16


def blocks_for(tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // BLOCK_TOKENS)


def chain_hashes(token_ids: Sequence[int], parent: int = 0) -> list[int]:
    """One hash per full block of `token_ids`; each stands for its block and all before it.

    Args:
        parent: hash of the block before the first, where `token_ids` go on after others.
    """
    hashes = []
    for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        parent = hash((parent, *token_ids[start : start + BLOCK_TOKENS]))
        hashes.append(parent)
    return hashes


@dataclass(slots=True)
class Holding:
    """What one sequence holds: `shared` known blocks from the start of its tokens, then `private` ones."""

    shared: list[int] = field(default_factory=list)
    private: int = 0

    @property
    def blocks(self) -> int:
        return len(self.shared) + self.private


class KvCache:
    """The blocks of one model on one accelerator."""

    def __init__(self, capacity_blocks: int, told_as: str | None = None) -> None:
        """
        Args:
            capacity_blocks: >= 1.
            told_as: the model that changes of known blocks are told with; None: nobody wants to know.
        """
        assert capacity_blocks >= 1, capacity_blocks
        self.capacity_blocks = capacity_blocks
        self._told_as = told_as
        self._changes: list[BlockChange] = []
        self._empty = capacity_blocks
        self._users: dict[int, int] = {}  # shared blocks: how many sequences hold each
        self._idle: OrderedDict[int, None] = OrderedDict()  # known blocks that nobody holds, longest unused first

    @property
    def available_blocks(self) -> int:
        """Blocks that can be given out: empty ones, and idle ones that would be thrown away."""
        return self._empty + len(self._idle)

    @property
    def usage(self) -> float:
        """The part of the cache that running sequences hold, 0 to 1."""
        return 1.0 - self.available_blocks / self.capacity_blocks

    @property
    def known_blocks(self) -> int:
        """Blocks that a new sequence could reuse."""
        return len(self._users) + len(self._idle)

    def hold(self, hashes: Sequence[int], tokens: int, spare_blocks: int = 0) -> Holding | None:
        """Room for `tokens` tokens, reusing the blocks at the start of `hashes` that are here.

        At least one of the tokens is left out of reuse, because the next token comes from computing it.

        Args:
            hashes: chain hashes of the full blocks at the start of the tokens.
            spare_blocks: how many blocks must stay available beside it.

        Returns:
            None when there is no room; nothing has changed then.
        """
        reusable = min(len(hashes), (tokens - 1) // BLOCK_TOKENS)
        hits = idle_hits = 0
        for each in hashes[:reusable]:
            if each in self._idle:
                idle_hits += 1
            elif each not in self._users:
                break
            hits += 1
        private = blocks_for(tokens) - hits
        if private + spare_blocks > self.available_blocks - idle_hits:
            return None
        shared = list(hashes[:hits])
        for each in shared:
            self._share(each)
        self._take(private)
        return Holding(shared, private)

    def extend(self, holding: Holding) -> bool:
        """One more block for a sequence; False when there is none."""
        if not self.available_blocks:
            return False
        self._take(1)
        holding.private += 1
        return True

    def know(
        self, holding: Holding, hashes: Sequence[int], computed_tokens: int, token_ids: Sequence[int] = ()
    ) -> None:
        """Makes the blocks that are full by now shareable: those within `computed_tokens` that have a hash.

        A block that another sequence has computed meanwhile is held once, and the copy is given back.

        Args:
            token_ids: of the sequence, from its start, for whoever wants to know of blocks.
        """
        full = min(len(hashes), computed_tokens // BLOCK_TOKENS)
        before = len(holding.shared)
        if self._told_as is not None and before < full:
            self._tell_stored(hashes, before, full, token_ids)
        for each in hashes[before:full]:
            assert holding.private > 0, "a full block is held"
            holding.private -= 1
            if each in self._users or each in self._idle:
                self._empty += 1
                self._share(each)
            else:
                self._users[each] = 1
            holding.shared.append(each)

    def release(self, holding: Holding) -> None:
        """Gives everything back; known blocks stay for reuse while there is room."""
        self._empty += holding.private
        for each in reversed(holding.shared):
            users = self._users[each] - 1
            if users:
                self._users[each] = users
            else:
                del self._users[each]
                self._idle[each] = None
        holding.shared, holding.private = [], 0

    def take_changes(self) -> list[BlockChange]:
        """Which known blocks came and went since the last time, in order; nothing where nobody wants to know."""
        changes, self._changes = self._changes, []
        return changes

    def _tell_stored(self, hashes: Sequence[int], start: int, end: int, token_ids: Sequence[int]) -> None:
        assert self._told_as is not None
        self._changes.append(
            BlockChange(
                kind=BlockKind.STORED,
                hashes=tuple(hashes[start:end]),
                parent=hashes[start - 1] if start else None,
                token_ids=tuple(token_ids[start * BLOCK_TOKENS : end * BLOCK_TOKENS]),
                block_tokens=BLOCK_TOKENS,
                model=self._told_as,
            )
        )

    def _share(self, block: int) -> None:
        if block in self._users:
            self._users[block] += 1
        else:
            del self._idle[block]
            self._users[block] = 1

    def _take(self, blocks: int) -> None:
        gone = [self._idle.popitem(last=False)[0] for _ in range(blocks - self._empty)]
        self._empty += len(gone) - blocks
        if gone and self._told_as is not None:
            self._changes.append(BlockChange(kind=BlockKind.REMOVED, hashes=tuple(gone), model=self._told_as))
