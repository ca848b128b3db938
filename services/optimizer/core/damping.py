"""From one plan to the next without swinging.

In: the shares and shadow prices in force, what the program now says, the seconds between. Out: what the next plan says.
News (a worker gone, a marked change) is followed at once; between news a plan approaches the program's answer with the
time constant `_DAMPING_S`: an answer that flips from second to second moves little, and one that stays is reached.
"""

import math
from collections.abc import Mapping
from typing import Final

from services.optimizer.core.demand import ClassKey
from services.optimizer.core.plan import Shares, Solution

_DAMPING_S: Final = 2.0
_NEGLIGIBLE_SHARE: Final = 1e-3
_NEGLIGIBLE_USD_PER_DEVICE_S: Final = 1e-6  # a few thousandths of what a device-second of a cheap accelerator costs
_ROOMY: Final = 0.9  # a pool filled to less than this has room, and its time no price


def approach(passed_s: float, news: bool) -> float:
    """The part of the way from the plan in force to the program's answer to go, 0 to 1."""
    return 1.0 if news else 1 - math.exp(-max(0.0, passed_s) / _DAMPING_S)


def damped_shares(before: Shares, solution: Solution, part: float) -> dict[ClassKey, dict[str, float]]:
    """Shares `part` of the way to the solution's; only feasible pools have one, and a class's add up as in the
    solution."""
    return {
        key: _blend(
            {
                pool: share
                for pool, share in before.get(key, {}).items()
                if (found := solution.services[key].get(pool)) is not None and found.feasible
            },
            target,
            part,
        )
        for key, target in solution.shares.items()
    }


def damped_shadow(before: Mapping[str, float], solution: Solution, part: float) -> dict[str, float]:
    """Shadow prices `part` of the way to the solution's. A pool without one before takes it at once, and one with room
    has none: only around the edge of capacity is there noise to damp."""
    prices: dict[str, float] = {}
    for pool, target in solution.shadow_usd_per_device_s.items():
        price = before[pool] + part * (target - before[pool]) if pool in before else target
        roomy = target == 0 and solution.filled.get(pool, 0.0) < _ROOMY
        prices[pool] = 0.0 if roomy or price <= _NEGLIGIBLE_USD_PER_DEVICE_S else price
    return prices


def _blend(before: Mapping[str, float], target: Mapping[str, float], part: float) -> dict[str, float]:
    served, had = sum(target.values()), sum(before.values())
    if served <= 0 or had <= 0:
        return dict(target)
    blended = {
        pool: (1 - part) * before.get(pool, 0.0) * served / had + part * target.get(pool, 0.0)
        for pool in before.keys() | target.keys()
    }
    # What fades out ends; what fades in may start as small as it likes.
    kept = {pool: share for pool, share in blended.items() if pool in target or share >= _NEGLIGIBLE_SHARE * served}
    total = sum(kept.values())
    return {pool: share * served / total for pool, share in sorted(kept.items())}
