"""How many replicas of each pool there should be: enough for what is asked for when one that is started now is ready.

In: snapshots of what is believed, and the pools that may grow and shrink. Out: `ReplicaTarget`s, for plans and for
whoever starts and stops workers. A target rises with the forecast over a cold start, and falls once nothing has asked
for more in as long a time: a replica that is let go and needed again pays its cold start twice. Make before break:
while another pool's replicas that are to take over are not ready, and what would be left does not serve the demand of
now, the old ones stay.

How long a cold start takes is learnt: from a target that rises to the replica that is ready.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from services.mesh.events import ReplicaTarget
from services.optimizer.core.demand import ClassDemand, ClassKey
from services.optimizer.core.forecast import Forecast
from services.optimizer.core.plan import Pool, Problem
from services.optimizer.core.replicas import replicas, serve

_EVERY_S: Final = 10.0  # between two looks: cold starts take minutes
_GAIN: Final = 0.3  # of a cold start that was seen
_RANGE: Final = 4.0  # times what the settings say, up or down


@dataclass(frozen=True, slots=True)
class Elasticity:
    """One pool that may grow and shrink.

    Attributes:
        replica: as the program knows one of it, `devices` 1.
        least, most: replicas.
        cold_start_s: until one that is asked for is ready, as far as is known before one was seen.
    """

    replica: Pool
    least: int
    most: int
    cold_start_s: float


@dataclass(slots=True)
class _Course:
    """What is remembered of one pool; `asked`: how many were asked for when, over a cold start."""

    cold_start_s: float
    asked: deque[tuple[float, int]] = field(default_factory=deque)
    target: int = 0
    raised_s: float | None = None
    ready: int = 0


class Elastic:
    """All pools' targets.

    Args:
        headroom: part of the demand that is kept free beside what plans keep, for what no forecast sees.
    """

    def __init__(self, headroom: float) -> None:
        self._headroom = headroom
        self._forecasts: dict[ClassKey, Forecast] = {}
        self._courses: dict[str, _Course] = {}
        self._looked_s = -math.inf
        self._targets: tuple[ReplicaTarget, ...] = ()

    def targets(
        self, problem: Problem, pools: Sequence[Elasticity], ready: Mapping[str, int], now_s: float
    ) -> tuple[ReplicaTarget, ...]:
        """What should run or be starting, by pool.

        Args:
            problem: the demand of now, and its promises.
            ready: replicas of each pool that are there.
            now_s: Unix seconds.
        """
        if not pools or now_s - self._looked_s < _EVERY_S:
            return self._targets
        self._looked_s = now_s
        courses = [self._course(each, ready.get(each.replica.name, 0), now_s) for each in pools]
        ahead_s = max(course.cold_start_s for course in courses) + _EVERY_S
        now = replace(problem, pools=tuple(each.replica for each in pools))
        soon = replace(now, classes=self._expected(problem.classes, ahead_s, now_s))
        most = {each.replica.name: each.most for each in pools}
        ideal = replicas(soon, most, 1 + self._headroom)
        if ideal is None:  # what was said last stays
            return self._targets
        have = {each.replica.name: ready.get(each.replica.name, 0) for each in pools}
        left = {name: min(count, ideal[name]) for name, count in have.items()}
        overlap = any(ideal[name] > have[name] for name in have) and not serve(now, left)
        self._targets = tuple(
            self._target(each, course, ideal[each.replica.name], soon, overlap=overlap, now_s=now_s)
            for each, course in zip(pools, courses, strict=True)
        )
        return self._targets

    def latest(self, since_s: float) -> tuple[ReplicaTarget, ...]:
        """What was said last; nothing where that was before `since_s`."""
        return self._targets if self._looked_s >= since_s else ()

    def _target(
        self, pool: Elasticity, course: _Course, ideal: int, soon: Problem, *, overlap: bool, now_s: float
    ) -> ReplicaTarget:
        asked = course.asked
        while asked and asked[0][0] < now_s - course.cold_start_s:
            asked.popleft()
        held = max((count for _, count in asked), default=0)
        asked.append((now_s, ideal))
        wanted, because = (ideal, "demand") if ideal >= held else (held, "held")
        if ideal > course.ready:
            because = "forecast"
        if overlap and course.ready > wanted:
            wanted, because = course.ready, "overlap"
        if wanted < pool.least:
            wanted, because = pool.least, "least"
        if wanted >= pool.most:
            wanted, because = pool.most, "most"
        if wanted > max(course.target, course.ready) and course.raised_s is None:
            course.raised_s = now_s
        elif wanted <= course.ready:
            course.raised_s = None
        course.target = wanted
        return ReplicaTarget(
            pool=pool.replica.name,
            accelerator=pool.replica.accelerator,
            replicas=wanted,
            ready=course.ready,
            forecast_rps=sum(each.rps for each in soon.classes),
            cold_start_s=course.cold_start_s,
            because=because,
        )

    def _course(self, pool: Elasticity, ready: int, now_s: float) -> _Course:
        course = self._courses.get(pool.replica.name)
        if course is None:
            course = self._courses[pool.replica.name] = _Course(pool.cold_start_s, target=ready, ready=ready)
        if ready > course.ready and course.raised_s is not None:
            took_s = min(pool.cold_start_s * _RANGE, max(pool.cold_start_s / _RANGE, now_s - course.raised_s))
            course.cold_start_s += _GAIN * (took_s - course.cold_start_s)
            course.raised_s = None
        course.ready = ready
        return course

    def _expected(self, classes: Sequence[ClassDemand], ahead_s: float, now_s: float) -> tuple[ClassDemand, ...]:
        """The classes with the most that is expected of each until then."""
        self._forecasts = {each.key: self._forecasts.get(each.key) or Forecast() for each in classes}
        found = []
        for each in classes:
            forecast = self._forecasts[each.key]
            forecast.see(each.rps, now_s)
            found.append(replace(each, rps=max(each.rps, forecast.most(ahead_s))))
        return tuple(found)
