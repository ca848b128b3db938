"""Token entries, and whatever else comes in numbers, as they came over the wire: decoded only as far as somebody asks.

A report has hundreds of entries, and whoever adds them up wants nine values of each: `facts` reads these and makes no
object per entry, from entries of the wire as from those that a program made. In: a report's entries. Out: facts, the
entries with credit, or an entry as a whole.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, TypeVar, overload

from services.mesh.events import TokenEntry

E = TypeVar("E")

# request id, tenant, from_index, count, prompt_tokens, cached_prompt_tokens, device_ns, energy_uj, last
Fact = tuple[str, str, int, int, int, int, int, int, bool]

_FACT: Final[Callable[[Any], Fact]] = attrgetter(
    "request_id",
    "tenant",
    "from_index",
    "count",
    "prompt_tokens",
    "cached_prompt_tokens",
    "device_ns",
    "energy_uj",
    "last",
)


class WireEntries(Sequence[E]):
    """A sequence of entries; each is made anew whenever it is asked for.

    Args:
        messages: protobuf messages with the fields of an entry; not changed any more.
        decode: makes an entry of one.
    """

    __slots__ = ("_decode", "messages")

    def __init__(self, messages: Sequence[Any], decode: Callable[[Any], E]) -> None:
        self.messages = messages
        self._decode = decode

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[E, ...]: ...
    def __getitem__(self, index: int | slice) -> E | tuple[E, ...]:
        if isinstance(index, slice):
            return tuple(map(self._decode, self.messages[index]))
        return self._decode(self.messages[index])

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[E]:
        return map(self._decode, self.messages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple | WireEntries) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def facts(entries: Sequence[TokenEntry]) -> Iterator[Fact]:
    """What each entry adds, in order."""
    return map(_FACT, entries.messages if isinstance(entries, WireEntries) else entries)


def funded(entries: Sequence[TokenEntry]) -> list[int]:
    """The positions of the entries that say what credit is held for their request."""
    told: Sequence[Any] = entries.messages if isinstance(entries, WireEntries) else entries
    return [position for position, each in enumerate(told) if each.funding]
