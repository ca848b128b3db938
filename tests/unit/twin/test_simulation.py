"""The twin: the same every time, nothing lost, and what it says follows from the timing model."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.accelerators import load_catalogue
from services.mesh.errors import SettingInvalid
from services.twin.bound import fluid_bound
from services.twin.capacity import sustained
from services.twin.compare import compare, interval
from services.twin.report import report
from services.twin.run import POLICIES, Outcome, simulate
from services.twin.scenario import EngineSettings, Event, Fleet, Scenario, usual_classes
from services.twin.timeline import Timeline
from services.twin.traces import TraceRequest

CATALOGUE = load_catalogue()
FLEET = Fleet.parse("nvidia-h100-sxm, 2 nvidia-l4, google-tpu-v6e", CATALOGUE)
SCENARIO = Scenario(fleet=FLEET, model="llama-3.1-8b", classes=usual_classes())


def _trace(requests: int, *, every_s: float = 0.2, seed: int = 1, session: str = "") -> list[TraceRequest]:
    rng = Random(seed)
    at_s, made = 0.0, []
    for _ in range(requests):
        made.append(
            TraceRequest(
                arrival_s=at_s,
                prompt_tokens=rng.randint(20, 3000),
                completion_tokens=rng.randint(1, 300),
                session_id=session,
            )
        )
        at_s += rng.expovariate(1 / every_s)
    return made


def _fared(outcome: Outcome) -> list[tuple[object, ...]]:
    return [(each.outcome, each.delivered, each.first_s, each.last_s, tuple(each.legs)) for each in outcome.requests]


def test_what_is_due_at_one_time_happens_in_the_order_asked_for() -> None:
    timeline, done = Timeline(), []
    timeline.at(2.0, lambda: done.append("c"))
    timeline.at(1.0, lambda: (done.append("a"), timeline.at(0.5, lambda: done.append("late")))[0])
    timeline.at(1.0, lambda: done.append("b"))
    timeline.run()
    assert done == ["a", "b", "late", "c"]
    assert timeline.now_s == 2.0


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_serves_an_easy_trace_and_the_same_way_each_time(policy: str) -> None:
    trace = _trace(60)
    first = simulate(SCENARIO, CATALOGUE, trace, policy)
    assert [each.delivered for each in first.requests] == [each.completion_tokens for each in trace]
    assert {each.outcome for each in first.requests} == {"length"}
    assert _fared(simulate(SCENARIO, CATALOGUE, trace, policy)) == _fared(first)


def test_one_request_alone_takes_what_the_timing_model_says() -> None:
    scenario = replace(SCENARIO, fleet=Fleet.parse("nvidia-l4", CATALOGUE), hop_s=0.0)
    trace = [TraceRequest(arrival_s=0.0, prompt_tokens=500, completion_tokens=3)]
    outcome = simulate(scenario, CATALOGUE, trace, "round-robin")
    timing = outcome.workers[0].timing
    (request,) = outcome.requests
    assert request.ttft_s == pytest.approx(timing.prefill_s(500))
    assert request.last_s - request.first_s == pytest.approx(timing.decode_s(1, 501) + timing.decode_s(1, 502))
    assert outcome.workers[0].totals.busy_s == pytest.approx(request.last_s)


@given(
    failures=st.lists(
        st.tuples(st.floats(0.1, 12.0), st.sampled_from([name for name, _ in FLEET.workers])), max_size=4
    ),
    policy=st.sampled_from(["tokenworks", "least-requests"]),
)
@settings(max_examples=15, deadline=None)
def test_whatever_fails_every_answer_is_whole_and_every_token_is_counted_once(
    failures: list[tuple[float, str]], policy: str
) -> None:
    events = tuple(
        event for at_s, name in failures for event in (Event(at_s, "fail", (name,)), Event(at_s + 3, "ready", (name,)))
    )
    trace = _trace(50)
    outcome = simulate(replace(SCENARIO, events=events), CATALOGUE, trace, policy)
    for request, asked in zip(outcome.requests, trace, strict=True):
        if request.outcome == "length":
            assert request.delivered == asked.completion_tokens
    assert sum(each.totals.tokens for each in outcome.workers) >= sum(each.delivered for each in outcome.requests)


def test_a_stream_on_a_worker_that_fails_goes_on_elsewhere() -> None:
    fleet = Fleet.parse("2 nvidia-l4", CATALOGUE)
    trace = [TraceRequest(arrival_s=0.0, prompt_tokens=100, completion_tokens=200)]
    steady = simulate(replace(SCENARIO, fleet=fleet), CATALOGUE, trace, "tokenworks")
    worker = steady.requests[0].legs[0]
    events = (Event(5.0, "fail", (worker,)),)
    broken = simulate(replace(SCENARIO, fleet=fleet, events=events), CATALOGUE, trace, "tokenworks")
    (request,) = broken.requests
    assert request.legs == [worker, next(name for name, _ in fleet.workers if name != worker)]
    assert (request.outcome, request.delivered) == ("length", 200)
    assert request.last_s > steady.requests[0].last_s
    assert report(broken).resumed == 1


def test_a_slow_worker_is_left_alone_by_the_mesh() -> None:
    events = (Event(2.0, "slow", ("nvidia-h100-sxm-0",), 30.0),)
    outcome = simulate(replace(SCENARIO, events=events), CATALOGUE, _trace(200, every_s=0.1), "tokenworks")
    later = [each for each in outcome.requests if each.arrival_s > 4.0]
    there = sum(1 for each in later if each.legs[:1] == ["nvidia-h100-sxm-0"])
    assert there < 0.2 * len(later)


def test_turns_of_a_session_find_their_prefix_in_a_cache() -> None:
    outcome = simulate(SCENARIO, CATALOGUE, _trace(40, every_s=1.0, session="s"), "tokenworks")
    assert report(outcome).cached_tokens > 0


def test_a_fluid_bound_is_above_what_any_policy_sustains() -> None:
    trace = _trace(150)
    # What may wait for a minute is served when a trace as short as this has come to its end.
    urgent = replace(SCENARIO, classes=usual_classes(interactive=1.0, standard=0.0, batch=0.0))
    best = max(
        sustained(urgent, CATALOGUE, trace, policy, precision=0.2).speed for policy in ("tokenworks", "two-choices")
    )
    assert 0 < best <= fluid_bound(urgent, CATALOGUE, trace)


def test_a_run_is_given_up_once_a_class_has_missed_too_many_promises_and_not_before() -> None:
    crowded = replace(SCENARIO, classes=usual_classes(interactive=1.0, standard=0.0, batch=0.0), speed=4.0)
    whole = simulate(crowded, CATALOGUE, _trace(300), "round-robin")
    kept = report(whole).worst_attainment
    assert 0.0 < kept < 0.9
    assert simulate(crowded, CATALOGUE, _trace(300), "round-robin", least_attainment=0.99).hopeless
    enough = simulate(crowded, CATALOGUE, _trace(300), "round-robin", least_attainment=kept)
    assert not enough.hopeless
    assert report(enough).worst_attainment == kept


def test_what_no_pool_can_serve_has_no_bound() -> None:
    slow = replace(SCENARIO, fleet=Fleet.parse("nvidia-l4", CATALOGUE))
    assert fluid_bound(slow, CATALOGUE, _trace(20)) == 0.0  # an L4 takes 76 ms to read the weights, for 30 promised


def test_a_report_adds_up() -> None:
    made = report(simulate(SCENARIO, CATALOGUE, _trace(80), "tokenworks"))
    assert sum(each.requests for each in made.by_class.values()) == made.requests == made.finished
    assert sum(each.tokens for each in made.by_pool.values()) == made.delivered_tokens
    assert all(0.0 <= each.busy <= 1.0 for each in made.by_pool.values())
    idle_j = sum(device.idle_w for _, device in FLEET.workers) * made.span_s
    assert made.energy_j > 0.9 * idle_j
    assert made.document()["by_class"]["interactive"]["requests"] == made.by_class["interactive"].requests


def test_intervals_are_students() -> None:
    assert interval([2.0]).half == 0.0
    assert interval([1.0, 2.0, 3.0]).mean == 2.0
    assert interval([1.0, 2.0, 3.0]).half == pytest.approx(4.303 / 3**0.5)
    reports = {
        policy: [report(simulate(replace(SCENARIO, seed=seed), CATALOGUE, _trace(30), policy)) for seed in (1, 2)]
        for policy in ("least-requests", "round-robin")
    }
    first, second = compare(reports)
    assert first.to_first["fleet_usd"].mean == 0.0
    assert second.seeds == 2


def test_chunks_in_seconds_are_larger_on_faster_devices() -> None:
    engine = EngineSettings(prefill_chunk_s=0.03)
    shape = CATALOGUE.model("llama-3.1-8b")
    fast, slow = (
        engine.chunk_tokens(CATALOGUE.timing(CATALOGUE.accelerator(key), shape))
        for key in ("nvidia-h100-sxm", "nvidia-l4")
    )
    assert fast > slow >= 128
    assert fast % 16 == slow % 16 == 0


@pytest.mark.parametrize(
    ("fleet", "said"), [("two h100", "is not like"), ("2 nvidia-h9000", "not in the catalogue"), ("", "is not like")]
)
def test_a_fleet_that_cannot_be_read_is_an_error_by_name(fleet: str, said: str) -> None:
    with pytest.raises(SettingInvalid, match=said):
        Fleet.parse(fleet, CATALOGUE)


def test_an_unknown_policy_or_worker_is_an_error_by_name() -> None:
    with pytest.raises(SettingInvalid, match="hope"):
        simulate(SCENARIO, CATALOGUE, _trace(2), "hope")
    with pytest.raises(SettingInvalid, match="gone-7"):
        simulate(replace(SCENARIO, events=(Event(1.0, "fail", ("gone-7",)),)), CATALOGUE, _trace(2), "round-robin")


def test_a_worker_that_is_gone_costs_nothing_and_one_that_starts_costs_before_it_serves() -> None:
    fleet = Fleet.parse("nvidia-h100-sxm, nvidia-l4", CATALOGUE)
    trace = _trace(100, every_s=0.3)
    usual = simulate(replace(SCENARIO, fleet=fleet), CATALOGUE, trace, "least-requests")
    span_s = usual.span_s
    events = (Event(5.0, "fail", ("nvidia-l4-0",)), Event(10.0, "start", ("nvidia-l4-0",), 8.0))
    outcome = simulate(replace(SCENARIO, fleet=fleet, events=events), CATALOGUE, trace, "least-requests")
    worker = outcome.workers[1]
    assert worker.totals.up_s == pytest.approx(outcome.span_s - 5.0)
    served = [each for each in outcome.requests if "nvidia-l4-0" in each.legs]
    assert not [each for each in served if 5.0 < each.arrival_s < 17.9]
    assert [each for each in served if each.arrival_s > 18.1]
    assert usual.workers[1].totals.up_s == pytest.approx(span_s)


def test_prices_hold_from_when_they_change() -> None:
    fleet = Fleet.parse("nvidia-h100-sxm", CATALOGUE)
    trace, name = _trace(40), "nvidia-h100-sxm-0"
    usual = simulate(replace(SCENARIO, fleet=fleet), CATALOGUE, trace, "round-robin")
    half_s = usual.span_s / 2

    def usd(*events: Event) -> float:
        made = simulate(replace(SCENARIO, fleet=fleet, events=events), CATALOGUE, trace, "round-robin")
        return report(made).fleet_usd

    rate_usd_per_s = fleet.workers[0][1].rate_nusd_per_hour / 1e9 / 3600
    assert usd(Event(half_s, "price", (name,), 3.0)) == pytest.approx(usd() + 2 * half_s * rate_usd_per_s, rel=1e-6)
    energy_usd = usd() - usual.span_s * rate_usd_per_s
    assert usd(Event(0.0, "tariff", (name,), 2.0)) == pytest.approx(usd() + energy_usd, rel=1e-6)


def test_what_cannot_befall_a_worker_is_an_error_by_name() -> None:
    with pytest.raises(SettingInvalid, match="melt"):
        simulate(replace(SCENARIO, events=(Event(1.0, "melt", ("nvidia-l4-0",)),)), CATALOGUE, _trace(2), "round-robin")
