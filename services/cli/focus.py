"""Charges as rows of a FOCUS 1.3 "Cost and Usage" dataset, token-true: one kind of token per row, in the unit Tokens.

In: charges as the meter streams them, in their order. Out: rows in the order of `COLUMNS`.

What a row is:
- Usage: tokens of one kind, in a day, at one price. Cost = unit price x quantity, exactly: a rate in nano-dollars per
  million tokens is a whole number of 1e-15 dollars per token. The resource is the model; what a tenant used of it in a
  day is split among its workloads in proportion to their tokens, which is what the Allocated* columns say.
- Correction: what came to light of a month after its invoice, or was re-rated; an amount without a quantity.
- Credit: for promises that were not kept. Adjustment: tiers and commitments; and the rounding, one row per tenant and
  day, by which the ledger, which rounds every request's price to the nano-dollar, differs from the exact products. One
  more per issued invoice for the cent that its payable amount is rounded to. So BilledCost sums to the ledger and, over
  an issued invoice, to what it asks for.

Source: FinOps Open Cost and Usage Specification 1.3, https://focus.finops.org/focus-specification/v1-3/.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from services.cli.table_files import Column, Kind, Value
from services.mesh.money import NUSD_PER_USD
from tokenworks.v1 import exports_pb2 as exports

VERSION: Final = "1.3"
PROVIDER: Final = "Tokenworks"
SERVICE: Final = "Token Generation"
METHOD: Final = "tokenworks/by-tokens/1"  # docs/exports.md says what it does
_FUSD_PER_NUSD: Final = 1_000_000  # 1e-15 dollars: tokens x nano-dollars per million
_METERS: Final = {"input": "Input Tokens", "cached_input": "Cached Input Tokens", "output": "Output Tokens"}
_RATIO: Final = 1_000_000_000


def _columns(kind: Kind, *names: str, nullable: bool = True) -> list[Column]:
    return [Column(name, kind, nullable) for name in names]


COLUMNS: Final = tuple(
    sorted(
        [
            *_columns(Kind.DECIMAL, "BilledCost", "ContractedCost", "EffectiveCost", "ListCost", nullable=False),
            *_columns(Kind.DECIMAL, "ConsumedQuantity", "PricingQuantity", "ContractedUnitPrice", "ListUnitPrice"),
            *_columns(Kind.TIME, "BillingPeriodStart", "BillingPeriodEnd", nullable=False),
            *_columns(Kind.TIME, "ChargePeriodStart", "ChargePeriodEnd", nullable=False),
            *_columns(
                Kind.TEXT,
                "BillingAccountId",
                "BillingCurrency",
                "ChargeCategory",
                "HostProviderName",
                "InvoiceIssuerName",
                "ProviderName",
                "PublisherName",
                "ServiceCategory",
                "ServiceName",
                "ServiceProviderName",
                "ServiceSubcategory",
                nullable=False,
            ),
            *_columns(
                Kind.TEXT,
                "AllocatedMethodDetails",
                "AllocatedMethodId",
                "AllocatedResourceId",
                "AllocatedResourceName",
                "AllocatedTags",
                "BillingAccountName",
                "BillingAccountType",
                "ChargeClass",
                "ChargeDescription",
                "ChargeFrequency",
                "ConsumedUnit",
                "InvoiceId",
                "PricingCategory",
                "PricingUnit",
                "ResourceId",
                "ResourceName",
                "ResourceType",
                "SkuId",
                "SkuMeter",
                "SkuPriceDetails",
                "SkuPriceId",
                "Tags",
            ),
        ]
    )
)
_NAMES: Final = tuple(each.name for each in COLUMNS)

Row = dict[str, Value]


def values_of(row: Row) -> list[Value]:
    """A row's values in the order of `COLUMNS`."""
    return [row.get(name) for name in _NAMES]


class FocusRows:
    """Makes rows of charges; `take` gives those that are complete, `end` the rest.

    Args:
        issuer: who invoices.
    """

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer
        self._origin: list[exports.Charge] = []  # of one tenant, model, class, accelerator and day: all its workloads
        self._day: tuple[int, str] = (0, "")
        self._rest_fusd: dict[tuple[int, int, str], int] = {}  # of a tenant's day, by billing period and invoice
        self.invoices: set[tuple[str, str]] = set()  # tenant and month of those that rows are on

    def take(self, charge: exports.Charge) -> Iterator[Row]:
        if self._origin and _origin(self._origin[-1]) != _origin(charge):
            yield from self._split()
        if (charge.from_unix_ms, charge.tenant) != self._day:
            yield from self._roundings()
            self._day = charge.from_unix_ms, charge.tenant
        self._origin.append(charge)

    def end(self) -> Iterator[Row]:
        yield from self._split()
        yield from self._roundings()

    def invoice_rounding(self, invoice: exports.Invoice) -> Iterator[Row]:
        """The row by which an issued invoice's payable amount differs from its total."""
        nusd = invoice.payable_cents * (NUSD_PER_USD // 100) - invoice.total_nusd
        if nusd:
            period = exports.Charge(
                from_unix_ms=invoice.from_unix_ms,
                to_unix_ms=invoice.to_unix_ms,
                tenant=invoice.tenant,
                billing_from_unix_ms=invoice.from_unix_ms,
                billing_to_unix_ms=invoice.to_unix_ms,
                invoice=invoice.number,
            )
            text = f"Rounding of invoice {invoice.number} to the cent"
            yield self._amount(period, "Adjustment", nusd * _FUSD_PER_NUSD, text, of_model=False)

    def _split(self) -> Iterator[Row]:
        """Rows of all workloads of one origin charge."""
        charges, self._origin = self._origin, []
        totals: dict[str, int] = {}
        for each in charges:
            for part in each.tokens:
                totals[part.kind] = totals.get(part.kind, 0) + part.tokens
        ratios = {kind: _ratios([_tokens(each, kind) for each in charges]) for kind in totals}
        for place, charge in enumerate(charges):
            if charge.invoice:
                month = datetime.fromtimestamp(charge.billing_from_unix_ms / 1000, UTC).strftime("%Y-%m")
                self.invoices.add((charge.tenant, month))
            if charge.correction:
                if charge.price_nusd:
                    fusd = charge.price_nusd * _FUSD_PER_NUSD
                    text = f"Correction of {charge.model} tokens of an invoiced month"
                    yield self._amount(charge, "Usage", fusd, text) | {"ChargeFrequency": "Usage-Based"}
            else:
                exact_fusd = 0
                for part in charge.tokens:
                    exact_fusd += part.tokens * part.rate_nusd_per_mtok
                    yield self._usage(charge, part, ratios[part.kind][place])
                billing = charge.billing_from_unix_ms, charge.billing_to_unix_ms, charge.invoice
                rest_fusd = charge.price_nusd * _FUSD_PER_NUSD - exact_fusd
                self._rest_fusd[billing] = self._rest_fusd.get(billing, 0) + rest_fusd
            if charge.credit_nusd:
                text = f"Credit for promises of class {charge.slo_class} that were not kept"
                yield self._amount(charge, "Credit", -charge.credit_nusd * _FUSD_PER_NUSD, text)
            if charge.adjustment_nusd:
                fusd = charge.adjustment_nusd * _FUSD_PER_NUSD
                yield self._amount(charge, "Adjustment", fusd, "Tiers and commitments of the period")

    def _roundings(self) -> Iterator[Row]:
        rests, self._rest_fusd = self._rest_fusd, {}
        from_ms, tenant = self._day
        for (billing_from, billing_to, invoice), fusd in sorted(rests.items()):
            if fusd:
                period = exports.Charge(
                    from_unix_ms=from_ms,
                    to_unix_ms=from_ms + 86_400_000,
                    tenant=tenant,
                    billing_from_unix_ms=billing_from,
                    billing_to_unix_ms=billing_to,
                    invoice=invoice,
                )
                text = "Rounding of each request's price to the nano-dollar"
                yield self._amount(period, "Adjustment", fusd, text, of_model=False)

    def _usage(self, charge: exports.Charge, part: exports.ChargedTokens, ratio: int) -> Row:
        cost = _usd(part.tokens * part.rate_nusd_per_mtok)
        listed = _usd(part.tokens * part.list_rate_nusd_per_mtok)
        quantity = Decimal(part.tokens)
        share = {"AllocatedRatio": ratio / _RATIO, "UsageUnit": "Tokens", "UsageQuantity": part.tokens}
        meter = _METERS[part.kind]
        return (
            self._common(charge, cost, listed)
            | _model(charge)
            | {
                "ChargeCategory": "Usage",
                "ChargeFrequency": "Usage-Based",
                "ChargeDescription": f"{meter} of {charge.model}, SLO class {charge.slo_class}",
                "ConsumedQuantity": quantity,
                "ConsumedUnit": "Tokens",
                "PricingQuantity": quantity,
                "PricingUnit": "Tokens",
                "PricingCategory": "Standard",
                "ContractedUnitPrice": _usd(part.rate_nusd_per_mtok),
                "ListUnitPrice": _usd(part.list_rate_nusd_per_mtok),
                "SkuId": f"{charge.model}/{charge.slo_class}",
                "SkuMeter": meter,
                "SkuPriceId": f"{charge.model}/{charge.slo_class}/{part.kind}",
                "SkuPriceDetails": _json({"x_TokenKind": part.kind, "x_SloClass": charge.slo_class}),
                "AllocatedMethodId": METHOD,
                "AllocatedMethodDetails": _json({"Elements": [share]}),
                "AllocatedResourceId": f"workload/{charge.workload}" if charge.workload else None,
                "AllocatedResourceName": charge.workload or None,
                "AllocatedTags": _json({"tokenworks/workload": charge.workload}) if charge.workload else None,
            }
        )

    def _amount(self, charge: exports.Charge, category: str, fusd: int, text: str, *, of_model: bool = True) -> Row:
        """A row without a quantity."""
        cost = _usd(fusd)
        row: Row = {"ChargeCategory": category, "ChargeFrequency": "One-Time", "ChargeDescription": text}
        return self._common(charge, cost, cost) | (_model(charge) if of_model else {}) | row

    def _common(self, charge: exports.Charge, cost: Decimal, listed: Decimal) -> Row:
        return {
            "BilledCost": cost,
            "EffectiveCost": cost,
            "ContractedCost": cost,
            "ListCost": listed,
            "BillingAccountId": charge.tenant,
            "BillingAccountName": charge.tenant,
            "BillingAccountType": "Tenant",
            "BillingCurrency": "USD",
            "BillingPeriodStart": _time(charge.billing_from_unix_ms),
            "BillingPeriodEnd": _time(charge.billing_to_unix_ms),
            "ChargePeriodStart": _time(charge.from_unix_ms),
            "ChargePeriodEnd": _time(charge.to_unix_ms),
            "ChargeClass": "Correction" if charge.correction else None,
            "HostProviderName": PROVIDER,
            "InvoiceId": charge.invoice or None,
            "InvoiceIssuerName": self._issuer,
            "ProviderName": PROVIDER,
            "PublisherName": PROVIDER,
            "ServiceCategory": "AI and Machine Learning",
            "ServiceName": SERVICE,
            "ServiceProviderName": PROVIDER,
            "ServiceSubcategory": "Generative AI",
        }


def _model(charge: exports.Charge) -> Row:
    tags = {"slo_class": charge.slo_class, "accelerator": charge.accelerator, "price_book": charge.price_book}
    return {
        "ResourceId": f"model/{charge.model}" if charge.model else None,
        "ResourceName": charge.model or None,
        "ResourceType": "Model" if charge.model else None,
        "Tags": _json({f"tokenworks/{name}": value for name, value in tags.items() if value}),
    }


def _origin(charge: exports.Charge) -> tuple[object, ...]:
    return (
        charge.from_unix_ms,
        charge.tenant,
        charge.model,
        charge.slo_class,
        charge.accelerator,
        charge.billing_from_unix_ms,
        charge.invoice,
        charge.correction,
        charge.price_book,
    )


def _tokens(charge: exports.Charge, kind: str) -> int:
    return sum(part.tokens for part in charge.tokens if part.kind == kind)


def _ratios(amounts: Sequence[int]) -> list[int]:
    """Each amount's part of their sum, in billionths that come to a whole; by largest remainders."""
    total = sum(amounts)
    if total <= 0:
        return [_RATIO, *[0] * (len(amounts) - 1)]
    parts = [each * _RATIO // total for each in amounts]
    by_rest = sorted(range(len(amounts)), key=lambda place: -(amounts[place] * _RATIO % total))
    for place in by_rest[: _RATIO - sum(parts)]:
        parts[place] += 1
    return parts


def _usd(fusd: int) -> Decimal:
    return Decimal(fusd).scaleb(-15)


def _time(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)


def _json(document: object) -> str:
    return json.dumps(document, separators=(",", ":"), sort_keys=True)
