"""Made-up traffic of tenants, and runs of it on a fleet in virtual time, for the benchmarks of overload."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from services.mesh.accelerators import load_catalogue
from services.twin.bound import fluid_bound
from services.twin.requests import TwinRequest
from services.twin.run import simulate
from services.twin.scenario import Fleet, Scenario, usual_classes
from services.twin.traces import TraceRequest

CATALOGUE: Final = load_catalogue()
MIXED: Final = {each.promise.name: each.part for each in usual_classes()}
INTERACTIVE: Final = {"interactive": 1.0}
_MODEL: Final = "llama-3.1-8b"
_DRAIN_S: Final = 20.0


def arrivals(
    tenant: str, rps: float, from_s: float, to_s: float, *, seed: int, classes: Mapping[str, float] = MIXED
) -> list[TraceRequest]:
    """Poisson; lengths log-normal: prompts of median 490 tokens, answers of median 148.

    Args:
        classes: parts by name; each request has its class, whatever else arrives.
    """
    rng, at_s, made = Random(f"{tenant}/{rps}/{seed}"), from_s, []
    names, parts = list(classes), list(classes.values())
    while (at_s := at_s + rng.expovariate(rps)) < to_s:
        made.append(
            TraceRequest(
                arrival_s=at_s,
                prompt_tokens=int(min(4000.0, max(20.0, rng.lognormvariate(6.2, 0.9)))),
                completion_tokens=int(min(800.0, max(4.0, rng.lognormvariate(5.0, 0.7)))),
                tenant=tenant,
                slo_class=rng.choices(names, parts)[0],
            )
        )
    return made


def run(
    fleet: str, flows: Sequence[Sequence[TraceRequest]], weights: Mapping[str, float] | None = None
) -> Sequence[TwinRequest]:
    """Every request of these flows together, in order of arrival, when all is over."""
    trace = sorted((each for flow in flows for each in flow), key=lambda each: each.arrival_s)
    return simulate(_scenario(fleet, weights or {}), CATALOGUE, trace, "tokenworks").requests


def capacity_rps(fleet: str) -> float:
    """What a fleet can serve of the mixed classes at the very most, in requests per second: its fluid bound."""
    return 10.0 * fluid_bound(_scenario(fleet, {}), CATALOGUE, arrivals("any", 10.0, 0.0, 100.0, seed=1))


def _scenario(fleet: str, weights: Mapping[str, float]) -> Scenario:
    return Scenario(
        fleet=Fleet.parse(fleet, CATALOGUE),
        model=_MODEL,
        classes=usual_classes(),
        drain_s=_DRAIN_S,
        tenant_weights=weights,
    )
