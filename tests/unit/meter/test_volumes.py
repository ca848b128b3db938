from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from services.mesh.price_book import Price, Tier
from services.meter.core.credits import CreditTerms, Missed, at_risk, credits_of
from services.meter.core.journal import Account, Subject
from services.meter.core.volumes import Volume, adjustments, graduated_nusd, period_of

PRICE = Price(
    tenant="acme",
    input_usd_per_mtok=Decimal(1),
    cached_input_usd_per_mtok=Decimal(1),
    output_usd_per_mtok=Decimal(10),
    tiers=(
        Tier(from_mtok=Decimal(1), output_usd_per_mtok=Decimal(6)),
        Tier(from_mtok=Decimal(3), output_usd_per_mtok=Decimal(2)),
    ),
    committed_output_mtok=Decimal(2),
)


def _volume(output: int, model: str = "m") -> Volume:
    return Volume("acme", model, "standard", PRICE, (0, 0, output))


def _revenue(*volumes: Volume, ended: bool = False) -> int:
    """What the adjustments add to the price."""
    booked = adjustments(volumes, ended=ended)
    assert sum(value.amount_nusd for value in booked.values()) == 0
    return sum(value.amount_nusd for (account, _), value in booked.items() if account is Account.RECEIVABLE)


def test_each_token_costs_what_its_tier_says() -> None:
    usd = {tokens: graduated_nusd(PRICE, "output", tokens) / 1e9 for tokens in (0, 10**6, 2 * 10**6, 5 * 10**6)}
    assert usd == {0: 0, 10**6: 10, 2 * 10**6: 16, 5 * 10**6: 26}


def test_tiers_go_on_over_models_of_one_entry() -> None:
    assert _revenue(_volume(2 * 10**6), _volume(3 * 10**6, "n")) == (26 - 50) * 10**9


def test_what_was_committed_and_not_used_is_due_when_the_period_has_ended() -> None:
    assert _revenue(_volume(10**6)) == 0
    assert _revenue(_volume(10**6), ended=True) == 6 * 10**9
    assert _revenue(_volume(2 * 10**6), ended=True) == -4 * 10**9


@given(st.lists(st.integers(0, 4 * 10**6), max_size=6))
def test_however_volume_is_cut_it_comes_to_the_same(parts: list[int]) -> None:
    flat = sum(round(part * 10_000) for part in parts)
    assert _revenue(*(_volume(part) for part in parts)) == graduated_nusd(PRICE, "output", sum(parts)) - flat


def test_periods_are_days_and_months_in_utc() -> None:
    minute = 1_795_525_440_000 // 60_000  # 2026-11-24
    assert [each * 60 for each in period_of(minute, "month")] == [1_793_491_200, 1_796_083_200]
    assert period_of(minute, "day")[1] - period_of(minute, "day")[0] == 1440


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from(["a", "b"]))),
    st.integers(0, 1_000_000),
    st.integers(0, 10**6),
)
def test_credits_balance_and_are_never_more_than_the_price(
    prices: list[tuple[int, str]], percent_e4: int, fixed_nusd: int
) -> None:
    missed = [
        Missed(Subject(request_id=str(number), slo_class=slo_class), nusd)
        for number, (nusd, slo_class) in enumerate(prices)
    ]
    terms = {"a": CreditTerms(percent_e4, fixed_nusd)}
    booked = credits_of(missed, terms)
    assert sum(value.amount_nusd for value in booked.values()) == 0
    for each in missed:
        credit = booked.get((Account.SLO_CREDIT, each.subject))
        assert credit is None or 0 < credit.amount_nusd <= each.price_nusd
        assert credit is None or each.subject.slo_class == "a"


def test_what_is_at_risk_is_every_credit_and_expected_as_classes_missed() -> None:
    terms = {"a": CreditTerms(percent_e4=500_000)}
    found = at_risk([("a", 1000), ("a", 3000), ("b", 9)], terms, {"a": (10, 1)})
    assert found == (3, 2000, 200.0)
