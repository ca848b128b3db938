"""Priorities as worker and router count by them: a request waits for those that are as urgent as it, or more so.

In: priorities, where lower is sooner. Out: ranks 0 to `RANKS` - 1. A priority below 0 counts as 0, and one beyond the
last rank as that: beyond so many, urgencies are not told apart.

Whoever takes more than its share of what there is yields to all others: its requests' priorities begin at `YIELDING`.
"""

from collections.abc import Iterable
from typing import Final

RANKS: Final = 4
YIELDING: Final = 1000  # added to the priority of its class


def rank_of(priority: int) -> int:
    """The rank of a priority."""
    return 0 if priority < 0 else priority if priority < RANKS else RANKS - 1


def yields(priority: int) -> bool:
    """Whether a request of the priority goes after all that keep within their shares."""
    return priority >= YIELDING


def by_rank(amounts: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Sums of (priority, amount) by rank."""
    sums = [0] * RANKS
    for priority, amount in amounts:
        sums[rank_of(priority)] += amount
    return tuple(sums)
