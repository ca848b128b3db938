from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.mesh import price_calendar
from services.mesh.errors import SettingInvalid
from services.mesh.price_book import Plan, Price, PriceBook, Tier
from services.mesh.price_calendar import OpenedBook, PriceCalendar, Rerating
from services.mesh.price_files import read_prices, write_prices
from services.mesh.pricing import Pricing


def _price(output_usd: str, **more: object) -> Price:
    return Price(
        input_usd_per_mtok=Decimal("0.05"),
        cached_input_usd_per_mtok=Decimal("0.025"),
        output_usd_per_mtok=Decimal(output_usd),
        **more,  # type: ignore[arg-type]
    )


def _book(version: int, output_usd: str = "1") -> PriceBook:
    return PriceBook(version=version, prices=(_price(output_usd),))


def test_the_book_that_became_effective_last_is_in_force() -> None:
    calendar = PriceCalendar(_book(1), [OpenedBook(_book(2), 200, 150), OpenedBook(_book(1), 100, 100)])
    assert [calendar.at(ms).label for ms in (0, 100, 199, 200)] == ["list@1", "list@1", "list@1", "list@2"]


def test_of_two_books_from_one_moment_the_one_recorded_last_corrects_the_other() -> None:
    calendar = PriceCalendar(_book(1), [OpenedBook(_book(1), 100, 100), OpenedBook(_book(2), 100, 500)])
    assert calendar.at(150).label == "list@2"
    assert calendar.at(150, known_unix_ms=499).label == "list@1", "as it was known then"


def test_only_a_rerating_changes_what_prices_a_request_that_named_its_book() -> None:
    calendar = PriceCalendar(_book(1), [OpenedBook(_book(1), 0, 0), OpenedBook(_book(2), 100, 500)])
    assert calendar.label_for("list@1", 150) == "list@1"
    calendar.rerate(Rerating("a", 120, 200, 600))
    assert [calendar.label_for("list@1", ms) for ms in (119, 120, 199, 200)] == ["list@1", "list@2", "list@2", "list@1"]


@given(st.permutations(range(4)))
def test_what_prices_a_request_does_not_depend_on_the_order_in_which_facts_are_read(order: list[int]) -> None:
    facts = [
        OpenedBook(_book(2), 100, 300),
        Rerating("a", 0, 0, 400),
        OpenedBook(_book(3), 100, 500),
        Rerating("b", 150, 0, 600),
    ]
    calendar = PriceCalendar(_book(1), [OpenedBook(_book(1), 0, 0)])
    for place in order:
        fact = facts[place]
        if isinstance(fact, OpenedBook):
            calendar.open(fact)
        else:
            calendar.rerate(fact)
    assert [calendar.label_for("list@1", ms) for ms in (50, 120, 160)] == ["list@1", "list@2", "list@3"]


def test_a_tenants_own_entry_wins_over_its_plans_and_that_over_the_models() -> None:
    book = PriceBook(
        plans=(Plan(name="gold", tenants=("acme", "globex")),),
        prices=(_price("1"), _price("2", model="m"), _price("3", plan="gold"), _price("4", tenant="acme")),
    )
    pricing = Pricing(book)
    output = {who: pricing.rates("m", who, "batch").output_nusd_per_mtok // 10**9 for who in ("acme", "globex", "x")}
    assert output == {"acme": 4, "globex": 3, "x": 2}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prices": (_price("1"), _price("1", plan="gold"))}, "no \\[\\[plans\\]\\] declares"),
        ({"plans": (Plan(name="a", tenants=("t",)), Plan(name="b", tenants=("t",)))}, "it has one"),
        ({"usd_per_unit": Decimal("1.1")}, "a dollar is a dollar"),
    ],
)
def test_a_book_that_contradicts_itself_is_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PriceBook(**fields)  # type: ignore[arg-type]


def test_a_tier_that_is_dearer_than_the_one_before_is_refused() -> None:
    with pytest.raises(ValidationError, match="a tier may only be cheaper"):
        _price("1", tiers=(Tier(from_mtok=Decimal(1), output_usd_per_mtok=Decimal(2)),))


BOOK = """
name = "eur"
version = 3
effective_from = 2026-12-01
currency = "EUR"
usd_per_unit = "1.10"

[[plans]]
name = "gold"
tenants = ["acme"]

[[prices]]
input_per_mtok = "0.10"
cached_input_per_mtok = "0.05"
output_per_mtok = "0.20"

[[prices]]
plan = "gold"
input_per_mtok = 0.08
cached_input_per_mtok = "0.04"
output_per_mtok = "0.16"
committed_output_mtok = 100

[[prices.tiers]]
from_mtok = 50
output_per_mtok = "0.10"
"""


def test_a_book_in_another_currency_is_read_in_dollars_and_written_back_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "eur.toml"
    path.write_text(BOOK, encoding="utf-8")
    book, effective_unix_ms = read_prices(path)
    assert (book.label, effective_unix_ms) == ("eur@3", 1_796_083_200_000)
    gold = book.find("any", "acme", "any")
    assert (gold.input_usd_per_mtok, gold.tiers[0].output_usd_per_mtok) == (Decimal("0.088"), Decimal("0.11"))
    again = tmp_path / "again.toml"
    again.write_text(write_prices(book), encoding="utf-8")
    assert read_prices(again)[0].prices == book.prices


def test_a_csv_file_is_a_book_of_the_name_and_version_that_are_given(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    head = "model,tenant,input_usd_per_mtok,cached_input_usd_per_mtok,output_usd_per_mtok"
    path.write_text(f"{head}\n,,1,0.5,2\nllama,acme,0.9,0.4,1.8\n", encoding="utf-8")
    book, effective_unix_ms = read_prices(path, name="list", version=4)
    assert (book.label, effective_unix_ms, len(book.prices)) == ("list@4", 0, 2)
    with pytest.raises(SettingInvalid, match="no name and version"):
        read_prices(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = [", "cannot be read"),
        ('currency = "EUR"', "say how many dollars"),
        ("[[prices]]\ninput_usd_per_mtok = -1", "input_usd_per_mtok"),
        ("effective_from = 7", "is no date"),
    ],
)
def test_a_file_that_is_no_book_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingInvalid, match=says):
        read_prices(path)


def test_more_books_than_there_may_be_are_refused_and_known_ones_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_calendar, "_MOST_BOOKS", 2)
    calendar = PriceCalendar(_book(1))
    for version in (2, 3):
        calendar.open(OpenedBook(_book(version), 0, version))
    with pytest.raises(ValueError, match="2 price books are open"):
        calendar.open(OpenedBook(_book(4), 0, 4))
    calendar.open(OpenedBook(_book(3), 0, 5))
    assert [each.recorded_unix_ms for each in calendar.opened] == [2, 5]
