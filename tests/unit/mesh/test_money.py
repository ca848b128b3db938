"""Parts add up to the whole, to the nano-dollar."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.money import energy_cost_nusd, format_usd, price_nusd, usd_to_nusd, use_cost_nusd

AMOUNTS = st.integers(0, 10**9)
CUMULATIVE = [price_nusd, use_cost_nusd, energy_cost_nusd]


@pytest.mark.parametrize("cost", CUMULATIVE)
@given(parts=st.lists(AMOUNTS, max_size=20), rate=AMOUNTS)
def test_however_a_quantity_is_cut_its_steps_add_up_to_the_amount_of_the_whole(
    cost: object, parts: list[int], rate: int
) -> None:
    assert callable(cost)
    booked, so_far = 0, 0
    for part in parts:
        step = cost(so_far + part, rate) - cost(so_far, rate)
        assert step >= 0
        booked, so_far = booked + step, so_far + part
    assert booked == cost(sum(parts), rate)


def test_a_million_tokens_cost_the_rate() -> None:
    assert price_nusd(1_000_000, 50_000_000) == 50_000_000
    assert price_nusd(1, 500_000) == 1  # half a nano-dollar is rounded up
    assert price_nusd(1, 499_999) == 0


def test_an_hour_and_a_kilowatt_hour_cost_their_rates() -> None:
    assert use_cost_nusd(3_600 * 10**9, 2_000_000_000) == 2_000_000_000
    assert energy_cost_nusd(3_600_000 * 10**6, 80_000_000) == 80_000_000


@given(st.integers(0, 10**15))
def test_dollars_read_back(amount_nusd: int) -> None:
    assert usd_to_nusd(Decimal(amount_nusd).scaleb(-9)) == amount_nusd


@pytest.mark.parametrize("usd", ["0.0000000001", "a dollar", "NaN"])
def test_an_amount_that_is_none_is_refused(usd: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        usd_to_nusd(usd)


def test_amounts_are_shown_with_their_sign() -> None:
    assert format_usd(1_234_500) == "$0.001234"
    assert format_usd(-2_500_000_000, 2) == "-$2.50"
    assert format_usd(650, 9) == "$0.000000650"
