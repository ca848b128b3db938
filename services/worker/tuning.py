"""What the plan asks of the engine, carried out: how long its steps may take, how many sequences run at once.

In: `RoutingPlan`s from the bus; an engine that became ready. Out: calls of `Tunable.tune`. An engine that cannot be
tuned while it runs is left as it was set up; routers predict its steps from what it reports, not from what was asked.
"""

import logging
from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.events import RoutingPlan
from services.mesh.latest import keep_latest
from services.mesh.subjects import PLAN
from services.worker.engine import Engine, Tunable
from services.worker.engine_life import EngineLife
from services.worker.identity import Identity

log = logging.getLogger(__name__)

_MOST_MODELS: Final = 1024


class Tuning:
    """The settings of one worker's engine that the plan may change."""

    def __init__(self, identity: Identity, engine: EngineLife) -> None:
        self._identity = identity
        self._engine = engine
        self._asked: dict[str, tuple[int, float, int]] = {}  # by model: plan's version, step_s, max_batch
        self._tuned: Engine | None = None

    async def watch(self, bus: Bus) -> None:
        """Obeys plans until cancelled."""
        await bus.watch([PLAN], self._heard)

    def engine_ready(self) -> None:
        """The engine may be another one now: what was asked holds for it too."""
        engine = self._engine.engine
        if engine is self._tuned or not isinstance(engine, Tunable):
            return
        self._tuned = engine
        for model, (_, step_s, max_batch) in self._asked.items():
            engine.tune(model, step_s, max_batch)

    async def _heard(self, delivered: Delivered) -> None:
        plan = delivered.event
        if not isinstance(plan, RoutingPlan) or plan.canary_share:  # what is tried by a part sets no engine
            return
        mine = next((each for each in plan.pools if each.pool == self._identity.pool), None)
        before = self._asked.get(plan.model)
        if mine is None or (before is not None and plan.version <= before[0]):
            return
        # Plans of models that are served come again and again.
        keep_latest(self._asked, plan.model, (plan.version, mine.step_s, mine.max_batch), _MOST_MODELS)
        engine = self._engine.engine
        if isinstance(engine, Tunable) and (before is None or before[1:] != (mine.step_s, mine.max_batch)):
            log.debug("steps of %s: %g s at most, %d sequences", plan.model, mine.step_s, mine.max_batch)
            engine.tune(plan.model, mine.step_s, mine.max_batch)
