"""How long the workers behind a group of usage were paid for: what their use is held against. Pure.

In: what each worker was paid for in each hour. Out: nanoseconds by the hardware and time of a grouping's names. Workers
are paid by the hour here; where the times touch a part of an hour, the part of it that had passed by then counts.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from services.meter.core.usage import MINUTES_BY_UNIT, Group, Grouping, start_of

HARDWARE: Final = ("accelerator", "worker", "pool", *MINUTES_BY_UNIT)
_MINUTES: Final = MINUTES_BY_UNIT["hour"]
_MS_PER_MINUTE: Final = 60_000


class PaidHour(NamedTuple):
    """What workers of this name were paid for in an hour since 1970; empty names where all are added up."""

    hour: int
    accelerator: str
    worker: str
    pool: str
    paid_ns: int


def paid_by_group(
    wanted: Grouping,
    hours: Iterable[PaidHour],
    within: tuple[int | None, int | None],
    now_unix_ms: int,
) -> dict[Group, int]:
    """Nanoseconds by what of the grouping's names is about hardware and time; nothing where it asks for minutes.

    Args:
        within: minutes [first, end) since 1970; None: no bound.
    """
    names = [name for name in wanted.names if name in HARDWARE]
    if "minute" in names:
        return {}
    paid: dict[Group, int] = defaultdict(int)
    for each in hours:
        if any(getattr(each, name) not in values for name, values in wanted.filters.items() if name in HARDWARE):
            continue
        group = tuple(
            start_of(name, each.hour * _MINUTES) if name in MINUTES_BY_UNIT else getattr(each, name) for name in names
        )
        paid[group] += round(each.paid_ns * _part(each.hour, within, now_unix_ms))
    return dict(paid)


def _part(hour: int, within: tuple[int | None, int | None], now_unix_ms: int) -> float:
    """The part of an hour that counts, of what of it has passed."""
    first, end = within
    start = hour * _MINUTES
    passed = min(start + _MINUTES, now_unix_ms / _MS_PER_MINUTE)
    from_minute, to_minute = max(start, first or 0), passed if end is None else min(passed, end)
    return max(0.0, to_minute - from_minute) / (passed - start) if passed > start else 0.0
