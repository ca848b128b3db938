from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.mesh.price_book import Price, PriceBook
from services.mesh.pricing import Pricing, Rates


def _price(output_usd: str, *, model: str = "", tenant: str = "", slo_class: str = "") -> Price:
    return Price(
        model=model,
        tenant=tenant,
        slo_class=slo_class,
        input_usd_per_mtok=Decimal("0.05"),
        cached_input_usd_per_mtok=Decimal("0.025"),
        output_usd_per_mtok=Decimal(output_usd),
    )


def _output_usd(book: PriceBook, model: str, tenant: str, slo_class: str) -> Decimal:
    return Decimal(Pricing(book).rates(model, tenant, slo_class).output_nusd_per_mtok) / 1_000_000_000


def test_the_entry_that_names_more_fields_wins() -> None:
    book = PriceBook(
        prices=(
            _price("1"),
            _price("2", tenant="acme"),
            _price("3", model="llama", slo_class="batch"),
            _price("4", model="llama", slo_class="batch", tenant="acme"),
        )
    )
    assert _output_usd(book, "other", "nobody", "standard") == 1
    assert _output_usd(book, "llama", "acme", "standard") == 2
    assert _output_usd(book, "llama", "nobody", "batch") == 3
    assert _output_usd(book, "llama", "acme", "batch") == 4


def test_of_as_many_named_fields_tenant_wins_over_model_over_class() -> None:
    book = PriceBook(
        prices=(_price("1"), _price("2", slo_class="batch"), _price("3", model="llama"), _price("4", tenant="acme"))
    )
    assert _output_usd(book, "llama", "acme", "batch") == 4
    assert _output_usd(book, "llama", "nobody", "batch") == 3
    assert _output_usd(book, "other", "nobody", "batch") == 2


def test_a_book_without_an_entry_for_everything_is_refused() -> None:
    with pytest.raises(ValidationError, match="must name no model, tenant or slo_class"):
        PriceBook(prices=(_price("1", model="llama"),))


def test_a_book_with_two_entries_for_the_same_is_refused() -> None:
    with pytest.raises(ValidationError, match="two entries name the same"):
        PriceBook(prices=(_price("1"), _price("2", model="llama"), _price("3", model="llama")))


def test_cached_input_is_priced_at_its_own_rate() -> None:
    rates = Rates(input_nusd_per_mtok=1_000_000, cached_input_nusd_per_mtok=500_000, output_nusd_per_mtok=2_000_000)
    assert rates.price_nusd(100, 0, 0) == 100
    assert rates.price_nusd(100, 40, 0) == 60 + 20
    assert rates.price_nusd(100, 40, 7) == 60 + 20 + 14


@given(
    rate=st.integers(0, 10**12),
    prompt=st.integers(0, 10**6),
    cached=st.integers(0, 10**6),
    runs=st.lists(st.integers(0, 500), max_size=50),
)
def test_increments_add_up_to_the_price_of_the_whole(rate: int, prompt: int, cached: int, runs: list[int]) -> None:
    rates = Rates(rate, rate // 2, rate * 2)
    cached = min(cached, prompt)
    booked_nusd, tokens = rates.price_nusd(prompt, cached, 0), 0
    for run in runs:
        before = rates.price_nusd(prompt, cached, tokens)
        tokens += run
        step = rates.price_nusd(prompt, cached, tokens) - before
        assert step >= 0
        booked_nusd += step
    assert booked_nusd == rates.price_nusd(prompt, cached, tokens)
