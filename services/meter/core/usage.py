"""Usage: the ledger's entries added up by minute and dimension, and groupings of it. Pure.

In: entries; names of fields to group and filter by. Out: sums of `Amounts` by `UsageKey`, and checked `Grouping`s,
which the books on disk and the live view both follow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from services.mesh.errors import InvalidRequest
from services.meter.core.amounts import Amounts
from services.meter.core.ledger import Entry


class UsageKey(NamedTuple):
    """What usage is kept by; `minute` since 1970."""

    minute: int
    tenant: str
    workload: str
    model: str
    accelerator: str
    worker: str
    pool: str
    slo_class: str


DIMENSIONS: Final = UsageKey._fields[1:]
CALLERS: Final = ("team", "key", "session")  # told of requests, not of usage as it is kept by the minute
MINUTES_BY_UNIT: Final = {"minute": 1, "hour": 60, "day": 1440}

Group = tuple[str | int, ...]  # the values of a grouping's names; a time as minutes since 1970


def start_of(unit: str, minute: int) -> int:
    """The first minute of the unit of time that a minute lies in."""
    return minute - minute % MINUTES_BY_UNIT[unit]


@dataclass(frozen=True, slots=True)
class Grouping:
    """What to group by and what to leave out; made by `grouping`.

    Attributes:
        names: out of `DIMENSIONS`, `CALLERS` and `MINUTES_BY_UNIT`, no name twice, at most one unit of time.
        filters: for a name out of `DIMENSIONS` or `CALLERS`, the values that count.
    """

    names: tuple[str, ...] = ()
    filters: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def by_caller(self) -> bool:
        """Whether it asks who called."""
        return any(name in self.names or name in self.filters for name in CALLERS)

    def only(self, **values: str) -> "Grouping":
        """The same with one value for a field; nothing passes where its filter does not have that value."""
        allowed = {
            name: frozenset({value}) & self.filters.get(name, frozenset({value})) for name, value in values.items()
        }
        return Grouping(self.names, {**self.filters, **allowed})

    def group(self, key: UsageKey) -> Group | None:
        """The group that `key` falls into; None when a filter leaves it out."""
        if any(getattr(key, name) not in values for name, values in self.filters.items()):
            return None
        return tuple(
            start_of(name, key.minute) if name in MINUTES_BY_UNIT else getattr(key, name) for name in self.names
        )


def grouping(
    names: Sequence[str],
    filters: Sequence[tuple[str, Sequence[str]]],
    fields: Sequence[str] = (*DIMENSIONS, *CALLERS),
) -> Grouping:
    """Checks what a caller wants to group and filter by, out of `fields` and times.

    Raises:
        InvalidRequest: an unknown or repeated field, two units of time, or a filter without values.
    """
    for name in names:
        if name not in fields and name not in MINUTES_BY_UNIT:
            raise InvalidRequest(f"cannot group by {name!r}; use any of: {', '.join((*fields, *MINUTES_BY_UNIT))}")
    if len(set(names)) != len(names):
        raise InvalidRequest(f"group_by = {list(names)} names a field twice; name each once")
    units = [name for name in names if name in MINUTES_BY_UNIT]
    if len(units) > 1:
        raise InvalidRequest(f"cannot group by {' and '.join(units)} together; use one of them")
    checked: dict[str, frozenset[str]] = {}
    for name, values in filters:
        if name not in fields:
            raise InvalidRequest(f"cannot filter on {name!r}; use any of: {', '.join(fields)}")
        if not values:
            raise InvalidRequest(f"the filter on {name!r} has no values, so nothing could pass; give at least one")
        if name in checked:
            raise InvalidRequest(f"two filters on {name!r}; give all its values in one")
        checked[name] = frozenset(values)
    return Grouping(tuple(names), checked)


def roll_up(entries: Iterable[Entry]) -> dict[UsageKey, Amounts]:
    """The entries added up, in the order of their keys, which spares a database's index."""
    parts: dict[tuple[int | str, ...], list[Amounts]] = {}
    for _, tenant, workload, model, slo_class, (worker, pool, accelerator), minute, amounts in entries:
        key = minute, tenant, workload, model, accelerator, worker, pool, slo_class
        some = parts.get(key)
        if some is None:
            parts[key] = [amounts]
        else:
            some.append(amounts)
    return {
        tuple.__new__(UsageKey, key): some[0] if len(some) == 1 else Amounts._make(map(sum, zip(*some, strict=True)))
        for key, some in sorted(parts.items())
    }


def spent_by_tenant(usage: Mapping[UsageKey, Amounts]) -> dict[str, int]:
    """Nano-dollars billed to each tenant; negative where more was given back."""
    spent: dict[str, int] = {}
    for key, amounts in usage.items():
        if amounts.price_nusd:
            spent[key.tenant] = spent.get(key.tenant, 0) + amounts.price_nusd
    return spent
