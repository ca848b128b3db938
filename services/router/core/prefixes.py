"""Which worker holds which beginnings of prompts in its cache: as workers tell, or else as prompts were sent to them.

In: what workers tell of their caches (`PrefixesChanged`), and which prompts went where, as chains of links
(`mesh/prefix_chain`). Out: for the next prompt, the tokens that each worker is expected to find in its cache.

A worker that tells is believed: what it was sent counts beside that only until it must have told of it. A gap in its
messages means that changes were lost; then what it told and what it is sent count alike, until it tells everything
anew. Of a worker that tells nothing, what it was sent counts until it is forgotten for what came since.

Each link has one integer with a bit for every worker that holds it, so that walking down a prompt costs the same with
ten workers as with a thousand, and a beginning that all share no more than one that few do. Workers are known
by their slot, a small number that `Fleet` gives to one start of one worker. Bounded: in links altogether, the least
recently used first out, and in what is only expected of each worker.

How far expectations hold is learnt from what workers report as cached (`learn`), by model, for those that tell and for
those that do not: where an engine caches nothing, the expectation becomes small by itself.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.mesh.events import PrefixesChanged
from services.mesh.prefix_chain import Chain

_MOST_LINKS: Final = 262_144
_MOST_EXPECTED: Final = 1_024  # links of one worker
_TOLD_WITHIN_S: Final = 15.0  # from its placement, a prompt is computed and told of
_MOST_DEPTHS: Final = 8  # told apart for one prompt; those who hold less than these are taken to hold nothing
_FEW: Final = 32
_FIRST_TRUST: Final = 0.8
_FIRST_TRUST_TOLD: Final = 0.95
_TRUST_STEP: Final = 0.05
_LEAST_TRUST: Final = 0.05  # above zero, so that a cache that is switched on later is noticed

Slots = NDArray[np.intp]


class Cached(NamedTuple):
    """Tokens of one prompt that are expected to be cached.

    Attributes:
        depths: (tokens, bits of the slots whose workers hold so many); no slot is in two of them.
    """

    depths: tuple[tuple[float, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.depths)

    @classmethod
    def of(cls, tokens: Mapping[int, float]) -> "Cached":
        """From tokens by slot."""
        return cls(tuple((each, 1 << slot) for slot, each in tokens.items()))

    @property
    def few(self) -> bool:
        """Whether few workers hold any of it."""
        return sum(bits.bit_count() for _, bits in self.depths) <= _FEW

    def each(self) -> Iterator[tuple[int, float]]:
        """The slots whose workers hold some of it, with the tokens."""
        for tokens, bits in self.depths:
            left = bits
            while left:
                lowest = left & -left
                yield lowest.bit_length() - 1, tokens
                left ^= lowest

    def by_slot(self, slots: int, most: float) -> NDArray[np.float64]:
        """(at least slots,) tokens, at most `most`; quicker than `each` where many hold some."""
        longest = max([bits.bit_length() for _, bits in self.depths], default=0)
        length = -(-max(longest, slots) // 8)
        held = np.frombuffer(b"".join([bits.to_bytes(length, "little") for _, bits in self.depths]), np.uint8)
        of_depths = np.unpackbits(held, bitorder="little").reshape(-1, 8 * length)
        tokens = np.array([min(tokens, most) for tokens, _ in self.depths])
        by_slot: NDArray[np.float64] = tokens @ of_depths  # no slot is in two of the depths
        return by_slot


NOTHING_CACHED: Final = Cached()


@dataclass(slots=True, eq=False)
class _Holder:
    """What one worker is taken to hold.

    Attributes:
        sequence: of the last message from it; 0: it tells nothing.
        believed: it has told everything, and no message since was missed.
        told: links, as it told.
        expected: links it was sent and has not told of, with the time until which that counts.
    """

    bit: int
    sequence: int = 0
    believed: bool = False
    told: set[int] = field(default_factory=set)
    expected: OrderedDict[int, float] = field(default_factory=OrderedDict)


class PrefixIndex:
    """Links with the workers that hold them. Times are the router's monotonic seconds."""

    def __init__(self, most_links: int = _MOST_LINKS, most_expected: int = _MOST_EXPECTED) -> None:
        """`most_expected`: of links that one worker was sent and has not told of."""
        self._most_links = most_links
        self._most_expected = most_expected
        self._links: OrderedDict[int, int] = OrderedDict()  # to the bits of the slots that hold it
        self._holders: dict[int, _Holder] = {}
        self._believed = 0  # bits
        self._trust: dict[tuple[str, bool], float] = {}  # by model, and whether it is of workers that are believed

    def __len__(self) -> int:
        return len(self._links)

    def believes(self, slot: int) -> bool:
        """The worker tells what it holds, and nothing of that was missed."""
        return bool(self._believed >> slot & 1)

    def expected(self, model: str, chain: Chain, prompt_tokens: int) -> Cached:
        """What of a prompt is expected to be cached, and where."""
        links = self._links
        if not chain.links or not (holders := links.get(chain.links[0], 0)):
            return NOTHING_CACHED
        ends: list[tuple[int, int]] = []
        depth = 0
        for link in chain.links:
            deeper = holders & links.get(link, 0)
            if deeper != holders:
                ends.append((depth, holders & ~deeper))
                holders = deeper
                if not holders:
                    break
            depth += 1
        if holders:
            ends.append((depth, holders))
        sent, told = (self._trust_in(model, believed) * prompt_tokens / chain.size for believed in (False, True))
        depths: list[tuple[float, int]] = []
        for depth, bits in ends[-_MOST_DEPTHS:]:
            if believed := bits & self._believed:
                depths.append((chain.ends[depth - 1] * told, believed))
            if others := bits & ~self._believed:
                depths.append((chain.ends[depth - 1] * sent, others))
        return Cached(tuple(depths))

    def placed(self, chain: Chain, slot: int, now_s: float) -> None:
        """The prompt went to a worker, which will hold its beginnings."""
        holder, links = self._holder(slot), self._links
        expected, told, bit = holder.expected, holder.told, holder.bit
        until_s = now_s + _TOLD_WITHIN_S if holder.believed else inf
        for link in chain.links:
            if link not in told:
                expected[link] = until_s
                expected.move_to_end(link)
            links[link] = links.get(link, 0) | bit
            links.move_to_end(link)
        while len(expected) > self._most_expected:
            self._take(expected.popitem(last=False)[0], holder.bit)
        self._expire(holder, now_s)
        self._bound()

    def changed(self, slot: int, event: PrefixesChanged, now_s: float) -> None:
        """Folds what a worker tells; a message that comes out of order is ignored."""
        holder = self._holder(slot)
        if event.sequence <= holder.sequence:
            return
        missed = event.sequence != holder.sequence + 1
        holder.sequence = event.sequence
        if event.reset:
            self._replace(holder, set(event.held))
            self._believe(holder, now_s)
        else:
            if missed:
                holder.believed = False
                self._believed &= ~holder.bit
            for link in event.dropped:
                holder.told.discard(link)
                holder.expected.pop(link, None)
                self._take(link, holder.bit)
            for link in event.held:
                holder.told.add(link)
                holder.expected.pop(link, None)
                self._add(link, holder.bit)
        self._expire(holder, now_s)
        self._bound()

    def forget(self, slot: int) -> None:
        """The worker is gone, or has started anew with an empty cache; its slot may be another's from here on."""
        holder = self._holders.pop(slot, None)
        if holder is None:
            return
        self._believed &= ~holder.bit
        for link in (*holder.told, *holder.expected):
            self._take(link, holder.bit)

    def learn(self, model: str, expected_tokens: int, cached_tokens: int, *, believed: bool = False) -> None:
        """Folds in how many of the tokens expected to be cached were.

        Args:
            believed: whether they were expected of a worker that tells.
        """
        if expected_tokens <= 0:
            return
        trust = self._trust_in(model, believed)
        # The expectation was scaled by the trust already, so the unscaled one is what the outcome is held against.
        share = min(1.0, cached_tokens * trust / expected_tokens)
        self._trust[model, believed] = max(_LEAST_TRUST, trust + _TRUST_STEP * (share - trust))

    def _trust_in(self, model: str, believed: bool) -> float:
        return self._trust.get((model, believed), _FIRST_TRUST_TOLD if believed else _FIRST_TRUST)

    def _holder(self, slot: int) -> _Holder:
        holder = self._holders.get(slot)
        if holder is None:
            holder = self._holders[slot] = _Holder(1 << slot)
        return holder

    def _believe(self, holder: _Holder, now_s: float) -> None:
        if not holder.believed:
            holder.believed = True
            self._believed |= holder.bit
            for link in holder.expected:
                holder.expected[link] = now_s + _TOLD_WITHIN_S

    def _replace(self, holder: _Holder, told: set[int]) -> None:
        for link in holder.told - told:
            if link not in holder.expected:
                self._take(link, holder.bit)
        for link in told - holder.told:
            self._add(link, holder.bit)
        if holder.expected:
            for link in [each for each in holder.expected if each in told]:
                del holder.expected[link]
        holder.told = told

    def _expire(self, holder: _Holder, now_s: float) -> None:
        """It would have told by now of what it holds."""
        expected = holder.expected
        while expected:
            link, until_s = next(iter(expected.items()))
            if until_s > now_s:
                return
            del expected[link]
            self._take(link, holder.bit)

    def _add(self, link: int, bit: int) -> None:
        self._links[link] = self._links.get(link, 0) | bit
        self._links.move_to_end(link)

    def _take(self, link: int, bit: int) -> None:
        if left := self._links.get(link, 0) & ~bit:
            self._links[link] = left
        else:
            self._links.pop(link, None)

    def _bound(self) -> None:
        # A worker's own record of a link may outlive the link; all that does is to take it away once more.
        while len(self._links) > self._most_links:
            self._links.popitem(last=False)
