"""What the optimizer hears: every fact of the mesh's work, folded into its beliefs as it comes; news wakes the loop.

It watches, and does not consume: its state is soft, a missed event is one sample less, and after a restart what
matters is what happens from then on. What an earlier optimizer had learnt stands in its last plan, and is taken over
from there.
"""

from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.events import RoutingPlan
from services.mesh.subjects import ADMITTED, FINISHED, FLEET, LATENCY, PLAN, TOKENS
from services.optimizer.core.beliefs import Beliefs, Trigger
from services.optimizer.core.planner import Planner
from services.optimizer.loop import PlanningLoop

_LOOK_EVERY_S: Final = 0.05  # for news; cheaper than at each event, and quick beside a round
_LOOK_COST: Final = 20  # and no more often than this many times what a look takes: a large fleet's takes longer


class Feed:
    """Runs until cancelled: `await feed.watch()`."""

    def __init__(self, bus: Bus, beliefs: Beliefs, planner: Planner, loop: PlanningLoop, clock: Clock) -> None:
        self._bus = bus
        self._beliefs = beliefs
        self._planner = planner
        self._loop = loop
        self._clock = clock
        self._look_s = clock.monotonic_s()
        self._unlooked_ms = 0  # when the first event came after the last look

    async def watch(self) -> None:
        await self._bus.watch([FLEET, LATENCY, TOKENS, ADMITTED, FINISHED, PLAN], self._fold)

    async def _fold(self, delivered: Delivered) -> None:
        event, now_s = delivered.event, self._clock.monotonic_s()
        if isinstance(event, RoutingPlan):
            if self._planner.adopt(event):
                self._beliefs.adopt(event)
            return
        self._beliefs.heard(event, delivered.traceparent, now_s)
        self._unlooked_ms = self._unlooked_ms or self._clock.unix_ms()
        if now_s < self._look_s:
            return
        news = Trigger.START if self._planner.basis is None else self._beliefs.changed(self._planner.basis, now_s)
        took_s = self._clock.monotonic_s() - now_s
        self._look_s = now_s + max(_LOOK_EVERY_S, _LOOK_COST * took_s)
        seen_unix_ms, self._unlooked_ms = self._unlooked_ms, 0
        if news is not None:
            self._loop.tell(news, seen_unix_ms)
