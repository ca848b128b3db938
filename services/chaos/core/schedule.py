"""When what is broken: a function of the seed, of what can be broken, and of how many faults there shall be. Pure.

Every pair of a role and a kind of fault is a card; the cards are shuffled and dealt, and shuffled again when they are
used up, so that few faults already meet every way in which the mesh can break. Among targets of one role the choice is
even. The time between two faults is drawn around `every_s`, so that some overlap and some find the mesh at rest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from services.chaos.core.faults import Fault, FaultKind, Role, Target

# How long a fault lasts, seconds, from and to; the others pass by themselves.
_LASTS_S: Final = {
    FaultKind.FREEZE: (0.3, 5.0),
    FaultKind.SLOW: (1.0, 5.0),
    FaultKind.HANG: (0.5, 6.0),
    FaultKind.CUT: (0.3, 6.0),
    FaultKind.UNPLUG: (0.3, 6.0),
    FaultKind.SEVER: (0.1, 3.0),
    FaultKind.DELAY: (1.0, 5.0),
    FaultKind.DISK_FULL: (0.5, 5.0),
}
_SLOWER: Final = (2.0, 10.0, 10.0, 30.0)
_LATE_S: Final = (0.05, 0.2, 1.0)
_REPEATED: Final = (1, 8, 64)


def chosen(targets: Sequence[Target], only: Sequence[str]) -> tuple[Target, ...]:
    """Of what can be broken, what is asked for.

    Args:
        only: each a kind (`kill`), a kind and a role (`kill:worker`), or a kind and a target (`kill:router-0`); empty:
            everything.

    Raises:
        ValueError: one of them names nothing that can be broken here.
    """
    if not only:
        return tuple(targets)
    wanted: list[set[FaultKind]] = [set() for _ in targets]
    for each in only:
        kind, _, who = each.partition(":")
        matching = [
            number
            for number, target in enumerate(targets)
            if kind in target.kinds and who in ("", target.role, target.name)
        ]
        if not matching:
            raise ValueError(f"{each!r} is nothing that can be broken here")
        for number in matching:
            wanted[number].add(FaultKind(kind))
    return tuple(
        replace(target, kinds=tuple(kind for kind in target.kinds if kind in kinds))
        for target, kinds in zip(targets, wanted, strict=True)
        if kinds
    )


def in_turn(targets: Sequence[Target], kind: FaultKind, every_s: float) -> tuple[Fault, ...]:
    """Each target that the kind can be done to, once, in the order in which they come; `every_s`: as in `schedule`."""
    able = [target for target in targets if kind in target.kinds]
    return tuple(
        Fault(number, round(number * every_s, 2), kind, target.role, target.name)
        for number, target in enumerate(able, start=1)
    )


def schedule(seed: int, targets: Sequence[Target], faults: int, every_s: float) -> tuple[Fault, ...]:
    """The faults, in order.

    Args:
        targets: not empty, each with something that can be done to it.
        faults: >= 0.
        every_s: > 0, mean seconds from one fault to the next.
    """
    rng = Random(seed)
    cards = _dealt(rng, sorted({(target.role, kind) for target in targets for kind in target.kinds}))
    at_s = 0.0
    found = []
    for number in range(1, faults + 1):
        role, kind = next(cards)
        target = rng.choice([each for each in targets if each.role is role and kind in each.kinds])
        at_s += every_s * rng.uniform(0.25, 1.75)
        low_s, high_s = _LASTS_S.get(kind, (0.0, 0.0))
        lasts_s = round(rng.uniform(low_s, high_s), 2)
        found.append(Fault(number, round(at_s, 2), kind, role, target.name, lasts_s, _factor(kind, rng)))
    return tuple(found)


def _dealt(rng: Random, cards: Sequence[tuple[Role, FaultKind]]) -> Iterator[tuple[Role, FaultKind]]:
    while True:
        yield from rng.sample(cards, len(cards))


def _factor(kind: FaultKind, rng: Random) -> float:
    if kind is FaultKind.SLOW:
        return rng.choice(_SLOWER)
    if kind is FaultKind.DELAY:
        return rng.choice(_LATE_S)
    return float(rng.choice(_REPEATED)) if kind is FaultKind.REPEAT else 0.0
