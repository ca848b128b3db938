"""What each plan predicted, and what then came true of the requests it sent: decisions, by plan version.

In: plans as they are made, requests admitted under them, what those used, how they ended. Out: `Decision`s, the latest
`_KEPT` of each model, `_MOST` in all. A request belongs to the plan that was in force where it was placed, so its
figures come in later than the decision: those of the last seconds are not complete.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.events import RoutingPlan

_KEPT: Final = 3600  # of each model: an hour, at a plan a second
_MOST: Final = 36_000  # of all models: an hour of ten, some 20 MiB
_MOST_REQUESTS: Final = 20_000  # of all models, the latest


@dataclass(slots=True)
class Decision:
    """One plan: its prediction, and what was realised of it.

    Attributes:
        demand_rps: that it was made for; `unserved_rps` of that it could not place.
        predicted_usd_per_request: of what it placed; 0 where there was no demand.
        requests: placed under it so far; `finished` of them ended.
        slo_met: of those that ended.
        usd: that its requests used so far, energy included.
        canary_share: of requests by which it was tried; 0: it was not.
        fate: "tried", "kept" or "rolled back", `because` of what; empty: it was put in force at once.
    """

    model: str
    version: int
    made_unix_ms: int
    trigger: str
    status: str
    demand_rps: float
    unserved_rps: float
    predicted_usd_per_request: float
    requests: int = 0
    finished: int = 0
    slo_met: int = 0
    usd: float = 0.0
    canary_share: float = 0.0
    fate: str = ""
    because: str = ""

    @property
    def realised_usd_per_request(self) -> float:
        """Of the requests placed so far; 0 where there was none."""
        return self.usd / self.requests if self.requests else 0.0


class Decisions:
    """All models' decisions. Bounded: the oldest are forgotten."""

    def __init__(self) -> None:
        # By version: the name of a plan has its model's in it, which may be long.
        self._by_model: dict[str, OrderedDict[int, Decision]] = {}
        self._count = 0
        self._requests: OrderedDict[str, Decision] = OrderedDict()

    def made(self, plan: RoutingPlan) -> None:
        """A plan is in force from here on."""
        demand_rps = sum(each.demand_rps for each in plan.classes)
        served_rps = demand_rps - plan.prediction.unserved_rps
        per_request_usd = plan.prediction.cost_usd_per_hour / 3600 / served_rps if served_rps > 0 else 0.0
        decisions = self._by_model.setdefault(plan.model, OrderedDict())
        self._count += plan.version not in decisions
        decisions[plan.version] = Decision(
            plan.model,
            plan.version,
            plan.made_unix_ms,
            plan.evidence.trigger,
            plan.status,
            demand_rps,
            plan.prediction.unserved_rps,
            per_request_usd,
            canary_share=plan.canary_share,
            fate="tried" if plan.canary_share else "",
        )
        while len(decisions) > _KEPT:
            self._drop_oldest(decisions)
        while self._count > _MOST:
            self._drop_oldest(max(self._by_model.values(), key=len))

    def of(self, plan: RoutingPlan) -> Decision | None:
        """The decision that a plan is; None when it was forgotten, or not made here."""
        decisions = self._by_model.get(plan.model)
        return decisions.get(plan.version) if decisions else None

    def admitted(self, request_id: str, model: str, plan: str) -> None:
        """A request was placed; `plan` names the one that was in force, or is empty."""
        decisions = self._by_model.get(model)
        version = plan.removeprefix(f"{model}:")
        decision = decisions.get(int(version)) if decisions and version.isdecimal() and len(version) < 20 else None
        if decision is None or request_id in self._requests:
            return
        decision.requests += 1
        self._requests[request_id] = decision
        if len(self._requests) > _MOST_REQUESTS:
            self._requests.popitem(last=False)

    def used(self, request_id: str, usd: float) -> None:
        """What a part of a request's tokens cost."""
        decision = self._requests.get(request_id)
        if decision is not None:
            decision.usd += usd

    def finished(self, request_id: str, *, slo_met: bool) -> None:
        """A request ended; what its worker still reports of it counts on."""
        decision = self._requests.get(request_id)
        if decision is not None:
            decision.finished += 1
            decision.slo_met += slo_met

    def latest(self, model: str, most: int) -> Sequence[Decision]:
        """The latest `most` decisions of a model, newest first."""
        decisions = self._by_model.get(model)
        if not decisions:
            return ()
        return [each for each, _ in zip(reversed(decisions.values()), range(most), strict=False)]

    def forget(self, known: set[str]) -> None:
        """Drops the models that are not among `known`."""
        self._by_model = {model: each for model, each in self._by_model.items() if model in known}
        self._count = sum(map(len, self._by_model.values()))

    def _drop_oldest(self, decisions: OrderedDict[int, Decision]) -> None:
        decisions.popitem(last=False)
        self._count -= 1
