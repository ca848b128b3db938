"""What one tenant's flood does to another: its time to the first token, and the parts that weights give them.

In: fleets, seeds. Out: for each fleet and class the neighbour's TTFT p99 in the calm and in the flood, and the ratio of
the two with the interval that holds it in 90 % of samples. The same requests arrive in both, each of the same class.
What comes within the same seconds fares alike, so that requests by themselves would promise too narrow an interval:
blocks of seconds are drawn, with replacement, the same for the calm and the flood.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np

from bench.overload_traffic import MIXED, arrivals, capacity_rps, run
from services.twin.requests import TwinRequest

FLEETS: Final = (
    "nvidia-h100-sxm",
    "3 nvidia-h100-sxm",
    "2 nvidia-h100-sxm, 2 nvidia-a100-80g-sxm, 4 nvidia-l4",
)
CLASSES: Final = (*MIXED, "all")
_KINDS: Final = (  # a fleet drawn at random has some of each of two to four of them
    "nvidia-h100-sxm",
    "nvidia-h200-sxm",
    "nvidia-a100-80g-sxm",
    "nvidia-l40s",
    "nvidia-l4",
    "amd-mi300x",
    "intel-gaudi3",
    "google-tpu-v5e",
    "google-tpu-v6e",
    "aws-trainium2",
)
_MOST_RPS: Final = 120.0  # of a fleet drawn at random: a run takes seconds
_EACH: Final = 0.28  # of what the fleet can do, each of two tenants asks in the calm
_LENGTH_S: Final = 50.0
_BEGINS_S: Final = 15.0
_FIRST_S: Final = 2.0  # of the flood, in which routers learn of it: not counted
_BLOCK_S: Final = 3.0
_SAMPLES: Final = 1000
_WEIGHTS: Final = {"three": 3.0, "one": 1.0}


def drawn_fleets(count: int, seed: int) -> list[str]:
    """Fleets drawn at random, none beyond what a run can take."""
    rng = Random(f"{seed}/fleets")
    fleets: list[str] = []
    while len(fleets) < count:
        kinds = rng.sample(_KINDS, rng.randint(2, 4))
        fleet = ", ".join(f"{rng.randint(1, 4)} {kind}" for kind in kinds)
        if capacity_rps(fleet) <= _MOST_RPS:
            fleets.append(fleet)
    return fleets


@dataclass(frozen=True, slots=True)
class _Ttfts:
    """Of one class: calm and flood, by block."""

    calm_s: Sequence[Sequence[float]]
    flood_s: Sequence[Sequence[float]]

    def row(self, rng: np.random.Generator) -> dict[str, Any]:
        blocks = len(self.calm_s)
        ratios = []
        for _ in range(_SAMPLES):
            some = rng.integers(0, blocks, blocks)
            ratios.append(_p99(self.flood_s[each] for each in some) / _p99(self.calm_s[each] for each in some))
        calm_s, flood_s = _p99(self.calm_s), _p99(self.flood_s)
        return {
            "requests": sum(map(len, self.calm_s)),
            "calm_s": calm_s,
            "flood_s": flood_s,
            "ratio": flood_s / calm_s,
            "from": float(np.quantile(ratios, 0.05)),
            "to": float(np.quantile(ratios, 0.95)),
        }


def neighbour(fleet: str, seeds: Sequence[int], times: float) -> dict[str, Any]:
    """Two tenants that each ask for 0.28 of what a fleet can do; then one asks for so many times that."""
    rps = _EACH * capacity_rps(fleet)
    calm: dict[str, list[list[float]]] = {name: [] for name in CLASSES}
    flood: dict[str, list[list[float]]] = {name: [] for name in CLASSES}
    refused, kept, asked = 0, [0, 0], 0
    for seed in seeds:
        mine, theirs = (arrivals(name, rps, 0.0, _LENGTH_S, seed=seed) for name in ("mine", "theirs"))
        more = [each for each in theirs if each.arrival_s < _BEGINS_S]
        more += arrivals("theirs", rps * times, _BEGINS_S, _LENGTH_S, seed=seed)
        runs = [_mine(run(fleet, [mine, other])) for other in (theirs, more)]
        for requests, ttfts_s in zip(runs, (calm, flood), strict=True):
            _sort_in(requests, ttfts_s)
        asked += len(runs[0])
        kept = [sum(each.slo_met for each in requests) + so_far for requests, so_far in zip(runs, kept, strict=True)]
        refused += sum(not each.first_s for each in runs[1])
    rng = np.random.default_rng(1)
    return {
        "fleet": fleet,
        "times": times,
        "seeds": len(seeds),
        "refused": refused,
        "kept_calm": kept[0] / asked,
        "kept_flood": kept[1] / asked,
        **{name: _Ttfts(calm[name], flood[name]).row(rng) for name in CLASSES},
    }


def weighted(fleet: str, seed: int) -> dict[str, Any]:
    """Two tenants of weights 3 and 1 that each ask for ten times what a fleet can do: what each gets of the tokens of
    answers whose promises were kept."""
    rps = 10 * capacity_rps(fleet)
    requests = run(fleet, [arrivals(name, rps / 2, 0.0, _BEGINS_S + 10, seed=seed) for name in _WEIGHTS], _WEIGHTS)
    tokens = dict.fromkeys(_WEIGHTS, 0)
    for each in requests:
        tokens[each.tenant] += each.delivered * (each.slo_met and each.arrival_s >= 5.0)
    return {"fleet": fleet, "seed": seed, "part": tokens["three"] / sum(tokens.values())}


def _mine(requests: Iterable[TwinRequest]) -> list[TwinRequest]:
    from_s, to_s = _BEGINS_S + _FIRST_S, _LENGTH_S - 2
    return [each for each in requests if each.tenant == "mine" and from_s <= each.arrival_s < to_s]


def _sort_in(requests: Iterable[TwinRequest], ttfts_s: dict[str, list[list[float]]]) -> None:
    """Adds one seed's blocks."""
    blocks: dict[str, list[list[float]]] = {
        name: [[] for _ in range(int(_LENGTH_S / _BLOCK_S) + 1)] for name in ttfts_s
    }
    for each in requests:
        for name in (each.promise.name, "all") if each.first_s else ():
            blocks[name][int(each.arrival_s / _BLOCK_S)].append(each.ttft_s)
    first = int((_BEGINS_S + _FIRST_S) / _BLOCK_S)
    for name, made in blocks.items():
        ttfts_s[name] += made[first:]


def _p99(blocks: Iterable[Sequence[float]]) -> float:
    values = [value for block in blocks for value in block]
    return float(np.quantile(values, 0.99)) if values else float("nan")
