"""Dicts of what was said last, by name, that keep so many names and no more: names may be strangers'."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def keep_latest(kept: dict[K, V], key: K, value: V, most: int) -> None:
    """Puts the value in, as the latest; of more than `most`, those go that nobody has put in for the longest time."""
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > most:
        del kept[next(iter(kept))]
