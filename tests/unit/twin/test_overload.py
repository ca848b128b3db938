"""Overload in virtual time: what the mesh still does when far more is asked of it than it can do."""

from random import Random

from services.mesh.accelerators import load_catalogue
from services.twin.run import Outcome, simulate
from services.twin.scenario import Fleet, Scenario, usual_classes
from services.twin.traces import TraceRequest

CATALOGUE = load_catalogue()
SCENARIO = Scenario(
    fleet=Fleet.parse("nvidia-h100-sxm", CATALOGUE),
    model="llama-3.1-8b",
    classes=usual_classes(interactive=1.0, standard=0.0, batch=0.0),
    drain_s=5.0,
)
CAPACITY_RPS = 30.0


def arrivals(tenant: str, rps: float, from_s: float, to_s: float) -> list[TraceRequest]:
    rng, at_s, made = Random(f"{tenant}/{rps}"), from_s, []
    while (at_s := at_s + rng.expovariate(rps)) < to_s:
        made.append(
            TraceRequest(
                arrival_s=at_s,
                prompt_tokens=int(min(4000.0, max(20.0, rng.lognormvariate(5.9, 0.9)))),
                completion_tokens=rng.randint(50, 150),
                tenant=tenant,
            )
        )
    return made


def run(*flows: list[TraceRequest]) -> Outcome:
    trace = sorted((each for flow in flows for each in flow), key=lambda each: each.arrival_s)
    return simulate(SCENARIO, CATALOGUE, trace, "tokenworks")


def goodput_rps(outcome: Outcome, from_s: float, to_s: float) -> float:
    """Requests that ended between the two, all their promises kept, per second."""
    return sum(each.slo_met and from_s <= each.last_s < to_s for each in outcome.requests) / (to_s - from_s)


def test_goodput_stays_near_its_peak_far_beyond_the_capacity() -> None:
    reached = [run(arrivals("acme", CAPACITY_RPS * load, 0.0, 9.0)) for load in (1.0, 2.0, 10.0)]
    goodputs = [goodput_rps(each, 3.0, 9.0) for each in reached]
    assert goodputs[-1] >= 0.9 * max(goodputs)
    refused = sum(each.outcome == "refused" for each in reached[-1].requests)
    assert refused > 0.5 * len(reached[-1].requests)


def test_after_a_flood_every_promise_is_kept_again_within_five_seconds() -> None:
    outcome = run(arrivals("acme", 0.5 * CAPACITY_RPS, 0.0, 16.0), arrivals("flood", 10 * CAPACITY_RPS, 2.0, 6.0))
    later = [each for each in outcome.requests if each.arrival_s >= 11.0]
    assert sum(each.slo_met for each in later) >= 0.98 * len(later)


def test_a_flood_is_refused_before_its_neighbour() -> None:
    outcome = run(arrivals("acme", 0.3 * CAPACITY_RPS, 0.0, 10.0), arrivals("flood", 10 * CAPACITY_RPS, 2.0, 10.0))
    mine = [each for each in outcome.requests if each.tenant == "acme" and each.arrival_s >= 3.0]
    # In a burst of its own the neighbour may ask for more than its share.
    assert sum(each.outcome == "length" for each in mine) >= 0.98 * len(mine)
