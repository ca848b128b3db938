"""What following demand costs: fleet-hours over a day, cold starts included, against a planner that knows the day.

    python -m bench.elastic [--cold-start 180] [--seed 1]

In: a day of demand, drawn from a seed: a night, a morning's rise, two peaks, an hour that doubles out of nothing, and
the noise of arrivals. Out: what the optimizer's own targets (`core/elastic.py`) cost, beside what a clairvoyant pays
that buys, for each five minutes, the cheapest fleet for the highest demand in them, keeps what it would need again
before a cold start's worth of idling, and starts each just in time. Both pay from the start of a cold start. It is a
fluid computation: a fleet serves a moment where the program finds room for all of its demand within its promises.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.accelerators import load_catalogue
from services.mesh.money import NUSD_PER_USD
from services.mesh.settings import ElasticSettings, SloSettings
from services.optimizer.core.demand import ClassDemand, ClassKey
from services.optimizer.core.elastic import Elastic, Elasticity
from services.optimizer.core.plan import Pool, Problem
from services.optimizer.core.replicas import replicas, serve
from services.optimizer.core.service_curve import Promise, Station

_MODEL: Final = "llama-3.1-8b"
_POOLS: Final = (("nvidia-h100-sxm", 24), ("amd-mi300x", 16), ("nvidia-l4", 48))
_STEP_S: Final = 30.0
_SLOT_S: Final = 300.0
_DAY_S: Final = 86_400.0
_WINDOW_S: Final = 60.0  # over which demand is measured
_PEAK_RPS: Final = 300.0
_HEADROOM: Final = ElasticSettings().headroom
_MIX: Final = (("interactive", 0.5, 900.0, 180.0), ("standard", 0.3, 1500.0, 240.0), ("batch", 0.2, 3000.0, 300.0))


@dataclass(frozen=True, slots=True)
class Bill:
    """One planner's day: dollars of fleet-hours, and the part of its moments that were served whole."""

    usd: float
    served: float
    starts: int


def rate_rps(at_s: float, surge_s: float) -> float:
    """Of the day: low at night, peaks at eleven and at twenty; an hour that doubles within a minute."""
    hour = at_s / 3600
    shape = 0.12 + 0.75 * math.exp(-(((hour - 11) / 3.2) ** 2)) + 0.88 * math.exp(-(((hour - 20) / 2.4) ** 2))
    surge = min(1.0, max(0.0, (at_s - surge_s) / 60.0)) if at_s < surge_s + 3600 else 0.0
    return _PEAK_RPS * shape * (1 + surge)


def problem_of(pools: Sequence[Pool], rps: float) -> Problem:
    """The demand of a moment; `pools` are one replica each."""
    promises = {
        name: Promise(each.ttft_s, each.ttft_s_per_prompt_token, each.tpot_s, float(each.miss_usd))
        for name, each in SloSettings().classes.items()
    }
    classes = tuple(
        ClassDemand(ClassKey(_MODEL, name, bucket, 2), rps * part, prompt_tokens, answer_tokens)
        for bucket, (name, part, prompt_tokens, answer_tokens) in enumerate(_MIX)
    )
    return Problem(tuple(pools), classes, promises, 0.85, 0.08)


def one_replica(accelerator: str, most: int) -> Pool:
    catalogue = load_catalogue()
    device, shape = catalogue.accelerator(accelerator), catalogue.model(_MODEL)
    station = Station(
        timing=catalogue.timing(device, shape),
        workers=max(1, most // 2),
        max_batch=256,
        kv_capacity_tokens=catalogue.kv_capacity_tokens(device, shape),
        context_tokens=shape.context_tokens,
        prefill_chunk_tokens=2048,
    )
    rate_usd = device.rate_nusd_per_hour / NUSD_PER_USD
    return Pool(accelerator, accelerator, 1, 1.0, rate_usd, device.tdp_w, {_MODEL: station})


def followed(pools: Sequence[Pool], most: Mapping[str, int], cold_start_s: float, surge_s: float, seed: int) -> Bill:
    """The optimizer's targets, carried out at once: what they ask for more starts, what they ask for less stops."""
    rng = random.Random(f"{seed}/arrivals")
    elastic = Elastic(_HEADROOM)
    wants = [Elasticity(pool, 0, most[pool.name], cold_start_s) for pool in pools]
    rates = {pool.name: pool.rate_usd_per_hour for pool in pools}
    ready = bought(pools, most, rate_rps(0.0, surge_s), 1 + _HEADROOM)
    starting: dict[str, list[float]] = {name: [] for name in ready}  # when each is ready
    usd, served, moments, starts = 0.0, 0, 0, 0
    now_s = 0.0
    while now_s < _DAY_S:
        for name, due_s in starting.items():
            ready[name] += sum(each <= now_s for each in due_s)
            starting[name] = [each for each in due_s if each > now_s]
        rps = rate_rps(now_s, surge_s)
        seen_rps = max(0.0, rng.gauss(rps, math.sqrt(rps / (2 * _WINDOW_S))))
        for target in elastic.targets(problem_of(pools, seen_rps), wants, ready, now_s + _STEP_S):
            name = target.pool
            there = ready[name] + len(starting[name])
            if target.replicas > there:
                starting[name] += [now_s + cold_start_s] * (target.replicas - there)
                starts += target.replicas - there
            elif target.replicas < there:
                kept = max(0, target.replicas - ready[name])
                starting[name] = starting[name][:kept]
                ready[name] = min(ready[name], target.replicas)
        moments += 1
        served += serve(problem_of(pools, rps), ready)
        usd += sum((ready[name] + len(starting[name])) * rate for name, rate in rates.items()) * _STEP_S / 3600
        now_s += _STEP_S
    return Bill(usd, served / moments, starts)


def bought(pools: Sequence[Pool], most: Mapping[str, int], rps: float, factor: float = 1.0) -> dict[str, int]:
    """Replicas for a moment's demand."""
    found = replicas(problem_of(pools, rps), most, factor)
    assert found is not None, rps
    return found


def clairvoyant(pools: Sequence[Pool], most: Mapping[str, int], cold_start_s: float, surge_s: float) -> Bill:
    """Knows the day: each replica runs while it is needed, goes on where stopping it would not pay, and is started so
    that it is ready in time."""
    steps = [index * _STEP_S for index in range(int(_DAY_S / _STEP_S))]
    per_slot = int(_SLOT_S / _STEP_S)
    needs: list[dict[str, int]] = []
    for first in range(0, len(steps), per_slot):
        peak_rps = max(rate_rps(at_s, surge_s) for at_s in steps[first : first + per_slot])
        needs.append(bought(pools, most, peak_rps))
    usd, starts = 0.0, 0
    for pool in pools:
        counts = [need[pool.name] for need in needs]
        for level in range(max(counts, default=0)):
            runs = [slot for slot, count in enumerate(counts) if count > level]
            paid_s, before = _SLOT_S, runs[0]
            starts += before > 0
            paid_s += cold_start_s if before > 0 else 0.0
            for slot in runs[1:]:
                idle_s = (slot - before - 1) * _SLOT_S
                starts += idle_s > cold_start_s
                paid_s += _SLOT_S + min(idle_s, cold_start_s)
                before = slot
            usd += paid_s / 3600 * pool.rate_usd_per_hour
    return Bill(usd, 1.0, starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold-start", type=float, default=180.0, help="seconds until a replica is ready")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    pools = [one_replica(accelerator, most) for accelerator, most in _POOLS]
    most = dict(_POOLS)
    surge_s = random.Random(f"{asked.seed}/surge").uniform(13, 16) * 3600
    began_s = time.process_time()
    ours = followed(pools, most, asked.cold_start, surge_s, asked.seed)
    best = clairvoyant(pools, most, asked.cold_start, surge_s)
    peak_rps = max(rate_rps(index * _STEP_S, surge_s) for index in range(int(_DAY_S / _STEP_S)))
    peak = bought(pools, most, peak_rps)
    always_usd = 24 * sum(peak[pool.name] * pool.rate_usd_per_hour for pool in pools)
    print(
        json.dumps(
            {
                "seed": asked.seed,
                "cold_start_s": asked.cold_start,
                "usd": round(ours.usd, 2),
                "clairvoyant_usd": round(best.usd, 2),
                "always_at_peak_usd": round(always_usd, 2),
                "times_clairvoyant": round(ours.usd / best.usd, 3),
                "moments_served_whole": round(ours.served, 4),
                "starts": ours.starts,
                "clairvoyant_starts": best.starts,
                "cpu_s": round(time.process_time() - began_s, 1),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
