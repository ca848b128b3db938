"""Looking ahead over many engine steps at once changes nothing that comes of a run, to the last bit."""

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.accelerators import load_catalogue
from services.mesh.timing import StepLoad
from services.twin.run import Outcome, simulate
from services.twin.scenario import EngineSettings, Event, Fleet, Scenario, usual_classes
from services.twin.traces import TraceRequest

CATALOGUE = load_catalogue()
FLEET = Fleet.parse("nvidia-h100-sxm, 2 nvidia-l4", CATALOGUE)
NAMES = [name for name, _ in FLEET.workers]

events = st.builds(
    Event,
    at_s=st.floats(0.0, 8.0),
    kind=st.sampled_from(["fail", "ready", "start", "slow", "price", "tariff"]),
    workers=st.tuples(st.sampled_from(NAMES)),
    amount=st.floats(0.25, 4.0),
)


def _came_of(outcome: Outcome) -> list[object]:
    requests = [
        (each.outcome, each.delivered, each.cached_tokens, each.first_s, each.last_s, tuple(each.legs))
        for each in outcome.requests
    ]
    return [requests, [each.totals for each in outcome.workers], outcome.span_s]


@given(
    seed=st.integers(0, 1 << 20),
    befalls=st.lists(events, max_size=5),
    policy=st.sampled_from(["tokenworks", "tokenworks-unplanned", "least-requests", "round-robin"]),
    max_batch=st.sampled_from([2, 4, 256]),
    at_once=st.booleans(),
    ahead=st.sampled_from([1, 3, 32, 1000]),
    drain_s=st.sampled_from([0.0, 1.0, 60.0]),
)
@settings(max_examples=15, deadline=None)
def test_a_run_is_the_same_to_the_last_bit_however_far_workers_look_ahead(
    *, seed: int, befalls: list[Event], policy: str, max_batch: int, at_once: bool, ahead: int, drain_s: float
) -> None:
    rng = Random(seed)
    long = rng.random() < 0.3  # so that the L4s' caches run full, and sequences are preempted
    trace = [
        TraceRequest(
            arrival_s=0.0 if at_once else place * rng.choice([0.01, 0.2]),
            prompt_tokens=rng.randint(3000, 14000) if long else rng.randint(1, 400),
            completion_tokens=rng.choice([1, 2, 17, 60, rng.randint(1, 200)]),
            session_id=rng.choice(["", "a", "b"]),
        )
        for place in range(25)
    ]
    trace.sort(key=lambda each: each.arrival_s)
    scenario = Scenario(
        fleet=FLEET,
        model="llama-3.1-8b",
        classes=usual_classes(),
        engine=EngineSettings(max_batch=max_batch),
        seed=seed,
        events=tuple(befalls),
        drain_s=drain_s,
        steps_ahead=0,
    )
    by_step = simulate(scenario, CATALOGUE, trace, policy)
    at_one_go = simulate(replace(scenario, steps_ahead=ahead), CATALOGUE, trace, policy)
    assert _came_of(at_one_go) == _came_of(by_step)


@given(
    device=st.sampled_from(sorted(CATALOGUE.accelerators)),
    sequences=st.integers(1, 300),
    kv_tokens=st.integers(1, 1 << 21),
    steps=st.integers(1, 50),
)
def test_decodes_in_a_row_take_to_the_last_bit_what_each_takes_alone(
    device: str, sequences: int, kv_tokens: int, steps: int
) -> None:
    timing = CATALOGUE.timing(CATALOGUE.accelerator(device), CATALOGUE.model("llama-3.1-8b"))
    loads = [StepLoad(decode_sequences=sequences, kv_tokens=kv_tokens + sequences * step) for step in range(steps)]
    assert timing.decodes_s(loads[0], steps) == [timing.step_s(each) for each in loads]
