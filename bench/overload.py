"""Far more asked than can be done, in virtual time: `python -m bench.overload`.

In: seeds. Out: goodput by load, how soon it is back after a flood, and what one tenant's flood does to another
(`overload_neighbours`); `bench/results/overload.json`. The mesh's own cores run in the twin, so figures do not depend
on the machine.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any, Final

from bench.overload_neighbours import CLASSES, FLEETS, drawn_fleets, neighbour, weighted
from bench.overload_traffic import INTERACTIVE, arrivals, run
from bench.record import write
from services.twin.requests import TwinRequest

_ONE: Final = "nvidia-h100-sxm"
_LOADS: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
_ONE_RPS: Final = 16.0  # about what one H100 serves of these requests within interactive promises
_FLOOD_TIMES: Final = 10.0
_BEGINS_S: Final = 8.0


def _goodput_rps(requests: Sequence[TwinRequest], from_s: float, to_s: float) -> float:
    """Requests that ended between the two, all their promises kept, per second."""
    return sum(each.slo_met and from_s <= each.last_s < to_s for each in requests) / (to_s - from_s)


def _by_load(seeds: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for load in _LOADS:
        runs = [
            run(_ONE, [arrivals("acme", load * _ONE_RPS, 0.0, 20.0, seed=seed, classes=INTERACTIVE)]) for seed in seeds
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
    usual = arrivals("acme", 0.5 * _ONE_RPS, 0.0, 30.0, seed=seed, classes=INTERACTIVE)
    flood = arrivals("flood", _FLOOD_TIMES * _ONE_RPS, _BEGINS_S, ends_s, seed=seed, classes=INTERACTIVE)
    requests = run(_ONE, [usual, flood])
    broken = [each.arrival_s for each in requests if each.arrival_s >= ends_s and not each.slo_met]
    kept_from_s = ends_s
    for second in range(int(ends_s), 30):
        there = [each for each in requests if second <= each.arrival_s < second + 1]
        missed = sum(second <= each < second + 1 for each in broken)
        if there and missed > 0.02 * len(there):
            kept_from_s = second + 1.0
    return kept_from_s - ends_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--drawn", type=int, default=6, help="fleets drawn at random")
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
    fleets = [*((fleet, seeds) for fleet in FLEETS), *((fleet, seeds[:2]) for fleet in drawn_fleets(options.drawn, 1))]
    neighbours = []
    print("A tenant's TTFT p99 while another asks for so many times as much, of what it is in the calm [90 %]:\n")
    print(f"| fleet | times | {' | '.join(CLASSES)} | refused | promises kept |\n|" + " --- |" * (len(CLASSES) + 4))
    for fleet, some in fleets:
        for times in (_FLOOD_TIMES, _FLOOD_TIMES / 4) if fleet in FLEETS else (_FLOOD_TIMES,):
            neighbours.append(row := neighbour(fleet, some, times))
            cells = [_cell(row[name]) for name in CLASSES]
            kept = f"{row['kept_calm']:.1%} → {row['kept_flood']:.1%}"
            print(f"| {fleet} | {times:g} | {' | '.join(cells)} | {row['refused']} | {kept} |", flush=True)
    parts = [weighted(fleet, seed) for fleet in FLEETS for seed in seeds[:2]]
    print("\nOf two floods with weights 3 and 1, the first gets of all tokens within promises (75 % is its part):")
    print(", ".join(f"{each['part']:.0%}" for each in parts))
    found = {"by_load": by_load, "recovery_s": recovery_s, "neighbours": neighbours, "weighted": parts}
    print(f"\nwritten to {write(options.out, found)}")


def _cell(row: dict[str, Any]) -> str:
    spread = f"{row['ratio']:.2f} [{row['from']:.2f}, {row['to']:.2f}]"
    return f"{row['calm_s']:.2f} → {row['flood_s']:.2f} s: {spread}"


if __name__ == "__main__":
    main()
