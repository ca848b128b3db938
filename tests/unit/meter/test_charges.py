"""Which invoice a line of the ledger is on, and what invoices come to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.errors import InvalidRequest
from services.mesh.pricing import Rates
from services.meter.core.charges import (
    Billing,
    Bounds,
    Charged,
    ChargeKey,
    Issued,
    billing_of,
    month_name,
    parse_month,
    pieces,
)
from services.meter.core.invoices import invoice_of
from services.meter.core.volumes import period_of

MONTH = 30 * 1440


@given(
    lines=st.lists(st.integers(0, 5 * MONTH), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_every_line_is_on_exactly_one_invoice_and_stays_there(lines: list[int], cuts: list[int]) -> None:
    issued: list[Issued] = []
    on: dict[int, str] = {}
    first, end = period_of(0, "month")
    for number, cut in enumerate(sorted(cuts)):
        issued.append(Issued(f"I{number}", "acme", first, end, Bounds(cut, cut)))
        first, end = period_of(end, "month")
        for line, minute in enumerate(lines, 1):
            billing = billing_of(issued, Bounds(line=line), minute)
            assert on.get(line, billing.invoice) == billing.invoice, "what is invoiced stays where it is"
            if billing.invoice:
                on[line] = billing.invoice
                assert line <= cut
            assert billing.correction == (minute < billing.from_minute)
            assert minute < billing.to_minute
            assert billing.from_minute == period_of(billing.from_minute, "month")[0]


@given(
    ranges=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=3),
    cuts=st.lists(st.integers(0, 60)),
    most=st.integers(1, 9),
)
def test_pieces_cover_their_ranges_and_have_no_cut_within(
    ranges: list[tuple[int, int]], cuts: list[int], most: int
) -> None:
    found = pieces(ranges, cuts, most)
    covered = [each for after, through in found for each in range(after + 1, through + 1)]
    assert covered == [each for after, through in ranges for each in range(after + 1, through + 1)]
    for after, through in found:
        assert through - after <= most
        assert not any(after < cut < through for cut in cuts)


@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]), st.tuples(*[st.integers(0, 10**9)] * 3), st.integers(-5, 5), st.booleans()
        ),
        max_size=8,
    )
)
def test_an_invoices_total_is_what_the_ledger_says(
    parts: list[tuple[str, tuple[int, int, int], int, bool]],
) -> None:
    rates = Rates(50_000_001, 25_000_003, 100_000_007)
    charges, expected = [], 0
    for model, tokens, off_nusd, correction in parts:
        key = ChargeKey(0, "acme", model, "standard", "gpu", Billing(0, MONTH, "", correction), "list@1", "chat")
        price_nusd = rates.price_nusd(tokens[0] + tokens[1], tokens[1], tokens[2]) + off_nusd
        charges.append((key, Charged(tokens, price_nusd, 7, 3, 1, rates, rates)))
        expected += price_nusd - 7 + 3
    made = invoice_of(charges, tenant="acme", from_minute=0, to_minute=MONTH, issuer="us", issuer_address="")
    assert made.total_nusd == expected == sum(each.amount_nusd for each in made.lines)
    assert abs(made.payable_cents * 10_000_000 - made.total_nusd) <= 5_000_000
    counted = sum(each.tokens for each in made.lines)
    assert counted == sum(sum(tokens) for _, tokens, _, correction in parts if not correction)


@pytest.mark.parametrize("text", ["", "2026", "2026-13", "2026-1", "1969-12", "9999-12", "2026-11-01", " 2026-11"])
def test_a_month_is_written_in_one_way(text: str) -> None:
    with pytest.raises(InvalidRequest, match="2026-11"):
        parse_month(text)


def test_months_are_those_of_the_calendar_in_utc() -> None:
    first, end = parse_month("2024-02")
    assert end - first == 29 * 1440
    assert month_name(first) == month_name(end - 1) == "2024-02"
    assert month_name(first - 1) == "2024-01"
