"""What tiers take off and commitments add, for a tenant's volume in a period. Pure.

Requests are priced at their entry's first rates as they come (`mesh/price_book.py`). What a period's volume comes to by
the tiers differs from that by an amount that does not depend on the order in which requests came, so it is booked for
the period as a whole, and again whenever the volume grows. At the period's end a commitment adds what was not used.

Volume counts by the minute that it is dated at, and by the book in force then; a period's tiers go on over a change of
books. In: tokens by minute range, the calendar. Out: a balanced state to book, see `journal.py`.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Final, NamedTuple

from services.mesh.credit import month_of
from services.mesh.money import TOKENS_PER_RATE, usd_to_nusd
from services.mesh.price_book import KINDS, Price
from services.meter.core.journal import Account, Booked, Subject, add

MINUTES_PER_DAY: Final = 1440


class Volume(NamedTuple):
    """Tokens of a tenant, model and class, by kind, in a time in which one price book is in force."""

    tenant: str
    model: str
    slo_class: str
    price: Price
    tokens: tuple[int, int, int]  # as `KINDS`


def period_of(minute: int, period: str) -> tuple[int, int]:
    """The minutes [first, end) of the day or month that a minute since 1970 is in, UTC."""
    if period == "day":
        first = minute - minute % MINUTES_PER_DAY
        return first, first + MINUTES_PER_DAY
    first_s, end_s = month_of(minute * 60)
    return first_s // 60, end_s // 60


def adjustments(volumes: Iterable[Volume], *, ended: bool) -> Booked:
    """What is to be booked beside the price for one period.

    Args:
        volumes: of entries of this period's length, in the order of their times.
        ended: the period is over, so that commitments are due.
    """
    booked: Booked = {}
    used: dict[tuple[str, str, str, str, str], list[int]] = {}  # by whom and what the entry names
    last: dict[tuple[str, str, str, str, str], tuple[Price, Subject]] = {}
    for each in volumes:
        price = each.price
        key = (each.tenant, price.model, price.tenant, price.plan, price.slo_class)
        before = used.setdefault(key, [0, 0, 0])
        subject = Subject(tenant=each.tenant, model=each.model, slo_class=each.slo_class)
        for place, kind in enumerate(KINDS):
            tokens = each.tokens[place]
            _book(booked, subject, _tiered(price, kind, before[place], tokens) - _flat(price, kind, tokens))
            before[place] += tokens
        last[key] = price, subject
    if ended:
        for key, (price, subject) in last.items():
            for place, kind in enumerate(KINDS):
                lacking = int(price.committed_mtok(kind) * TOKENS_PER_RATE) - used[key][place]
                if lacking > 0:
                    _book(booked, subject, _tiered(price, kind, used[key][place], lacking))
    return booked


def graduated_nusd(price: Price, kind: str, tokens: int) -> int:
    """What so many tokens of a kind come to in a period, each at the rate of the tier that it falls into.

    Rounded half up once, of the exact amount.
    """
    exact, rate, reached = 0, usd_to_nusd(price.usd_per_mtok(kind)), 0
    for tier in price.tiers:
        start = int(tier.from_mtok * TOKENS_PER_RATE)
        if tokens <= start:
            break
        exact += (start - reached) * rate
        reached = start
        given: Decimal | None = tier.usd_per_mtok(kind)
        rate = rate if given is None else usd_to_nusd(given)
    exact += (tokens - reached) * rate
    return (exact * 2 + TOKENS_PER_RATE) // (2 * TOKENS_PER_RATE)


def _tiered(price: Price, kind: str, before: int, tokens: int) -> int:
    return graduated_nusd(price, kind, before + tokens) - graduated_nusd(price, kind, before)


def _flat(price: Price, kind: str, tokens: int) -> int:
    rate = usd_to_nusd(price.usd_per_mtok(kind))
    return (tokens * rate * 2 + TOKENS_PER_RATE) // (2 * TOKENS_PER_RATE)


def _book(booked: Booked, subject: Subject, amount_nusd: int) -> None:
    add(booked, Account.RECEIVABLE, subject, amount_nusd)
    add(booked, Account.REVENUE, subject, -amount_nusd)
