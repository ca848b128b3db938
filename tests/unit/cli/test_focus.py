"""FOCUS rows come to the ledger and keep the rules; every rule finds a row that breaks it."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from services.cli.focus import COLUMNS, FocusRows, Row, values_of
from services.cli.focus_rules import MANDATORY, RULES, broken_rules
from services.cli.output import CommandFailed
from services.cli.table_files import Column, Kind, read_texts, table_file, text_of
from tokenworks.v1 import exports_pb2 as exports

DAY_MS = 86_400_000
NUSD = Decimal("1e-9")


def charge(**fields: Any) -> exports.Charge:
    usual = {
        "to_unix_ms": DAY_MS,
        "tenant": "acme",
        "workload": "chat",
        "model": "llama-3.1-8b",
        "slo_class": "standard",
        "accelerator": "nvidia-l4",
        "price_book": "list@1",
        "billing_to_unix_ms": 31 * DAY_MS,
    }
    return exports.Charge(**{**usual, **fields})


def part(kind: str, tokens: int, rate: int = 50_000_001, list_rate: int = 70_000_000) -> exports.ChargedTokens:
    return exports.ChargedTokens(kind=kind, tokens=tokens, rate_nusd_per_mtok=rate, list_rate_nusd_per_mtok=list_rate)


def rows_of(charges: list[exports.Charge]) -> list[Row]:
    maker = FocusRows("The Issuer")
    return [row for each in charges for row in maker.take(each)] + list(maker.end())


def texts_of(rows: list[Row]) -> list[dict[str, str | None]]:
    names = [each.name for each in COLUMNS]
    return [{name: text_of(value) or None for name, value in zip(names, values_of(row), strict=True)} for row in rows]


MADE = [
    charge(workload="", tokens=[part("input", 7), part("output", 1)], price_nusd=400, requests=1),
    charge(tokens=[part("input", 3), part("cached_input", 11), part("output", 2)], price_nusd=801, credit_nusd=5),
    charge(workload="other", tokens=[part("input", 9)], price_nusd=450, adjustment_nusd=-3),
    charge(correction=True, price_nusd=77, invoice="TW-000001"),
    charge(from_unix_ms=DAY_MS, to_unix_ms=2 * DAY_MS, tokens=[part("output", 10)], price_nusd=501),
]


@given(
    amounts=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["", "a", "b", "c"]),
            st.lists(st.integers(1, 10**12), min_size=1, max_size=3),
            st.integers(-3, 3),
            st.integers(0, 10),
        ),
        unique_by=lambda each: (each[0], each[1]),
        max_size=8,
    )
)
def test_rows_come_to_the_ledger_and_keep_the_rules(amounts: list[tuple[int, str, list[int], int, int]]) -> None:
    charges, expected = [], 0
    for day, workload, tokens, off_nusd, credit_nusd in sorted(amounts):
        kinds = ("input", "cached_input", "output")
        parts = [part(kind, count) for kind, count in zip(kinds, tokens, strict=False)]
        price_nusd = sum(each.tokens * each.rate_nusd_per_mtok // 1_000_000 for each in parts) + off_nusd
        expected += price_nusd - credit_nusd
        charges.append(
            charge(
                from_unix_ms=day * DAY_MS,
                to_unix_ms=(day + 1) * DAY_MS,
                workload=workload,
                tokens=parts,
                price_nusd=price_nusd,
                credit_nusd=credit_nusd,
            )
        )
    rows = texts_of(rows_of(charges))
    assert list(broken_rules(rows)) == []
    assert sum((Decimal(row["BilledCost"] or "") for row in rows), Decimal(0)) == expected * NUSD


def test_a_row_has_one_kind_of_token_and_says_whom_it_was_split_to() -> None:
    rows = texts_of(rows_of(MADE))
    assert list(broken_rules(rows)) == []
    chat = next(row for row in rows if row["SkuMeter"] == "Input Tokens" and row["AllocatedResourceName"] == "chat")
    assert (chat["ConsumedQuantity"], chat["PricingUnit"]) == ("3.0", "Tokens")
    assert chat["BilledCost"] == "0.000000150000003"
    assert chat["ListCost"] == "0.00000021"
    details = json.loads(chat["AllocatedMethodDetails"] or "")
    assert details["Elements"] == [{"AllocatedRatio": 0.157894737, "UsageQuantity": 3, "UsageUnit": "Tokens"}]
    nobody = next(row for row in rows if row["ConsumedQuantity"] == "7.0")
    assert nobody["AllocatedResourceId"] is None
    assert nobody["AllocatedMethodId"]
    categories = [row["ChargeCategory"] for row in rows]
    assert {name: categories.count(name) for name in ("Credit", "Adjustment")} == {"Credit": 1, "Adjustment": 3}
    assert [row["InvoiceId"] for row in rows if row["ChargeClass"] == "Correction"] == ["TW-000001"]


def test_an_invoices_rounding_to_the_cent_is_a_row() -> None:
    invoice = exports.Invoice(number="TW-000001", tenant="acme", to_unix_ms=DAY_MS, total_nusd=4_999_999)
    (row,) = texts_of(list(FocusRows("us").invoice_rounding(invoice)))
    assert (row["BilledCost"], row["InvoiceId"]) == ("-0.004999999", "TW-000001")
    assert list(FocusRows("us").invoice_rounding(exports.Invoice(total_nusd=10_000_000, payable_cents=1))) == []


BREAKING = [
    *({name: None} for name in ("BilledCost", "BillingAccountId", "PricingQuantity", "SkuId", "ConsumedUnit")),
    {"BilledCost": "$1"},
    {"ListCost": "1,000"},
    {"ChargePeriodStart": "2026-11-24"},
    {"ChargePeriodEnd": "1970-01-01T00:00:00Z"},
    {"BillingPeriodEnd": "1970-01-01T00:00:00Z"},
    {"ChargeCategory": "Spend"},
    {"ChargeClass": "Late"},
    {"ChargeFrequency": "Daily"},
    {"PricingCategory": "On-Demand"},
    {"BillingCurrency": "usd"},
    {"ServiceCategory": "Tokens"},
    {"ServiceSubcategory": "Containers"},
    {"ChargeCategory": "Credit", "BilledCost": "9"},
    {"ChargeCategory": "Purchase"},
    {"ContractedUnitPrice": "1"},
    {"ListUnitPrice": "1"},
    {"SkuPriceId": None},
    {"ResourceId": None},
    {"Tags": "[]"},
    {"AllocatedTags": '{"a":{}}'},
    {"SkuPriceDetails": '{"token_kind":"input"}'},
    {"AllocatedMethodId": None},
    {"AllocatedResourceId": None},
    {"AllocatedMethodDetails": '{"Elements":[]}'},
    {"AllocatedMethodDetails": '{"Elements":[{"AllocatedRatio":2}]}'},
    {"AllocatedMethodDetails": '{"Elements":[{"AllocatedRatio":0.5}]}'},
    {"AllocatedMethodDetails": '{"Elements":[{"AllocatedRatio":1,"UsageQuantity":1}]}'},
    {"SkuId": "another"},
]


@pytest.mark.parametrize("change", BREAKING, ids=str)
def test_a_row_that_breaks_a_rule_is_found(change: dict[str, str | None]) -> None:
    rows = texts_of(rows_of([charge(tokens=[part("input", 3)], price_nusd=150)]))
    usage = next(row for row in rows if row["ChargeCategory"] == "Usage")
    before = dict(usage)
    usage.update(change)
    assert list(broken_rules([before])) == []
    assert list(broken_rules([before, usage]))


@pytest.mark.parametrize("name", MANDATORY)
def test_a_file_without_a_mandatory_column_is_found(name: str) -> None:
    rows = texts_of(rows_of(MADE))
    for row in rows:
        del row[name]
    assert any(each.row == 0 and each.rule.column == name for each in broken_rules(rows))


def test_every_rule_names_its_page_of_the_specification() -> None:
    assert len(RULES) > 80
    for rule in RULES:
        assert rule.page.startswith(("attributes/", "datasets/cost_and_usage/columns/"))
        assert rule.page.endswith(".md")
    assert len(list(broken_rules([{"bad name": "1"}] * 200))) == 100


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_appears_when_it_is_whole(tmp_path: Path, suffix: str) -> None:
    columns = [Column("Name", Kind.TEXT), Column("Cost", Kind.DECIMAL), Column("Count", Kind.WHOLE)]
    path = tmp_path / f"table{suffix}"

    def fail() -> None:
        with table_file(path, columns) as file:
            file.write(["a", Decimal(1), 1])
            raise OSError("the meter went away")

    with pytest.raises(OSError, match="went away"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with table_file(path, columns) as file:
        file.write(['a "quoted", text', Decimal("1E-15"), 2**62])
        file.write([None, None, None])
    assert list(read_texts(path)) == [
        {"Name": 'a "quoted", text', "Cost": "0.000000000000001", "Count": str(2**62)},
        {"Name": None, "Cost": None, "Count": None},
    ]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_rows_of_a_long_file_come_in_groups(tmp_path: Path) -> None:
    path = tmp_path / "long.parquet"
    with table_file(path, [Column("Number", Kind.WHOLE)]) as file:
        for number in range(101_234):
            file.write([number])
    with parquet.ParquetFile(path) as read:
        groups = [read.metadata.row_group(each).num_rows for each in range(read.num_row_groups)]
        assert groups == [50_000, 50_000, 1_234]
        assert read.read().column("Number").to_pylist() == list(range(101_234))


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(CommandFailed, match="parquet"), table_file(Path("table.xlsx"), []):
        pass
