"""Far more asked than can be done, in virtual time: `python -m bench.overload`.

In: seeds. Out: goodput by load, how soon it is back after a flood, and what one tenant's flood does to another's time
to the first token; `bench/results/overload.json`. The mesh's own cores run in the twin, so figures do not depend on the
machine.
"""

import argparse
import statistics
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from bench.record import write
from services.mesh.accelerators import load_catalogue
from services.twin.requests import TwinRequest
from services.twin.run import simulate
from services.twin.scenario import Fleet, Scenario, usual_classes
from services.twin.traces import TraceRequest

_MODEL: Final = "llama-3.1-8b"
_CATALOGUE: Final = load_catalogue()
_LOADS: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
_ONE_RPS: Final = 16.0  # about what one H100 serves of these requests within interactive promises
_FLEETS: Final = {  # and about what each serves of the mixed classes, in requests per second
    "nvidia-h100-sxm": 22.0,
    "3 nvidia-h100-sxm": 70.0,
    "2 nvidia-h100-sxm, 2 nvidia-a100-80g-sxm, 4 nvidia-l4": 75.0,
}
_FLOOD_TIMES: Final = 10.0
_LENGTH_S: Final = 40.0
_BEGINS_S: Final = 8.0


def _arrivals(tenant: str, rps: float, from_s: float, to_s: float, seed: int) -> list[TraceRequest]:
    """Poisson; lengths log-normal: prompts of median 490 tokens, answers of median 148."""
    rng, at_s, made = Random(f"{tenant}/{rps}/{seed}"), from_s, []
    while (at_s := at_s + rng.expovariate(rps)) < to_s:
        made.append(
            TraceRequest(
                arrival_s=at_s,
                prompt_tokens=int(min(4000.0, max(20.0, rng.lognormvariate(6.2, 0.9)))),
                completion_tokens=int(min(800.0, max(4.0, rng.lognormvariate(5.0, 0.7)))),
                tenant=tenant,
            )
        )
    return made


def _run(fleet: str, flows: Sequence[list[TraceRequest]], *, interactive: bool = False) -> Sequence[TwinRequest]:
    classes = usual_classes(interactive=1.0, standard=0.0, batch=0.0) if interactive else usual_classes()
    scenario = Scenario(fleet=Fleet.parse(fleet, _CATALOGUE), model=_MODEL, classes=classes, drain_s=20.0)
    trace = sorted((each for flow in flows for each in flow), key=lambda each: each.arrival_s)
    return simulate(scenario, _CATALOGUE, trace, "tokenworks").requests


def _goodput_rps(requests: Sequence[TwinRequest], from_s: float, to_s: float) -> float:
    """Requests that ended between the two, all their promises kept, per second."""
    return sum(each.slo_met and from_s <= each.last_s < to_s for each in requests) / (to_s - from_s)


def _by_load(seeds: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for load in _LOADS:
        runs = [
            _run("nvidia-h100-sxm", [_arrivals("acme", load * _ONE_RPS, 0.0, 20.0, seed)], interactive=True)
            for seed in seeds
        ]
        refused = [sum(each.outcome == "refused" for each in requests) / len(requests) for requests in runs]
        rows.append(
            {
                "load": load,
                "goodput_rps": statistics.mean(_goodput_rps(requests, 5.0, 20.0) for requests in runs),
                "refused": statistics.mean(refused),
            }
        )
    return rows


def _recovery_s(seed: int) -> float:
    """Seconds from a flood's end until every second has 98 % of its requests' promises kept, to the end."""
    ends_s = 14.0
    usual = _arrivals("acme", 0.5 * _ONE_RPS, 0.0, 30.0, seed)
    flood = _arrivals("flood", _FLOOD_TIMES * _ONE_RPS, _BEGINS_S, ends_s, seed)
    requests = _run("nvidia-h100-sxm", [usual, flood], interactive=True)
    broken = [each.arrival_s for each in requests if each.arrival_s >= ends_s and not each.slo_met]
    kept_from_s = ends_s
    for second in range(int(ends_s), 30):
        there = [each for each in requests if second <= each.arrival_s < second + 1]
        missed = sum(second <= each < second + 1 for each in broken)
        if there and missed > 0.02 * len(there):
            kept_from_s = second + 1.0
    return kept_from_s - ends_s


def _neighbour(fleet: str, seed: int) -> dict[str, Any]:
    """Two tenants that each ask for 0.28 of what a fleet can do; then one asks for ten times that."""
    rps = 0.28 * _FLEETS[fleet]
    mine, theirs = _arrivals("mine", rps, 0.0, _LENGTH_S, seed), _arrivals("theirs", rps, 0.0, _LENGTH_S, seed)
    flood = _arrivals("theirs", rps * _FLOOD_TIMES, _BEGINS_S, _LENGTH_S, seed)
    before = [each for each in theirs if each.arrival_s < _BEGINS_S]
    calm = _run(fleet, [mine, theirs])
    flooded = _run(fleet, [mine, before, flood])
    row: dict[str, Any] = {"fleet": fleet, "seed": seed}
    for name in ("interactive", "standard", "batch", "all"):
        ttft_s = [_ttfts_s(each, name) for each in (calm, flooded)]
        row[name] = {"calm_s": _p99(ttft_s[0]), "flood_s": _p99(ttft_s[1])}
    row["refused"] = sum(each.outcome == "refused" for each in _mine(flooded))
    return row


def _mine(requests: Sequence[TwinRequest]) -> list[TwinRequest]:
    return [each for each in requests if each.tenant == "mine" and _BEGINS_S + 2 <= each.arrival_s < _LENGTH_S - 2]


def _ttfts_s(requests: Sequence[TwinRequest], slo_class: str) -> list[float]:
    chosen = [each for each in _mine(requests) if slo_class in ("all", each.promise.name)]
    return sorted(each.ttft_s for each in chosen if each.outcome == "length")


def _p99(values: Sequence[float]) -> float:
    return values[min(len(values) - 1, int(0.99 * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", default="overload", help="name of the result")
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1)
    by_load = _by_load(seeds)
    peak_rps = max(each["goodput_rps"] for each in by_load)
    print(f"Goodput of one H100, interactive requests, mean of {options.seeds} seeds:\n")
    print("| load, of its capacity | goodput, requests/s | of its peak | refused |\n| --- | --- | --- | --- |")
    for each in by_load:
        goodput_rps = each["goodput_rps"]
        print(f"| {each['load']:g} | {goodput_rps:.1f} | {goodput_rps / peak_rps:.0%} | {each['refused']:.0%} |")
    recovery_s = [_recovery_s(seed) for seed in seeds]
    print(
        f"\nPromises are kept again {max(recovery_s):.0f} s after a flood of ten times its capacity, at the latest.\n"
    )
    neighbours = [_neighbour(fleet, seed) for fleet in _FLEETS for seed in seeds]
    print("A tenant's TTFT p99, before and while another asks for ten times as much:\n")
    print("| fleet | seed | all classes | interactive | standard | batch | refused |\n|" + " --- |" * 7)
    for row in neighbours:
        p99s = [(row[name]["calm_s"], row[name]["flood_s"]) for name in ("all", "interactive", "standard", "batch")]
        cells = [f"{calm_s:.2f} → {flood_s:.2f} s ({flood_s / calm_s:.2f})" for calm_s, flood_s in p99s]
        print(f"| {row['fleet']} | {row['seed']} | {' | '.join(cells)} | {row['refused']} |")
    found = {"by_load": by_load, "recovery_s": recovery_s, "neighbours": neighbours}
    print(f"\nwritten to {write(options.out, found)}")


if __name__ == "__main__":
    main()
