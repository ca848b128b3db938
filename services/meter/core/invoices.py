"""An invoice, from the charges of one tenant that are on it. Pure.

Lines are by model, SLO class and kind of token, each the tokens at their rate, shown to the nano-dollar. The ledger has
rounded each request's price to the nano-dollar, kind by kind, once; what the lines differ by from that is a line of its
own, so the total is what the ledger says, to the nano-dollar. What is to be paid is the total rounded half up to the
cent: that is the only other rounding. Taxes are not part of it.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from services.mesh.price_book import KINDS
from services.meter.core.charges import Charged, ChargeKey, month_name, priced_nusd, rate_of

NUSD_PER_CENT: Final = 10_000_000


class InvoiceLine(NamedTuple):
    """One line.

    Attributes:
        what: "tokens", "correction" (of an earlier month), "credit", "adjustment" (tiers, commitments), "rounding".
        kind: of token; empty where it is about none.
        month: that is corrected.
    """

    what: str
    model: str = ""
    slo_class: str = ""
    kind: str = ""
    month: str = ""
    tokens: int = 0
    rate_nusd_per_mtok: int = 0
    amount_nusd: int = 0


class Invoice(NamedTuple):
    """`number` is empty, and `issued_unix_ms` 0, of a draft; `payable_cents` is the total rounded half up."""

    number: str
    tenant: str
    from_minute: int
    to_minute: int
    issued_unix_ms: int
    issuer: str
    issuer_address: str
    lines: tuple[InvoiceLine, ...]
    total_nusd: int
    payable_cents: int
    requests: int


def invoice_of(
    charges: Iterable[tuple[ChargeKey, Charged]],
    *,
    tenant: str,
    from_minute: int,
    to_minute: int,
    issuer: str,
    issuer_address: str,
) -> Invoice:
    """The draft of a tenant's invoice, of the charges that are on it."""
    tokens: dict[tuple[str, str, int, int], int] = {}
    others: dict[tuple[str, str, str, str], int] = {}
    requests, price_nusd = 0, 0

    def add(what: str, key: ChargeKey, amount_nusd: int, month: str = "") -> None:
        place = (what, month, key.model, key.slo_class)
        others[place] = others.get(place, 0) + amount_nusd

    for key, each in charges:
        month = month_name(key.day_minute) if key.billing.correction else ""
        add("credit", key, -each.credit_nusd, month)
        add("adjustment", key, each.adjustment_nusd, month)
        if key.billing.correction or each.rates is None:
            add("correction", key, each.price_nusd, month)
            continue
        requests += each.requests
        price_nusd += each.price_nusd
        for place, kind in enumerate(KINDS):
            at = (key.model, key.slo_class, place, rate_of(each.rates, kind))
            tokens[at] = tokens.get(at, 0) + each.tokens[place]
    lines = [
        InvoiceLine("tokens", model, slo_class, KINDS[place], "", count, rate, priced_nusd(count, rate))
        for (model, slo_class, place, rate), count in sorted(tokens.items())
        if count
    ]
    rounding_nusd = price_nusd - sum(each.amount_nusd for each in lines)
    lines += [
        InvoiceLine(what, model, slo_class, month=month, amount_nusd=nusd)
        for (what, month, model, slo_class), nusd in sorted(others.items())
        if nusd
    ]
    if rounding_nusd:
        lines.append(InvoiceLine("rounding", amount_nusd=rounding_nusd))
    total_nusd = sum(each.amount_nusd for each in lines)
    payable_cents = (total_nusd * 2 + NUSD_PER_CENT) // (2 * NUSD_PER_CENT)
    return Invoice(
        "", tenant, from_minute, to_minute, 0, issuer, issuer_address, tuple(lines), total_nusd, payable_cents, requests
    )
