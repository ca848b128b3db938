"""The plans in force, for those who ask and those who watch. Lives in the event loop."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Final

from services.mesh.errors import QueueFull, UnknownModel
from services.mesh.events import RoutingPlan
from services.mesh.latest import keep_latest

_MAX_WATCHERS: Final = 256
_MOST_PLANS: Final = 4096  # those posted last


class PlanBoard:
    """The latest plan of each model. A watcher that lags skips to the latest: a plan that was replaced says nothing."""

    def __init__(self) -> None:
        self._plans: dict[str, RoutingPlan] = {}
        self._posted = asyncio.Event()
        self._stopped = False
        self._watchers = 0

    def post(self, plans: Iterable[RoutingPlan]) -> None:
        for plan in plans:
            keep_latest(self._plans, plan.model, plan, _MOST_PLANS)
        posted, self._posted = self._posted, asyncio.Event()
        posted.set()

    def plan(self, model: str) -> RoutingPlan:
        """Raises UnknownModel: there is no plan for `model`; the message names those there are."""
        try:
            return self._plans[model]
        except KeyError:
            known = ", ".join(self.models) or "none: no worker was heard yet"
            raise UnknownModel(f"there is no plan for model {model!r}; models with one: {known}") from None

    @property
    def watchers(self) -> int:
        """Callers that watch now."""
        return self._watchers

    @property
    def models(self) -> Sequence[str]:
        return sorted(self._plans)

    async def watch(self, model: str) -> AsyncGenerator[RoutingPlan, None]:
        """The plan in force, then each that replaces it, until the service stops.

        Raises:
            UnknownModel: there is no plan for `model`.
            QueueFull: 256 callers watch already.
        """
        plan = self.plan(model)
        if self._watchers >= _MAX_WATCHERS:
            raise QueueFull(f"{_MAX_WATCHERS} callers watch plans already; end one, or ask GetPlan")
        self._watchers += 1
        try:
            yield plan
            while not self._stopped:
                posted = self._posted
                latest = self._plans.get(model, plan)
                if latest.version == plan.version:
                    await posted.wait()
                    continue
                plan = latest
                yield plan
        finally:
            self._watchers -= 1

    async def stop(self) -> None:
        """Ends all watches."""
        self._stopped = True
        self._posted.set()
