"""Who takes, and who gives: how meters that see the same come to share partitions fairly without a word. Pure.

In: shards, and how many partitions each meter has that is there. Out: the free shard that this meter is to take, or
what of its own it is to give to whom. Shards are cut as seldom as fairness allows: each has readers of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """Partitions that are booked together."""

    shard: int
    partitions: frozenset[int]


class Gift(NamedTuple):
    """What of a shard is to be given to whom; all of it, or some."""

    shard: int
    partitions: frozenset[int]
    to: str


def to_take(me: str, free: Sequence[Part], held: Mapping[str, int]) -> Part | None:
    """The first free shard, where this meter has the fewest partitions."""
    poorest = min(held, key=lambda meter: (held[meter], meter), default=None)
    return min(free, default=None) if poorest == me else None


def to_give(me: str, mine: Iterable[Part], held: Mapping[str, int]) -> Gift | None:
    """Half of what this meter has beyond the poorest, where it is the richest and has more than twice as many: a whole
    shard where one is of about that size."""
    richest = min(held, key=lambda meter: (-held[meter], meter), default=None)
    poorest = min(held, key=lambda meter: (held[meter], meter), default=None)
    if richest != me or poorest is None or held[me] < 2 * held[poorest] + 2:
        return None
    most = (held[me] - held[poorest]) // 2
    parts = sorted(mine, key=lambda part: (len(part.partitions), part.shard))
    whole = [part for part in parts if most <= 2 * len(part.partitions) and len(part.partitions) <= most]
    if whole:
        return Gift(whole[-1].shard, whole[-1].partitions, poorest)
    if not parts:
        return None
    largest = parts[-1]
    count = min(most, len(largest.partitions))
    return Gift(largest.shard, frozenset(sorted(largest.partitions)[-count:]), poorest)
