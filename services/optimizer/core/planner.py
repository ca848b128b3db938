"""Plans in a row: from each solution to the plans that are published, with what the next solution needs to know.

In: snapshots with their solutions; plans of an earlier optimizer, met on the bus. Out: one `RoutingPlan` per model.

A version is the millisecond of 1970 at which the plan was made, or one more than the last where that is not larger: so
versions grow through restarts, a clock set back, and a second optimizer.
"""

from typing import Final

from services.mesh.events import NO_PLAN_VERSION, RoutingPlan
from services.mesh.latest import keep_latest
from services.optimizer.core.beliefs import Basis, Snapshot, Trigger
from services.optimizer.core.damping import approach, damped_shadow, damped_shares
from services.optimizer.core.demand import COMPLETION_EDGES, PROMPT_EDGES, ClassKey
from services.optimizer.core.draft import draft
from services.optimizer.core.plan import Shares, Solution

_MOST_MODELS: Final = 16_384
_MOST_SHARES: Final = 65_536


class Planner:
    """Remembers the plans in force.

    Attributes:
        basis: what the last plans rest on; None before the first.
        planned_s: when they were made, on the monotonic clock; None before the first.
    """

    def __init__(self) -> None:
        self.basis: Basis | None = None
        self.planned_s: float | None = None
        self._shares: dict[ClassKey, dict[str, float]] = {}
        self._shadow: dict[str, float] = {}
        self._versions: dict[str, int] = {}  # by model, the latest last

    @property
    def shares(self) -> Shares:
        """Shares of the plans in force; those of classes without demand as they last were."""
        return dict(self._shares)

    def adopt(self, plan: RoutingPlan) -> bool:
        """Notes a plan met on the bus: versions go on above it. The first of a model that was not planned here is one
        that stands from before: shares start from it, and the answer is True. A version that nobody can have made is
        passed over."""
        if plan.version >= NO_PLAN_VERSION:
            return False
        first = plan.model not in self._versions
        self._note(plan.model, max(plan.version, self._versions.get(plan.model, 0)))
        if first:
            self.go_back(plan)
        return first

    def go_back(self, plan: RoutingPlan) -> None:
        """What follows starts from the shares of `plan`."""
        shares: dict[ClassKey, dict[str, float]] = {}
        for share in plan.shares:
            key = _key_of(plan, share.workload_class)
            if key is not None and 0 < share.share <= 1:
                shares.setdefault(key, {})[share.pool] = share.share
        self._shares |= shares
        while len(self._shares) > _MOST_SHARES:
            del self._shares[next(iter(self._shares))]

    def settle(
        self,
        snapshot: Snapshot,
        solution: Solution,
        trigger: Trigger,
        *,
        now_s: float,
        unix_ms: int,
        solve_s: float,
        seen_unix_ms: int = 0,
    ) -> tuple[RoutingPlan, ...]:
        """The plans that follow from `solution`, one for each model of the snapshot; they are in force from here on."""
        passed_s = now_s - self.planned_s if self.planned_s is not None else 0.0
        part = approach(passed_s, news=trigger is not Trigger.INTERVAL or self.planned_s is None)
        shares = damped_shares(self._shares, solution, part)
        self._shadow = damped_shadow(self._shadow, solution, part)
        self._shares = {key: parts for key, parts in (self._shares | shares).items() if key.model in snapshot.models}
        self.basis, self.planned_s = snapshot.basis, now_s
        return tuple(
            draft(
                snapshot,
                solution,
                shares,
                self._shadow,
                model=model,
                version=self._next_version(model, unix_ms),
                made_unix_ms=unix_ms,
                trigger=trigger,
                solve_s=solve_s,
                seen_unix_ms=seen_unix_ms,
            )
            for model in snapshot.models
        )

    def _next_version(self, model: str, unix_ms: int) -> int:
        version = max(self._versions.get(model, 0) + 1, unix_ms)
        self._note(model, version)
        return version

    def _note(self, model: str, version: int) -> None:
        # Of a model that comes back, the clock's is above the one forgotten.
        keep_latest(self._versions, model, version, _MOST_MODELS)


def _key_of(plan: RoutingPlan, index: int) -> ClassKey | None:
    """The class that a share of `plan` is about; None when it was made with other buckets."""
    if index >= len(plan.classes):
        return None
    found = plan.classes[index]
    if found.prompt_tokens_from not in PROMPT_EDGES or found.completion_tokens_from not in COMPLETION_EDGES:
        return None
    return ClassKey(
        plan.model,
        found.slo_class,
        PROMPT_EDGES.index(found.prompt_tokens_from),
        COMPLETION_EDGES.index(found.completion_tokens_from),
        found.within,
    )
