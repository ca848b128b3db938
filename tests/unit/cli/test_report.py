import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.report import Booked, Books, Outcome, Promise, Run, quantile, quantiles, usd_per_mtok
from services.cli.report_view import joules

PROMISE = Promise(ttft_s=0.5, ttft_s_per_prompt_token=0.001, tpot_s=0.03)


def outcome(**fields):
    return Outcome(
        **{
            "request_id": "r",
            "trace_id": "t",
            "tenant": "acme",
            "workload": "w",
            "model": "m",
            "slo_class": "interactive",
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "ttft_s": 0.1,
            "tpot_s": 0.01,
            "e2e_s": 0.2,
            "reason": "length",
            "price_nusd": 100,
            "segments": (("h100-0", "nvidia-h100-sxm", 10),),
        }
        | fields
    )


def books(**totals):
    return Books(
        total=Booked(**totals), by_accelerator={}, by_tenant_workload={}, by_slo_class={}, lag_events=0, waited_s=0.1
    )


def run_of(*outcomes):
    run = Run(promises={"interactive": PROMISE})
    for each in outcomes:
        run.add(each)
    return run


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1.0), (0.5, 2.5), (0.9, 3.7), (1.0, 4.0)])
def test_quantile_interpolates_between_ranks(q, expected):
    assert quantile([4.0, 1.0, 3.0, 2.0], q) == pytest.approx(expected)


def test_quantile_of_nothing_is_undefined():
    with pytest.raises(ValueError, match="undefined"):
        quantile([], 0.5)
    assert quantiles([]) is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_quantile_stays_between_least_and_most(values, q):
    assert min(values) <= quantile(values, q) <= max(values)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, True),
        ({"ttft_s": 0.6}, True),  # 0.5 + 100 * 0.001
        ({"ttft_s": 0.61}, False),
        ({"tpot_s": 0.031}, False),
        ({"tpot_s": None}, True),  # one token has no gap
        ({"ttft_s": None}, False),
        ({"error": "gone"}, False),
    ],
)
def test_promise_is_kept_only_within_both_limits(fields, kept):
    assert outcome(**fields).kept(PROMISE) is kept


@pytest.mark.parametrize(
    ("fields", "refused", "failed"),
    [
        ({"error": "full", "reason": "QueueFull", "completion_tokens": 0}, True, False),
        ({"error": "no", "reason": "PromptTooLong", "completion_tokens": 0}, True, False),
        ({"error": "gone", "reason": "WorkerLost", "completion_tokens": 0}, False, True),
        ({"error": "full", "reason": "QueueFull", "completion_tokens": 3}, False, True),
        ({"error": "?", "reason": "Unreachable", "completion_tokens": 0}, False, True),
        ({}, False, False),
    ],
)
def test_refusal_is_not_a_failure(fields, refused, failed):
    each = outcome(**fields)
    assert (each.refused, each.failed) == (refused, failed)


def test_document_counts_every_request_once():
    run = run_of(
        outcome(),
        outcome(reason="QueueFull", error="full", completion_tokens=0, ttft_s=None, tpot_s=None, segments=()),
        outcome(reason="WorkerLost", error="gone", completion_tokens=4),
    )
    document = run.document(None, duration_s=2.0, cpu_s=0.001)
    assert document["requests"] == {
        "sent": 3,
        "finished": 1,
        "refused": 1,
        "failed": 1,
        "by_reason": {"length": 1, "QueueFull": 1, "WorkerLost": 1},
    }
    assert document["tokens"]["completion"] == 14
    assert document["tokens_per_s"] == 7.0
    assert document["slo"][0]["attainment"] == pytest.approx(1 / 3)
    assert [each["reason"] for each in document["failures"]] == ["QueueFull", "WorkerLost"]
    assert document["money"] is None
    assert document["client"]["cpu_us_per_token"] == pytest.approx(1000 / 14)


def test_report_of_an_empty_run_is_still_a_report():
    document = run_of().document(None, duration_s=0.0, cpu_s=0.0)
    assert (document["requests"]["sent"], document["latency"]["ttft_s"], document["slo"]) == (0, None, [])
    json.dumps(document)


def test_meter_agrees_only_to_the_token_and_the_nano_dollar():
    run = run_of(outcome(), outcome(price_nusd=50))
    for tokens, price_nusd, equal in ((20, 150, True), (19, 150, False), (20, 151, False)):
        document = run.document(books(delivered_tokens=tokens, price_nusd=price_nusd), duration_s=1.0, cpu_s=0.0)
        assert document["meter"]["equal"] is equal


def test_price_is_not_compared_where_a_broken_stream_told_none():
    run = run_of(outcome(), outcome(price_nusd=0, reason="WorkerLost", error="gone", completion_tokens=5))
    document = run.document(books(delivered_tokens=15, price_nusd=130), duration_s=1.0, cpu_s=0.0)
    assert document["meter"]["equal"] is True


def test_tokens_of_a_moved_stream_belong_to_each_accelerator_that_made_them():
    moved = outcome(segments=(("h100-0", "nvidia-h100-sxm", 4), ("mi300x-0", "amd-mi300x", 6)))
    document = run_of(outcome(), moved).document(None, duration_s=1.0, cpu_s=0.0)
    rows = {row["accelerator"]: (row["requests"], row["completion_tokens"]) for row in document["by_accelerator"]}
    assert rows == {"nvidia-h100-sxm": (2, 14), "amd-mi300x": (1, 6)}


def test_money_is_per_million_delivered_tokens():
    total = {
        "delivered_tokens": 10,
        "price_nusd": 2_000,
        "use_cost_nusd": 700,
        "energy_cost_nusd": 300,
        "energy_uj": 5_000_000,
    }
    money = run_of(outcome()).document(books(**total), duration_s=1.0, cpu_s=0.0)["money"]
    assert (money["margin_nusd"], money["energy_j"]) == (1_000, 5.0)
    assert (money["price_usd_per_mtok"], money["cost_usd_per_mtok"]) == (pytest.approx(0.2), pytest.approx(0.1))
    assert usd_per_mtok(5, 0) is None


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_books_subtract_and_add_field_by_field(more, less):
    one, other = Booked(requests=more, price_nusd=less), Booked(requests=less, energy_uj=more)
    assert (one + other) - other == one


@pytest.mark.parametrize(
    ("energy_j", "measured_j", "shown"),
    [
        (0.0, 0.0, "0 J"),
        (1234.0, 0.0, "1,234 J catalogue"),
        (10.0, 10.0, "10 J measured"),
        (10.0, 4.0, "10 J, 40% measured"),
    ],
)
def test_energy_says_what_it_rests_on(energy_j: float, measured_j: float, shown: str) -> None:
    assert joules(energy_j, measured_j) == shown
