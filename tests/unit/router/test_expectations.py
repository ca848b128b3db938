"""What the router expects of a request before a worker knows: lengths, cached prefixes, planned shares; and its ids."""

import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.estimates import Estimates
from services.router.core.ids import uuid7
from services.router.core.promises import Promises
from services.router.core.records import DecisionRecord, DecisionRecords
from services.router.core.request import Promise, PromptFacts, PromptKind
from tests.unit.router.test_admission import ASKED, sampling
from tests.unit.router.worlds import H100, L4, World


def text(size: int) -> PromptFacts:
    return PromptFacts(kind=PromptKind.TEXT, size=size)


def test_token_ids_are_counted_and_text_is_estimated_from_what_was_seen() -> None:
    estimates = Estimates()
    assert estimates.prompt_tokens("m", PromptFacts(kind=PromptKind.TOKEN_IDS, size=123)) == 123
    assert estimates.prompt_tokens("m", text(400)) == 100
    for _ in range(50):
        estimates.learn(replace(ASKED, model="m", prompt=text(300)), 100, 10)
    assert estimates.prompt_tokens("m", text(300)) == pytest.approx(100, abs=2)
    assert estimates.prompt_tokens("other", text(400)) == 100


def test_the_lower_bound_of_a_prompt_holds_for_any_vocabulary() -> None:
    assert Estimates.fewest_prompt_tokens(text(1)) == 1
    assert Estimates.fewest_prompt_tokens(text(12_800)) == 100
    assert Estimates.fewest_prompt_tokens(PromptFacts(kind=PromptKind.TOKEN_IDS, size=7)) == 7


def test_an_answers_length_is_learnt_per_workload_and_never_passes_max_tokens() -> None:
    estimates = Estimates()
    chatty = replace(sampling(max_tokens=1000), workload="chatty")
    terse = replace(sampling(max_tokens=1000), workload="terse")
    for _ in range(30):
        estimates.learn(chatty, 10, 600)
        estimates.learn(terse, 10, 20)
    assert estimates.completion_tokens(chatty) > 450
    assert estimates.completion_tokens(terse) < 100
    assert estimates.completion_tokens(replace(sampling(max_tokens=50), workload="chatty")) == 50
    assert 250 < estimates.mean_completion_tokens(ASKED.model) < 370


def test_an_answer_that_goes_on_is_longer_than_the_usual_one() -> None:
    estimates = Estimates()
    for tokens in (20, 20, 20, 2000) * 20:
        estimates.learn(replace(ASKED, model="m"), 10, tokens)
    asked = replace(sampling(max_tokens=10_000), model="m")
    assert 1000 < estimates.completion_tokens(asked, made=100) < 2000
    assert estimates.completion_tokens(replace(sampling(max_tokens=120), model="m"), made=100) == 20


def test_of_a_new_workload_as_much_is_known_as_of_its_model() -> None:
    estimates = Estimates()
    assert estimates.lengths(ASKED).answers == 0
    for _ in range(50):
        estimates.learn(replace(ASKED, workload="old"), 10, 40)
    assert estimates.lengths(replace(ASKED, workload="new")).quantile(0.5).tokens == pytest.approx(40)


def test_an_answer_that_ignores_its_end_has_max_tokens() -> None:
    asked = sampling(max_tokens=777, ignore_eos=True)
    assert Estimates().completion_tokens(asked) == 777
    assert Estimates().completion_tokens(asked, made=700) == 77


def test_the_plans_deficit_follows_what_was_placed() -> None:
    world = World()
    world.plan(shares={H100: 0.75, L4: 0.25})
    plan = world.fleet.plans["llama-3.1-8b"]
    assert plan.class_of("standard", 500, 100) == 0
    assert plan.class_of("interactive", 500, 100) is None
    assert plan.deficit(0, H100) == pytest.approx(0.75)
    for _ in range(3):
        plan.placed(0, H100)
    assert plan.deficit(0, H100) == pytest.approx(-0.25)
    assert plan.deficit(0, L4) == pytest.approx(0.25)
    world.now_s = 1.0
    world.plan(version=2, shares={H100: 0.5, L4: 0.5})
    assert world.fleet.plans["llama-3.1-8b"].deficit(0, H100) == pytest.approx(-0.5)  # what was placed still counts


def test_many_classes_fall_into_few_bands_no_looser_than_their_promise() -> None:
    classes = {f"c{index}": Promise(f"c{index}", 1.0, 0.0, 0.01 * (index + 1), 0.001, 0) for index in range(100)}
    promises = Promises(classes)
    assert len(promises.band_tpots_s) == 4
    for name, promise in classes.items():
        assert promises.band_tpots_s[promises.band_of(name)] <= promise.tpot_s


@given(st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 74) - 1))
def test_request_ids_are_uuids_of_version_7_that_sort_by_time(unix_ms: int, random_bits: int) -> None:
    made = uuid.UUID(uuid7(unix_ms, random_bits))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == unix_ms
    if unix_ms:
        assert uuid7(unix_ms - 1, (1 << 74) - 1) < str(made)


def record(request_id: str, tenant: str = "acme") -> DecisionRecord:
    world = World()
    world.beat("a")
    decision = world.decide()
    return DecisionRecord(
        asked=replace(ASKED, request_id=request_id, tenant=tenant),
        prompt_tokens=5,
        completion_tokens=9,
        picked_worker="a",
        plan="",
        plan_age_s=0.0,
        shortlist=decision.shortlist,
        trace_id="",
        decided_unix_ms=0,
        decision_us=1.0,
    )


def test_records_are_bounded_and_only_a_tenants_own_are_shown() -> None:
    records = DecisionRecords(3)
    for index in range(5):
        records.add(record(f"r{index}"))
    assert len(records) == 3
    assert records.of("r1", "acme") is None
    assert records.of("r4", "other") is None
    assert records.of("r4", "acme") is not None


def test_only_a_request_whose_client_got_tokens_counts_as_answered() -> None:
    records = DecisionRecords(3)
    kept = record("r")
    records.add(kept)
    assert not records.was_answered("r")
    kept.outcome = "error"
    assert not records.was_answered("r")
    kept.delivered = 1
    assert records.was_answered("r")
    assert not records.was_answered("never")
