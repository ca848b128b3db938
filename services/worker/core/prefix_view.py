"""What the engine's prefix cache holds, told in links that a router knows: from blocks of tokens to a prompt's chain.

In: the engine's block changes, and of each prompt its chain (`mesh/prefix_chain`) and its token ids. Out: links that
came to be held and links that are held no longer. Pure.

Blocks are a tree: a block follows its parent and has its tokens, so a prompt's ids lead from block to block, as far as
the engine stored them. Where the next one is not there yet, the prompt waits for it: a step's blocks may be told after
its tokens. A link ends at a byte of the prompt as it was asked; where among its tokens that is, is not known and
taken to be in proportion, rounded up to a whole block: a link is held when the blocks that its tokens lie in are.
A link is dropped with any of its blocks.

All that is kept is bounded: the links used least recently are told as dropped, blocks beyond the bound are forgotten
oldest first, and a prompt that waits longest waits no longer.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from services.mesh.prefix_chain import Chain
from services.worker.engine import BlockChange, BlockHash, BlockKind

_EARLY: Final = 64  # prompts kept until the first block tells how long blocks are
_ALIKE: Final = 4  # prompts that wait for the same block


class LinkChanges(NamedTuple):
    """What to tell routers.

    Attributes:
        reset: all that was told before is void.
    """

    reset: bool
    held: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Walk:
    """A prompt on its way along the blocks.

    Attributes:
        at: tokens whose blocks were found; `parent` is the last of them.
        links: of the chain that were passed.
        passed: blocks since the last link.
    """

    chain: Chain
    token_ids: Sequence[int]
    parent: BlockHash | str
    block_tokens: int
    at: int = 0
    links: int = 0
    passed: list[BlockHash] = field(default_factory=list)

    @property
    def next_key(self) -> int | None:
        """Names the next block; None where no whole one follows, or no link is left that it would belong to."""
        end = self.at + self.block_tokens
        if end > len(self.token_ids) or self.links >= len(self.chain.links):
            return None
        return _key(self.parent, self.token_ids[self.at : end])


@dataclass(slots=True, eq=False)
class _Block:
    key: int
    links: list[int] = field(default_factory=list)


class PrefixView:
    """The links that one worker's engine holds."""

    def __init__(self, *, most_links: int = 4_096, most_blocks: int = 131_072, most_waiting: int = 256) -> None:
        self._most_links = most_links
        self._most_blocks = most_blocks
        self._most_waiting = most_waiting
        self._block_tokens: dict[str, int] = {}  # by the model that blocks are told with
        self._blocks: dict[BlockHash, _Block] = {}
        self._by_key: dict[int, BlockHash] = {}
        self._links: OrderedDict[int, tuple[BlockHash, ...]] = OrderedDict()
        self._waiting: OrderedDict[int, list[_Walk]] = OrderedDict()
        self._early: deque[tuple[str, Chain, Sequence[int]]] = deque(maxlen=_EARLY)
        self._reset = True
        self._held: dict[int, None] = {}  # to be told, in order
        self._dropped: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._links)

    @property
    def blocks(self) -> int:
        """Blocks known to be held."""
        return len(self._blocks)

    @property
    def waiting(self) -> int:
        """Prompts whose next block is not there."""
        return sum(map(len, self._waiting.values()))

    def prompted(self, model: str, chain: Chain, token_ids: Sequence[int]) -> None:
        """A prompt is computed, or was.

        Args:
            token_ids: of the prompt alone, >= 1; nobody changes them.
        """
        if not chain.links or not token_ids:
            return
        told_as = model if model in self._block_tokens else ""
        block_tokens = self._block_tokens.get(told_as)
        if block_tokens is None:
            self._early.append((model, chain, token_ids))
            return
        self._walk(_Walk(chain, token_ids, told_as, block_tokens))

    def changed(self, changes: Iterable[BlockChange]) -> None:
        """The engine stored or threw away blocks."""
        woken: list[_Walk] = []
        for change in changes:
            match change.kind:
                case BlockKind.STORED:
                    self._stored(change, woken)
                case BlockKind.REMOVED:
                    for each in change.hashes:
                        self._removed(each)
                case BlockKind.CLEARED:
                    self.clear()
        for walk in woken:
            self._walk(walk)

    def clear(self) -> None:
        """The cache is empty."""
        self._blocks.clear()
        self._by_key.clear()
        self._links.clear()
        self._held.clear()
        self._dropped.clear()
        self._reset = True

    def announce_all(self) -> None:
        """The next that is taken tells of everything anew."""
        self._reset = True
        self._held = dict.fromkeys(self._links)
        self._dropped.clear()

    def take(self) -> LinkChanges | None:
        """What is to be told since the last time; None when there is nothing. At most all links at once."""
        if not (self._reset or self._held or self._dropped):
            return None
        changes = LinkChanges(self._reset, tuple(self._held), tuple(self._dropped))
        self._reset = False
        self._held, self._dropped = {}, {}
        return changes

    def _stored(self, change: BlockChange, woken: list[_Walk]) -> None:
        size = change.block_tokens
        if size < 1 or len(change.token_ids) < size * len(change.hashes):
            return  # nothing can be told by it
        self._block_tokens[change.model] = size
        parent: BlockHash | str = change.model if change.parent is None else change.parent
        for place, block in enumerate(change.hashes):
            key = _key(parent, change.token_ids[place * size : (place + 1) * size])
            if block not in self._blocks:
                self._blocks[block] = _Block(key)
                self._by_key[key] = block
                woken += self._waiting.pop(key, ())
            parent = block
        if len(self._blocks) > self._most_blocks:
            for block in list(islice(self._blocks, len(self._blocks) - self._most_blocks * 15 // 16)):
                self._removed(block)
        while self._early:
            self.prompted(*self._early.popleft())

    def _removed(self, block: BlockHash) -> None:
        known = self._blocks.pop(block, None)
        if known is None:
            return
        if self._by_key.get(known.key) == block:
            del self._by_key[known.key]
        for link in known.links:
            self._drop(link, without=block)

    def _walk(self, walk: _Walk) -> None:
        """Goes on as far as there are blocks, and waits for the next where one is to come."""
        chain, tokens = walk.chain, len(walk.token_ids)
        while (key := walk.next_key) is not None:
            block = self._by_key.get(key)
            if block is None:
                self._wait(key, walk)
                return
            walk.parent = block
            walk.at += walk.block_tokens
            walk.passed.append(block)
            # Of the link's bytes the last one lies in this token, in proportion; -(-a // b) rounds up.
            while walk.links < len(chain.links) and -(-chain.ends[walk.links] * tokens // chain.size) <= walk.at:
                self._hold(chain.links[walk.links], tuple(walk.passed))
                walk.links += 1
                walk.passed = walk.passed[-1:]  # the next link may begin in it

    def _wait(self, key: int, walk: _Walk) -> None:
        walks = self._waiting.setdefault(key, [])
        walks.append(walk)
        del walks[:-_ALIKE]
        self._waiting.move_to_end(key)
        while len(self._waiting) > self._most_waiting:
            self._waiting.popitem(last=False)

    def _hold(self, link: int, blocks: tuple[BlockHash, ...]) -> None:
        if link in self._links:
            self._links.move_to_end(link)
            return
        known = [self._blocks.get(each) for each in blocks]
        if None in known:
            return  # thrown away while the walk waited
        for each in known:
            if each is not None:
                each.links.append(link)
        self._links[link] = blocks
        if link in self._dropped:
            del self._dropped[link]
        else:
            self._held[link] = None
        if len(self._links) > self._most_links:
            self._drop(next(iter(self._links)))

    def _drop(self, link: int, without: BlockHash | None = None) -> None:
        """`without`: a block that is gone already."""
        for each in self._links.pop(link):
            if each != without:
                self._blocks[each].links.remove(link)
        if link in self._held:
            del self._held[link]
        else:
            self._dropped[link] = None


def _key(parent: BlockHash | str, token_ids: Sequence[int]) -> int:
    return hash((parent, tuple(token_ids)))
