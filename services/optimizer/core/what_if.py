"""What would the plan be if: the same program with one model's demand scaled, and pools grown, shrunk or repriced.

In: a snapshot and the changes. Out: the snapshot as it would be. Nothing that is in force changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.mesh.errors import InvalidRequest
from services.optimizer.core.beliefs import Snapshot
from services.optimizer.core.plan import Pool

_LARGEST_FACTOR: Final = 1e6
_MOST_WORKERS: Final = 100_000


@dataclass(frozen=True, slots=True)
class PoolChange:
    """`add_workers` may be negative; `rate_factor` multiplies the hourly rate."""

    pool: str
    add_workers: int = 0
    rate_factor: float = 1.0


def changed(snapshot: Snapshot, model: str, demand_factor: float, changes: Sequence[PoolChange]) -> Snapshot:
    """The snapshot with `model`'s demand times `demand_factor`, and its pools changed.

    Raises:
        InvalidRequest: a factor is negative, not finite or beyond 1e6; a pool is not known, named twice, or would have
            fewer than no workers or more than 100,000.
    """
    _check_factor("demand_factor", demand_factor)
    problem = snapshot.problem
    by_name = {pool.name: pool for pool in problem.pools}
    seen: set[str] = set()
    for change in changes:
        if change.pool not in by_name:
            known = ", ".join(sorted(by_name)) or "none: no worker is ready"
            raise InvalidRequest(f"pool {change.pool!r} is not known; pools with workers are: {known}")
        if change.pool in seen:
            raise InvalidRequest(f"pool {change.pool!r} is changed twice; put both changes into one")
        seen.add(change.pool)
        by_name[change.pool] = _changed_pool(by_name[change.pool], change)
    classes = tuple(
        replace(each, rps=each.rps * demand_factor) if each.key.model == model else each for each in problem.classes
    )
    return replace(snapshot, problem=replace(problem, pools=tuple(by_name.values()), classes=classes))


def _changed_pool(pool: Pool, change: PoolChange) -> Pool:
    _check_factor(f"rate_factor of pool {change.pool!r}", change.rate_factor)
    workers = pool.workers + change.add_workers
    if not 0 <= workers <= _MOST_WORKERS:
        raise InvalidRequest(
            f"pool {change.pool!r} has {pool.workers} workers, adding {change.add_workers} gives {workers};"
            f" it can have 0 to {_MOST_WORKERS}"
        )
    return replace(
        pool,
        workers=workers,
        devices=max(0.0, pool.devices * workers / pool.workers),
        rate_usd_per_hour=pool.rate_usd_per_hour * change.rate_factor,
        stations={model: replace(station, workers=max(1, workers)) for model, station in pool.stations.items()},
    )


def _check_factor(name: str, value: float) -> None:
    if not (math.isfinite(value) and 0 <= value <= _LARGEST_FACTOR):
        raise InvalidRequest(f"{name} is {value}; it can be 0 to {_LARGEST_FACTOR:g}")
