"""When an engine without work makes its tokens: a stream's first at once, the others in steps at fixed times, one token
for each stream of a pace.

In: streams as they arrive, and the time. Out: which streams get which token now. No clock is read here.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Due(NamedTuple, Generic[Key]):
    """The token with the number `at` for `key`; `last` ends its stream."""

    key: Key
    at: int
    last: bool


@dataclass(slots=True)
class Steps(Generic[Key]):
    """The streams of one pace.

    Args:
        step_ms: of one step, in milliseconds; 0: a step follows the one before at once.
    """

    step_ms: float
    _next: dict[Key, int] = field(default_factory=dict)
    _wanted: dict[Key, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._next)

    def add(self, key: Key, wanted: int, made: int = 0) -> None:
        """A stream that wants `wanted` tokens in all, of which `made` exist; it takes part from the next step on.

        Raises:
            ValueError: nothing is left to make.
        """
        if wanted <= made:
            raise ValueError(f"a stream wants {wanted} tokens and has {made}: there is nothing to make")
        self._next[key], self._wanted[key] = made, wanted

    def remove(self, key: Key) -> None:
        """The stream gets no more; one that has ended is left alone."""
        self._next.pop(key, None)
        self._wanted.pop(key, None)

    def first(self, key: Key) -> Due[Key] | None:
        """Makes a stream's first token, which follows its prompt and waits for no step; None: the stream is gone."""
        return self._make(key) if key in self._next else None

    def step(self) -> Iterator[Due[Key]]:
        """Makes the tokens of one step."""
        for key in list(self._next):
            yield self._make(key)

    def _make(self, key: Key) -> Due[Key]:
        at = self._next[key]
        last = at + 1 == self._wanted[key]
        if last:
            self.remove(key)
        else:
            self._next[key] = at + 1
        return Due(key, at, last)

    def next_step_s(self, now_s: float) -> float:
        """When the first step after `now_s` is due: on a grid, so that a late step delays no other."""
        if self.step_ms == 0:
            return now_s
        step_s = self.step_ms / 1000
        due_s = (now_s // step_s + 1) * step_s
        return due_s if due_s > now_s else due_s + step_s  # 1.0 // 0.001 is 999
