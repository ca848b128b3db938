"""A plan that differs is tried on a part of the traffic first, and goes back by itself when it does worse than it said.

In: plans as they are settled, and what came true of the requests placed under each (`decisions`). Out: what to publish:
the plan as it is, the plan for a part of the requests (`RoutingPlan.canary_share`), the plan before it again (with
`rolled_back` and why), or nothing.

    stands -- a plan that differs --> tried -- kept its promises and its cost --> stands
                                        |----- worse ----------------------> rolled back; nothing is tried for a while

Both plans serve at the same time, requests being dealt out between them by their ids, so that what changes meanwhile
changes for both: promises kept are compared between the two, and cost with what each predicted, so that a prediction
that errs for both counts against neither. A plan that answers a failure, a slowed device or another fleet is not tried:
what it replaces is known to be wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.mesh.events import RoutingPlan
from services.optimizer.core.beliefs import Trigger
from services.optimizer.core.decisions import Decision, Decisions

_DIFFERS: Final = 0.05  # part of the demand that goes elsewhere: less is not worth trying
_DEARER: Final = 0.25  # relative change of a price that is worth it
_LONGEST: Final = 6.0  # times the trial's time: a plan of which so little can be seen stays
_LEAST_DROP: Final = 0.02  # of the promises kept
_BEYOND_CHANCE: Final = 2.0  # standard deviations
_TRIED_FIRST: Final = frozenset({Trigger.INTERVAL, Trigger.DEMAND})


@dataclass(frozen=True, slots=True)
class Terms:
    """How plans are tried; `share` 0: they are not. See the settings `optimizer.canary_*`."""

    share: float = 0.0
    least_s: float = 10.0
    requests: int = 30
    worse: float = 0.25
    rest_s: float = 60.0


@dataclass(slots=True)
class _Trial:
    """`before`: what was counted of the standing plan when it began."""

    plan: RoutingPlan
    since_s: float
    before: Decision | None


@dataclass(slots=True)
class _Course:
    """One model's plans: the one that stands, and the one that is tried."""

    standing: RoutingPlan
    trial: _Trial | None = None
    rests_until_s: float = -math.inf


class Canary:
    """All models'."""

    def __init__(self, terms: Terms, decisions: Decisions) -> None:
        self._terms = terms
        self._decisions = decisions
        self._courses: dict[str, _Course] = {}

    def next(self, plan: RoutingPlan, trigger: Trigger, now_s: float) -> RoutingPlan | None:
        """What to publish now that `plan` was settled; None: nothing."""
        course = self._courses.get(plan.model)
        if course is None or self._terms.share <= 0 or trigger not in _TRIED_FIRST:
            rests_until_s = course.rests_until_s if course else -math.inf
            self._courses[plan.model] = _Course(plan, None, rests_until_s)
            return plan
        if course.trial is not None:
            return self._judged(course, course.trial, plan, now_s)
        if not differs(course.standing, plan):
            course.standing = plan
            return plan
        if now_s < course.rests_until_s:
            return None
        tried = replace(plan, canary_share=self._terms.share)
        standing = self._decisions.of(course.standing)
        course.trial = _Trial(tried, now_s, replace(standing) if standing else None)
        return tried

    def forget(self, known: Sequence[str]) -> None:
        """Drops the models that are not among `known`."""
        if len(self._courses) > len(known):
            self._courses = {model: each for model, each in self._courses.items() if model in known}

    def _judged(self, course: _Course, trial: _Trial, plan: RoutingPlan, now_s: float) -> RoutingPlan | None:
        passed_s = now_s - trial.since_s
        found = self._decisions.of(trial.plan)
        enough = found is not None and found.finished >= self._terms.requests and passed_s >= self._terms.least_s
        if not enough and passed_s < _LONGEST * self._terms.least_s:
            return None
        course.trial = None
        because = self._worse(found, self._beside(course, trial)) if found is not None and enough else ""
        if found is not None:
            found.fate, found.because = "rolled back" if because else "kept", because
        if because:
            course.rests_until_s = now_s + self._terms.rest_s
            course.standing = replace(
                course.standing,
                version=plan.version,
                made_unix_ms=plan.made_unix_ms,
                rolled_back=trial.plan.name,
                because=because,
            )
            return course.standing
        course.standing = plan
        return plan

    def _beside(self, course: _Course, trial: _Trial) -> Decision | None:
        """What came true of the standing plan since the trial began."""
        now = self._decisions.of(course.standing)
        if now is None or trial.before is None:
            return None
        before = trial.before
        return replace(
            now,
            requests=now.requests - before.requests,
            finished=now.finished - before.finished,
            slo_met=now.slo_met - before.slo_met,
            usd=now.usd - before.usd,
        )

    def _worse(self, tried: Decision, beside: Decision | None) -> str:
        """Why the plan that was tried goes back; empty where it stays."""
        if beside is not None and beside.finished > 0:
            kept, usual = tried.slo_met / tried.finished, beside.slo_met / beside.finished
            both = (tried.slo_met + beside.slo_met) / (tried.finished + beside.finished)
            deviation = math.sqrt(both * (1 - both) * (1 / tried.finished + 1 / beside.finished))
            if usual - kept > max(_LEAST_DROP, _BEYOND_CHANCE * deviation):
                return f"promises kept of {kept:.1%} of {tried.finished} requests, beside it of {usual:.1%}"
        if tried.predicted_usd_per_request <= 0:
            return ""
        times = _times_predicted(tried)
        usually = _times_predicted(beside) if beside is not None else 1.0
        if times > (1 + self._terms.worse) * max(1.0, usually):
            return (
                f"a request cost {times:.2f} times the ${tried.predicted_usd_per_request:.7f} predicted, beside it"
                f" {usually:.2f} times"
            )
        return ""


def _times_predicted(decision: Decision) -> float:
    """What a request cost over what was predicted; 1 where there is none."""
    predicted_usd = decision.predicted_usd_per_request
    return decision.realised_usd_per_request / predicted_usd if decision.requests and predicted_usd > 0 else 1.0


def differs(standing: RoutingPlan, plan: RoutingPlan) -> bool:
    """Whether requests would markedly go elsewhere: by shares, weighed by their demand, or by prices."""
    before = _by_class(standing)
    total_rps = moved_rps = 0.0
    after = _by_class(plan)
    for index, each in enumerate(plan.classes):
        shares = after[_key(plan, index)]
        earlier = before.get(_key(plan, index))
        total_rps += each.demand_rps
        if earlier is not None:  # a class that is new has no plan to be tried beside
            pools = shares.keys() | earlier.keys()
            moved = sum(abs(shares.get(pool, 0.0) - earlier.get(pool, 0.0)) for pool in pools) / 2
            moved_rps += each.demand_rps * moved
    if moved_rps > _DIFFERS * total_rps:
        return True
    prices = {pool.pool: pool.shadow_usd_per_device_s for pool in standing.pools}
    return any(
        abs(pool.shadow_usd_per_device_s - prices.get(pool.pool, 0.0)) * 3600 > _DEARER * pool.rate_usd_per_hour
        for pool in plan.pools
    )


def _key(plan: RoutingPlan, index: int) -> tuple[str, int, int, str]:
    each = plan.classes[index]
    return each.slo_class, each.prompt_tokens_from, each.completion_tokens_from, each.within


def _by_class(plan: RoutingPlan) -> dict[tuple[str, int, int, str], dict[str, float]]:
    shares: dict[tuple[str, int, int, str], dict[str, float]] = {
        _key(plan, index): {} for index in range(len(plan.classes))
    }
    for share in plan.shares:
        if share.share > 0:
            shares[_key(plan, share.workload_class)][share.pool] = share.share
    return shares
