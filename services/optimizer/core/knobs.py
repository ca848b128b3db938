"""What the engines of a pool are asked for, so that they keep the promises of what is planned there.

In: the problem and the shares of a plan. Out: by pool, how long a step may take that computes prompts, and how many
sequences may run at once.

An engine that computes prompts in chunks of a fixed number of tokens makes everybody who decodes there wait for whole
chunks: on a slow device longer than their TPOT promise allows, on a fast one less than it could. So it is a time: the
tightest TPOT promise among the classes planned for the pool, less what is kept in reserve. As decodes come first in
a step, prompts get what time they leave, and never less than what reading the weights takes anyway (`mesh/timing`): on
a device that memory bounds, prompts are computed in that time and cost nothing more.

The batch is bounded where decodes alone would fill the time that the loosest of those promises allows: tighter ones are
kept by those who place, who know what each request adds. A bound by the tightest would leave a device that can just
keep it, with a few at a time, to these few.

A pool for which nothing is planned yet, as when a mesh starts, gets the tightest promise that its devices can keep.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.optimizer.core.plan import Pool, Problem, Shares

_SMALLEST_PART: Final = 0.02  # of a pool's requests: a class below it does not set the pace for the others


@dataclass(frozen=True, slots=True)
class Knobs:
    """As in `PoolPlan`; 0 leaves the engines as they are set up."""

    step_s: float = 0.0
    max_batch: int = 0


def knobs(problem: Problem, shares: Shares, model: str) -> Mapping[str, Knobs]:
    """By pool that serves the model."""
    return {pool.name: _of_pool(problem, shares, pool, model) for pool in problem.pools if model in pool.stations}


def _of_pool(problem: Problem, shares: Shares, pool: Pool, model: str) -> Knobs:
    planned = [
        (each, each.rps * shares.get(each.key, {}).get(pool.name, 0.0))
        for each in problem.classes
        if each.key.model == model
    ]
    total_rps = sum(rps for _, rps in planned)
    by_promise: dict[float, float] = {}
    for each, rps in planned:
        tpot_s = problem.promises[each.key.slo_class].tpot_s
        by_promise[tpot_s] = by_promise.get(tpot_s, 0.0) + rps
    timing = pool.stations[model].timing
    if not total_rps:
        steps_s = [each.tpot_s * problem.target_utilisation for each in problem.promises.values()]
        return Knobs(min((each for each in steps_s if each > timing.decode_base_s), default=0.0))
    tight = [tpot_s for tpot_s, rps in by_promise.items() if rps > _SMALLEST_PART * total_rps]
    if not tight:
        return Knobs()
    step_s = min(tight) * problem.target_utilisation
    most_s = max(tight) * problem.target_utilisation
    kv_tokens = sum(rps * (each.prompt_tokens + each.completion_tokens / 2) for each, rps in planned) / total_rps
    each_s = timing.decode_s_per_sequence + timing.decode_s_per_kv_token * kv_tokens
    room_s = most_s - timing.decode_base_s
    return Knobs(step_s, max(1, int(room_s / each_s)) if room_s > 0 and each_s > 0 else 0)
