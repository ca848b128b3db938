"""The rules of FOCUS 1.3 for a "Cost and Usage" dataset, as a table, each with the column's page that states it.

In: rows as texts by column, None for nothing, as `table_files.read_texts` gives them. Out: what breaks which rule.
What a person must judge (is a name the right one?) is not here, nor rules of columns that hold nothing for a mesh of
its own accelerators: commitment discounts, capacity reservations, regions, other currencies.

Source: FinOps Open Cost and Usage Specification, `specification/datasets/cost_and_usage/columns/*.md` and
`specification/attributes/*.md`, https://github.com/FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import islice
from typing import Final, NamedTuple

TextRow = Mapping[str, str | None]

_DECIMAL: Final = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_PASCAL: Final = re.compile(r"(x_)?[A-Z][A-Za-z0-9]*")
_MOST_FINDINGS: Final = 100

MANDATORY: Final = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "HostProviderName",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ServiceCategory",
    "ServiceName",
    "ServiceProviderName",
)
_NOT_NULL: Final = tuple(
    name for name in MANDATORY if name not in {"BillingAccountName", "ChargeClass", "ChargeDescription"}
    and not name.startswith("Pricing")
)  # fmt: skip
_DECIMALS: Final = (
    "BilledCost",
    "ConsumedQuantity",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "ListCost",
    "ListUnitPrice",
    "PricingQuantity",
)
_TIMES: Final = ("BillingPeriodEnd", "BillingPeriodStart", "ChargePeriodEnd", "ChargePeriodStart")
_ALLOWED: Final = {
    "ChargeCategory": ("Usage", "Purchase", "Tax", "Credit", "Adjustment"),
    "ChargeClass": ("Correction",),
    "ChargeFrequency": ("One-Time", "Recurring", "Usage-Based"),
    "PricingCategory": ("Standard", "Dynamic", "Committed", "Other"),
}
_AI: Final = (
    "AI Platforms",
    "Bots",
    "Generative AI",
    "Machine Learning",
    "Natural Language Processing",
    "Other (AI and Machine Learning)",
)
_CATEGORIES: Final = (
    "AI and Machine Learning",
    "Analytics",
    "Business Applications",
    "Compute",
    "Databases",
    "Developer Tools",
    "Identity",
    "Integration",
    "Internet of Things",
    "Management and Governance",
    "Media",
    "Migration",
    "Mobile",
    "Multicloud",
    "Networking",
    "Security",
    "Storage",
    "Web",
    "Other",
)


class Rule(NamedTuple):
    """`holds` says whether a row keeps it; `page` is the column's or attribute's, below `specification/`."""

    column: str
    says: str
    page: str
    holds: Callable[[TextRow], bool]


class Finding(NamedTuple):
    """`row` counts from 1; 0: the whole file."""

    row: int
    rule: Rule


def _column(name: str) -> str:
    return f"datasets/cost_and_usage/columns/{name.lower()}.md"


def _rule(name: str, says: str, holds: Callable[[TextRow], bool]) -> Rule:
    return Rule(name, says, _column(name), holds)


def _charged(row: TextRow) -> bool:
    """Usage or a purchase, and no correction."""
    return row.get("ChargeCategory") in ("Usage", "Purchase") and row.get("ChargeClass") != "Correction"


def _number(row: TextRow, name: str) -> Decimal | None:
    text = row.get(name)
    return Decimal(text) if text is not None and _DECIMAL.fullmatch(text) else None


def _is_product(cost: str, unit_price: str) -> Callable[[TextRow], bool]:
    def holds(row: TextRow) -> bool:
        price, quantity, amount = _number(row, unit_price), _number(row, "PricingQuantity"), _number(row, cost)
        return price is None or quantity is None or amount == price * quantity

    return holds


def _has(name: str) -> Callable[[TextRow], bool]:
    return lambda row: row.get(name) is not None


def _is_column(name: str) -> Callable[[TextRow], bool]:
    return lambda row: name in row


def _of_form(name: str, form: re.Pattern[str]) -> Callable[[TextRow], bool]:
    """Nothing, or what has the form as a whole."""
    return lambda row: row.get(name) is None or bool(form.fullmatch(row[name] or ""))


def _one_of(name: str, allowed: Collection[str]) -> Callable[[TextRow], bool]:
    """Nothing, or one of these."""
    return lambda row: row.get(name) is None or row[name] in allowed


def _has_if_charged(name: str) -> Callable[[TextRow], bool]:
    return lambda row: not _charged(row) or row.get(name) is not None


def _before(first: str, second: str) -> Callable[[TextRow], bool]:
    return lambda row: (row.get(first) or "") < (row.get(second) or "")


def _null_together(first: str, second: str) -> Callable[[TextRow], bool]:
    return lambda row: row.get(second) is not None or row.get(first) is None


def _object(text: str | None) -> dict[str, object] | None:
    try:
        found = json.loads(text or "")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _plain_object(name: str) -> Callable[[TextRow], bool]:
    """Nothing, or a JSON object of plain values."""

    def holds(row: TextRow) -> bool:
        if row.get(name) is None:
            return True
        found = _object(row.get(name))
        return found is not None and not any(isinstance(each, dict | list) or each is None for each in found.values())

    return holds


def _method_details(row: TextRow) -> bool:
    if row.get("AllocatedMethodDetails") is None:
        return True
    found = _object(row.get("AllocatedMethodDetails"))
    elements = found.get("Elements") if found else None
    if not isinstance(elements, list) or not elements:
        return False
    return all(
        isinstance(each, dict)
        and isinstance(each.get("AllocatedRatio"), int | float)
        and 0 <= each["AllocatedRatio"] <= 1
        and ("UsageQuantity" not in each or "UsageUnit" in each)
        for each in elements
    )


def _sku_details(row: TextRow) -> bool:
    found = _object(row.get("SkuPriceDetails")) if row.get("SkuPriceDetails") is not None else {}
    return found is not None and all(_PASCAL.fullmatch(name) for name in found)


ROW_RULES: Final = (
    *(_rule(name, "MUST NOT be null", _has(name)) for name in _NOT_NULL),
    *(
        Rule(
            name,
            "MUST be a decimal number, without separators or units",
            "attributes/numeric_format.md",
            _of_form(name, _DECIMAL),
        )
        for name in _DECIMALS
    ),
    *(
        Rule(
            name,
            "MUST be a time in UTC like 2026-11-24T09:00:00Z",
            "attributes/date_time_format.md",
            _of_form(name, _TIME),
        )
        for name in _TIMES
    ),
    *(
        _rule(name, f"MUST be one of {', '.join(allowed)}", _one_of(name, allowed))
        for name, allowed in _ALLOWED.items()
    ),
    Rule(
        "BillingCurrency",
        "MUST be a currency code of ISO 4217",
        "attributes/currency_format.md",
        lambda row: bool(re.fullmatch("[A-Z]{3}", row.get("BillingCurrency") or "")),
    ),
    _rule("BillingPeriodEnd", "MUST be after BillingPeriodStart", _before("BillingPeriodStart", "BillingPeriodEnd")),
    _rule("ChargePeriodEnd", "MUST be after ChargePeriodStart", _before("ChargePeriodStart", "ChargePeriodEnd")),
    _rule("ServiceCategory", "MUST be an allowed value", lambda row: row.get("ServiceCategory") in _CATEGORIES),
    _rule(
        "ServiceSubcategory",
        "MUST have the one parent ServiceCategory that the specification names",
        lambda row: row.get("ServiceSubcategory") is None
        or row.get("ServiceCategory") != "AI and Machine Learning"
        or row["ServiceSubcategory"] in _AI,
    ),
    _rule(
        "ContractedCost",
        "MUST equal BilledCost when ChargeCategory is Credit",
        lambda row: row.get("ChargeCategory") != "Credit" or row.get("ContractedCost") == row.get("BilledCost"),
    ),
    _rule(
        "ContractedCost",
        "MUST equal ContractedUnitPrice x PricingQuantity",
        _is_product("ContractedCost", "ContractedUnitPrice"),
    ),
    _rule("ListCost", "MUST equal ListUnitPrice x PricingQuantity", _is_product("ListCost", "ListUnitPrice")),
    *(
        _rule(name, "MUST NOT be null of Usage and Purchase that is no correction", _has_if_charged(name))
        for name in ("PricingQuantity", "PricingUnit", "PricingCategory", "SkuId", "SkuPriceId", "SkuMeter")
    ),
    *(
        _rule(name, "MUST be null when SkuPriceId is null", _null_together(name, "SkuPriceId"))
        for name in ("ConsumedQuantity", "ContractedUnitPrice", "ListUnitPrice", "PricingQuantity", "SkuPriceDetails")
    ),
    _rule("SkuPriceId", "MUST be null when SkuId is null", _null_together("SkuPriceId", "SkuId")),
    _rule("PricingUnit", "MUST be null when PricingQuantity is null", _null_together("PricingUnit", "PricingQuantity")),
    _rule("ConsumedUnit", "MUST be null without ConsumedQuantity", _null_together("ConsumedUnit", "ConsumedQuantity")),
    _rule("ConsumedQuantity", "MUST have a ConsumedUnit", _null_together("ConsumedQuantity", "ConsumedUnit")),
    _rule(
        "ConsumedQuantity",
        "MUST NOT be null of Usage that is no correction, MUST be null of all but Usage",
        lambda row: (row.get("ConsumedQuantity") is not None) if row.get("ChargeCategory") == "Usage" and _charged(row)
        else row.get("ConsumedQuantity") is None or row.get("ChargeCategory") == "Usage",
    ),
    _rule(
        "ChargeFrequency",
        "MUST NOT be Usage-Based when ChargeCategory is Purchase",
        lambda row: row.get("ChargeFrequency") != "Usage-Based" or row.get("ChargeCategory") != "Purchase",
    ),
    _rule("ResourceName", "MUST be null when ResourceId is null", _null_together("ResourceName", "ResourceId")),
    _rule("ResourceType", "MUST be null when ResourceId is null", _null_together("ResourceType", "ResourceId")),
    Rule("Tags", "MUST be a JSON object of plain values", "attributes/key_value_format.md", _plain_object("Tags")),
    Rule(
        "AllocatedTags",
        "MUST be a JSON object of plain values",
        "attributes/key_value_format.md",
        _plain_object("AllocatedTags"),
    ),
    _rule("SkuPriceDetails", "MUST be a JSON object whose keys are in PascalCase, ours with x_", _sku_details),
    *(
        _rule(name, "MUST be null when AllocatedMethodId is null", _null_together(name, "AllocatedMethodId"))
        for name in ("AllocatedMethodDetails", "AllocatedResourceId", "AllocatedTags")
    ),
    _rule(
        "AllocatedResourceName",
        "MUST be null when AllocatedResourceId is null",
        _null_together("AllocatedResourceName", "AllocatedResourceId"),
    ),
    _rule(
        "AllocatedMethodDetails",
        "MUST have Elements, each with an AllocatedRatio of 0 to 1, and a UsageUnit with every UsageQuantity",
        _method_details,
    ),
)  # fmt: skip
_PRESENT: Final = tuple(_rule(name, "MUST be present", _is_column(name)) for name in MANDATORY)
_PASCAL_CASE: Final = Rule(
    "*", "columns MUST be in PascalCase, those that are not FOCUS's with x_ before", "attributes/column_handling.md",
    lambda row: all(_PASCAL.fullmatch(name) for name in row),
)  # fmt: skip
_RATIOS_SUM: Final = _rule(
    "AllocatedMethodDetails", "AllocatedRatio of all charges of one origin charge MUST sum to 1", lambda _: False
)
_ONE_SKU: Final = _rule("SkuPriceId", "MUST have one and only one parent SkuId", lambda _: False)
RULES: Final = (*_PRESENT, _PASCAL_CASE, *ROW_RULES, _RATIOS_SUM, _ONE_SKU)
# What is the same of all charges that were split from one.
_OF_ORIGIN: Final = (
    "BillingAccountId",
    "BillingPeriodStart",
    "ChargePeriodStart",
    "InvoiceId",
    "ResourceId",
    "SkuPriceId",
    "Tags",
    "AllocatedMethodId",
)


def broken_rules(rows: Iterable[TextRow]) -> Iterator[Finding]:
    """What breaks which rule, row by row, at most a hundred; a file without rows breaks none."""
    return islice(_findings(rows), _MOST_FINDINGS)


def _findings(rows: Iterable[TextRow]) -> Iterator[Finding]:
    parents: dict[str, str | None] = {}
    ratios: dict[tuple[str | None, ...], Decimal] = {}
    for number, row in enumerate(rows, 1):
        if number == 1:
            yield from (Finding(0, rule) for rule in (*_PRESENT, _PASCAL_CASE) if not rule.holds(row))
        yield from (Finding(number, rule) for rule in ROW_RULES if not rule.holds(row))
        sku_price, sku = row.get("SkuPriceId"), row.get("SkuId")
        if sku_price is not None and parents.setdefault(sku_price, sku) != sku:
            yield Finding(number, _ONE_SKU)
        if row.get("AllocatedMethodId") is not None and _method_details(row):
            details = json.loads(row["AllocatedMethodDetails"] or "{}", parse_float=Decimal)
            origin = tuple(row.get(name) for name in _OF_ORIGIN)
            part = sum((Decimal(each["AllocatedRatio"]) for each in details.get("Elements", ())), Decimal(0))
            ratios[origin] = ratios.get(origin, Decimal(0)) + part
    yield from (Finding(0, _RATIOS_SUM) for total in ratios.values() if total != 1)
