"""What a client that asks for the rest of an answer must know, and how often it may ask."""

from typing import Any

import pytest

from services.mesh.errors import ResumeRefused
from services.router.core.records import DecisionRecord, DecisionRecords
from services.router.core.request import Asked, PromptFacts, PromptKind, SamplingValues
from services.router.core.resumes import check_asks, check_resumed


def record(tenant: str = "acme", delivered: int = 0, outcome: str = "running") -> DecisionRecord:
    shortlist: Any = None  # nothing here looks at it
    return DecisionRecord(
        asked=Asked(
            request_id="r-1",
            tenant=tenant,
            model="m",
            slo_class="standard",
            workload="",
            session_id="",
            prompt=PromptFacts(kind=PromptKind.TEXT, size=20),
            sampling=SamplingValues(),
        ),
        prompt_tokens=1,
        completion_tokens=1,
        picked_worker="a",
        plan="",
        plan_age_s=0.0,
        shortlist=shortlist,
        trace_id="",
        decided_unix_ms=0,
        decision_us=0.0,
        outcome=outcome,
        delivered=delivered,
    )


def resumed(resume_from: int, ids: int = 0, text: str = "so far", **changes: Any) -> None:
    check_resumed(resume_from, ids, text, **{"features": (), "earlier": None, **changes})


def test_a_resume_that_says_what_it_has_passes_also_where_nothing_is_known_of_it() -> None:
    resumed(7)
    resumed(7, ids=7, text="")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ids": 3}, "resumed_token_ids has 3"),
        ({"text": ""}, "says what those tokens are"),
        ({"features": ("tools",)}, "an answer with tools"),
        ({"earlier": record(delivered=9_000, outcome="length")}, "9000 tokens were delivered"),
    ],
)
def test_a_resume_is_refused_by_name(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ResumeRefused, match=why):
        resumed(7, **changes)


def test_what_a_broken_connection_lost_is_made_again() -> None:
    resumed(100, earlier=record(delivered=130, outcome="cancelled"))


def test_no_request_is_asked_for_without_end_and_what_was_delivered_is_not_forgotten() -> None:
    records = DecisionRecords(8)
    records.add(record(delivered=5_000, outcome="length"))
    for _ in range(8):
        check_asks("r-1", records.of("r-1", "acme"))
        records.add(record())
    earlier = records.of("r-1", "acme")
    assert earlier is not None
    assert (earlier.asks, earlier.delivered, earlier.outcome) == (9, 5_000, "running")
    with pytest.raises(ResumeRefused, match="asked for 9 times"):
        check_asks("r-1", earlier)


def test_another_tenants_request_of_that_id_is_none_of_its_business() -> None:
    records = DecisionRecords(8)
    records.add(record("umbra", delivered=5_000))
    records.add(record("acme"))
    earlier = records.of("r-1", "acme")
    assert earlier is not None
    assert (earlier.asks, earlier.delivered) == (1, 0)
