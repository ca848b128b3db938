"""Token entries as they came over the wire, decoded only as far as somebody asks.

A report has hundreds of entries, and whoever adds them up wants nine values of each: `facts` reads these and makes no
object per entry, from entries of the wire as from those that a program made. In: a report's entries. Out: facts, the
entries with credit, or an entry as a whole.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, overload

from services.mesh.events import TokenEntry

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


class WireEntries(Sequence[TokenEntry]):
    """A sequence of entries; each is made anew whenever it is asked for.

    Args:
        messages: protobuf messages with the fields of `TokenEntry`; not changed any more.
        decode: makes an entry of one.
    """

    __slots__ = ("_decode", "messages")

    def __init__(self, messages: Sequence[Any], decode: Callable[[Any], TokenEntry]) -> None:
        self.messages = messages
        self._decode = decode

    @overload
    def __getitem__(self, index: int) -> TokenEntry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TokenEntry, ...]: ...
    def __getitem__(self, index: int | slice) -> TokenEntry | tuple[TokenEntry, ...]:
        if isinstance(index, slice):
            return tuple(map(self._decode, self.messages[index]))
        return self._decode(self.messages[index])

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[TokenEntry]:
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
