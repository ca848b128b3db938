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


def damped_shadow(before: Mapping[str, float], target: Mapping[str, float], part: float) -> dict[str, float]:
    """Shadow prices `part` of the way to the target's; a pool without one before takes it at once."""
    blended = {
        pool: price if pool not in before else before[pool] + part * (price - before[pool])
        for pool, price in target.items()
    }
    return {pool: price if price > _NEGLIGIBLE_USD_PER_DEVICE_S else 0.0 for pool, price in blended.items()}


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
