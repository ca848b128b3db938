"""What tenants are charged with, by day and dimension, and which month's invoice that is on. Pure.

A line of the ledger, or a posting, belongs to the invoice that told of it first. An invoice is issued once, with what
the books held then (*cuts*: the last line and the last posting that it knows); it has what is dated before its month's
end and no invoice before it has. So what comes later to a month that is invoiced, a late report or a re-rating, is a
*correction* on the first invoice that is still open, and the sum of all invoices is what the books hold.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from services.mesh.errors import InvalidRequest
from services.mesh.money import TOKENS_PER_RATE
from services.mesh.price_book import KINDS
from services.mesh.pricing import Rates
from services.meter.core.volumes import period_of

MINUTES_PER_DAY: Final = 1440


class Bounds(NamedTuple):
    """Up to which line of the ledger and which posting the books are looked at, inclusive."""

    line: int = 0
    posting: int = 0


class Issued(NamedTuple):
    """An issued invoice: of the minutes [from, to) since 1970 and what came to light of those before, within `cuts`."""

    number: str
    tenant: str
    from_minute: int
    to_minute: int
    cuts: Bounds


class Billing(NamedTuple):
    """The month that is invoiced, minutes since 1970, and the invoice's number, empty while it is not issued."""

    from_minute: int
    to_minute: int
    invoice: str
    correction: bool


class ChargeKey(NamedTuple):
    """What charges are told by; `day_minute` is the day's first, `price_book` what prices the requests now."""

    day_minute: int
    tenant: str
    model: str
    slo_class: str
    accelerator: str
    billing: Billing
    price_book: str
    workload: str


@dataclass(slots=True)
class Charged:
    """What came to a key.

    Attributes:
        tokens: by kind, as `KINDS`.
        rates, list_rates: the tenant's, and anybody's; None where there are no tokens to price.
    """

    tokens: tuple[int, int, int] = (0, 0, 0)
    price_nusd: int = 0
    credit_nusd: int = 0
    adjustment_nusd: int = 0
    requests: int = 0
    rates: Rates | None = None
    list_rates: Rates | None = None

    def add(self, other: "Charged") -> None:
        """Adds amounts; rates stay those that were known first."""
        a, b, c = self.tokens
        d, e, f = other.tokens
        self.tokens = (a + d, b + e, c + f)
        self.price_nusd += other.price_nusd
        self.credit_nusd += other.credit_nusd
        self.adjustment_nusd += other.adjustment_nusd
        self.requests += other.requests
        self.rates = self.rates or other.rates
        self.list_rates = self.list_rates or other.list_rates

    @property
    def something(self) -> bool:
        return bool(any(self.tokens) or self.price_nusd or self.credit_nusd or self.adjustment_nusd)


@dataclass(slots=True)
class Charges:
    """Charges added up."""

    by_key: dict[ChargeKey, Charged] = field(default_factory=dict)

    def add(self, key: ChargeKey, charged: Charged) -> None:
        known = self.by_key.get(key)
        if known is None:
            self.by_key[key] = charged
        else:
            known.add(charged)

    def ordered(self) -> list[tuple[ChargeKey, Charged]]:
        """Those that come to something, by key."""
        return sorted(((key, each) for key, each in self.by_key.items() if each.something), key=lambda pair: pair[0])


def rate_of(rates: Rates, kind: str) -> int:
    """Nano-dollars per million tokens of a kind (`KINDS`)."""
    rate: int = getattr(rates, f"{kind}_nusd_per_mtok")
    return rate


def month_name(minute: int) -> str:
    """The month of a minute since 1970, as 2026-11."""
    return datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m")


def parse_month(text: str) -> tuple[int, int]:
    """The minutes [first, end) since 1970 of a month that is written as 2026-11.

    Raises:
        InvalidRequest: it is not, or is before 1970, or of a year that calendars end with.
    """
    try:
        first = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        first = None
    if first is None or not 1970 <= first.year < 9999 or first.strftime("%Y-%m") != text:
        raise InvalidRequest(f"month = {text!r} is not a month; write it like 2026-11")
    return period_of(int(first.timestamp()) // 60, "month")


def billing_of(issued: Sequence[Issued], cuts: Bounds, minute: int) -> Billing:
    """Which invoice of a tenant has, or will have, what is dated at a minute.

    Args:
        issued: the tenant's, in the order of their months.
        cuts: the line or posting; what of the two it is not, 0.
    """
    for each in issued:
        if minute < each.to_minute and cuts.line <= each.cuts.line and cuts.posting <= each.cuts.posting:
            return Billing(each.from_minute, each.to_minute, each.number, correction=minute < each.from_minute)
    if issued and minute < issued[-1].to_minute:
        return Billing(*period_of(issued[-1].to_minute, "month"), "", correction=True)
    return Billing(*period_of(minute, "month"), "", correction=False)


def by_tenant(issued: Iterable[Issued]) -> Mapping[str, list[Issued]]:
    """Each tenant's, in the order of their months."""
    found: dict[str, list[Issued]] = {}
    for each in sorted(issued, key=lambda each: each.to_minute):
        found.setdefault(each.tenant, []).append(each)
    return found


def pieces(ranges: Iterable[tuple[int, int]], cuts: Iterable[int], most: int) -> list[tuple[int, int]]:
    """Ranges of ids (after, through] cut so that no cut is within one and none has more than `most` ids."""
    borders = sorted(set(cuts))
    found = []
    for after, through in ranges:
        start = after
        for border in (*(each for each in borders if after < each < through), through):
            while start < border:
                end = min(border, start + most)
                found.append((start, end))
                start = end
    return found


def priced_nusd(tokens: int, rate_nusd_per_mtok: int) -> int:
    """What tokens come to at a rate, rounded half up to the nano-dollar; `tokens` may be negative."""
    return (tokens * rate_nusd_per_mtok * 2 + TOKENS_PER_RATE) // (2 * TOKENS_PER_RATE)


assert KINDS == ("input", "cached_input", "output")  # the order of `Charged.tokens`
