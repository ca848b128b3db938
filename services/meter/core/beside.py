"""What usage and bills say beside the ledger's lines: idle, what the house bears, carbon, credits, adjustments. Pure.

In: amounts by account, as booked and as they stand. Out: their sums by group.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from services.meter.core.amounts import Amounts
from services.meter.core.journal import HOUSE, OF_REQUESTS, Account, Posting, Value
from services.meter.core.requests import Key
from services.meter.core.usage import CALLERS, MINUTES_BY_UNIT, Group, Grouping, start_of


class Caller(NamedTuple):
    """Who asked; each empty where it is not known, or there is none."""

    team: str = ""
    key: str = ""
    session: str = ""


_NOBODY: Final = Caller()
assert Caller._fields == CALLERS


@dataclass(slots=True)
class Beside:
    """Nano-dollars of one group; use and energy are what the bill adds to those of the ledger's lines."""

    use_nusd: int = 0
    energy_nusd: int = 0
    idle_nusd: int = 0
    house_nusd: int = 0
    credit_nusd: int = 0
    adjustment_nusd: int = 0
    carbon_ug: int = 0

    def take(self, account: Account, value: Value) -> None:
        self.carbon_ug += value.carbon_ug
        match account:
            case Account.USE:
                self.use_nusd += value.amount_nusd
            case Account.ENERGY:
                self.energy_nusd += value.amount_nusd
            case Account.IDLE:
                self.idle_nusd += value.amount_nusd
            case Account.SLO_CREDIT:
                self.credit_nusd += value.amount_nusd
            case Account.REVENUE:
                self.adjustment_nusd -= value.amount_nusd
            case _ if account in HOUSE:
                self.house_nusd += value.amount_nusd

    def add(self, other: "Beside") -> None:
        for name in Beside.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def margin_nusd(self, amounts: Amounts) -> int:
        """What is left of the price of these requests, with `amounts` by the ledger's lines."""
        costs_nusd = amounts.use_cost_nusd + self.use_nusd + amounts.energy_cost_nusd + self.energy_nusd
        paid_nusd = amounts.price_nusd + self.adjustment_nusd - self.credit_nusd
        return paid_nusd - costs_nusd - self.idle_nusd - self.house_nusd


class Row(NamedTuple):
    group: Group
    amounts: Amounts
    beside: Beside


def by_group(
    wanted: Grouping,
    lines: Iterable[tuple[Group, Amounts]],
    booked: Iterable[tuple[Group, Account, Value]],
    standing: Mapping[int, Iterable[Posting]],
    within: tuple[int | None, int | None],
    *,
    callers: Mapping[Key, Caller] = MappingProxyType({}),
) -> list[Row]:
    """The ledger's sums and what stands beside them, ordered by group.

    Args:
        booked: postings, grouped.
        standing: what is not booked yet, by hour since 1970.
        within: hours [first, end) of `standing` that count; None: no bound.
        callers: of the requests in `standing`, where `wanted` asks for them.
    """
    rows = {group: Row(group, amounts, Beside()) for group, amounts in lines}

    def take(group: Group, account: Account, value: Value) -> None:
        row = rows.get(group)
        if row is None:
            row = rows[group] = Row(group, Amounts(), Beside())
        row.beside.take(account, value)

    for group, account, value in booked:
        take(group, account, value)
    first, end = within
    for hour, postings in standing.items():
        if (first is None or hour >= first) and (end is None or hour < end):
            for posting in postings:
                if (its_group := _group(wanted, hour, posting, callers)) is not None:
                    take(its_group, posting.account, posting.value)
    shown = (row for row in rows.values() if any(row.amounts) or row.beside != Beside())
    return sorted(shown, key=lambda row: row.group)


def _group(wanted: Grouping, hour: int, posting: Posting, callers: Mapping[Key, Caller]) -> Group | None:
    of_house, subject = posting.account in HOUSE, posting.subject

    def told(name: str) -> str:
        if of_house and (name in OF_REQUESTS or name in CALLERS):
            return ""
        of = callers.get((subject.request_id, subject.tenant), _NOBODY) if name in CALLERS else subject
        value: str = getattr(of, name)
        return value

    if any(told(name) not in values for name, values in wanted.filters.items()):
        return None
    return tuple(
        start_of(name, hour * MINUTES_BY_UNIT["hour"]) if name in MINUTES_BY_UNIT else told(name)
        for name in wanted.names
    )
