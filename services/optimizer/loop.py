"""When to plan: at least once per interval, and at once on news. Each round solves one program for all models and
publishes one plan per model.

In: beliefs, and news from the feed. Out: `RoutingPlan` on the bus and on the board. A round's span `solve <model>`
begins when the news was heard that called for it, links to the latest latency events it rests on, and is the parent of
the plan's publish span: from its beginning to the end of a router's `apply <model>` is how long the mesh takes to
react. The program runs in a thread: the loop that hears events does not wait for it.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Span

from services.mesh import conventions as names
from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import OutboxFull
from services.mesh.events import ReplicaTarget, RoutingPlan
from services.mesh.telemetry import Telemetry, links_to, traceparent_of
from services.optimizer.board import PlanBoard
from services.optimizer.core.beliefs import Beliefs, Snapshot, Trigger
from services.optimizer.core.canary import Canary
from services.optimizer.core.elastic import Elastic
from services.optimizer.core.plan import solve
from services.optimizer.core.planner import Planner
from services.optimizer.measures import Measures

log = logging.getLogger(__name__)

LEAST_GAP_S: Final = 0.1  # between two rounds: a burst of news is one round


class PlanningLoop:
    """Runs until cancelled: `await loop.run()`."""

    def __init__(
        self,
        *,
        beliefs: Beliefs,
        planner: Planner,
        board: PlanBoard,
        bus: Bus,
        measures: Measures,
        telemetry: Telemetry,
        clock: Clock,
        interval_s: float,
        canary: Canary,
        elastic: Elastic,
        advisory: bool = False,
    ) -> None:
        """`advisory`: say what would be best, and have routers go on without it."""
        self._beliefs = beliefs
        self._planner = planner
        self._board = board
        self._bus = bus
        self._measures = measures
        self._telemetry = telemetry
        self._clock = clock
        self._interval_s = interval_s
        self._canary = canary
        self._elastic = elastic
        self._advisory = advisory
        self._news: Trigger | None = None
        self._seen_unix_ms = 0  # when the first news was heard that no round has answered
        self._woken = asyncio.Event()
        self._due_s = time.monotonic() + interval_s

    def tell(self, news: Trigger, seen_unix_ms: int) -> None:
        """Asks for a round as soon as may be; `seen_unix_ms`: when the news was heard."""
        self._news = news
        self._seen_unix_ms = self._seen_unix_ms or seen_unix_ms
        self._woken.set()

    async def run(self) -> None:
        while True:
            trigger = await self._next()
            began_s = time.monotonic()
            try:
                await self.plan(trigger)
            except Exception as error:
                # The plan in force stays, and says how old it is; the next round may fare better.
                log.exception("no plan was made")
                self._measures.failed(type(error).__name__)
            await asyncio.sleep(min(LEAST_GAP_S, self._interval_s))
            self._due_s = began_s + self._interval_s

    async def plan(self, trigger: Trigger) -> Sequence[RoutingPlan]:
        """One round; the plans that were published. None is where no model is known yet."""
        seen_unix_ms, self._seen_unix_ms = self._seen_unix_ms, 0
        snapshot = self._beliefs.snapshot(self._clock.monotonic_s())
        with ExitStack() as ending:
            spans = {model: self._span(model, snapshot, trigger, seen_unix_ms) for model in snapshot.models}
            for span in spans.values():
                ending.callback(span.end)
            started_s = time.perf_counter()
            solution = await asyncio.to_thread(solve, snapshot.problem, self._planner.shares)
            solve_s = time.perf_counter() - started_s
            plans = self._planner.settle(
                snapshot,
                solution,
                trigger,
                now_s=self._clock.monotonic_s(),
                unix_ms=self._clock.unix_ms(),
                solve_s=solve_s,
                seen_unix_ms=seen_unix_ms,
            )
            targets = await self._targets(snapshot)
            plans = tuple(_with_targets(plan, targets, snapshot) for plan in plans)
            if self._advisory:
                plans = tuple(replace(plan, advisory=True) for plan in plans)
            else:
                now_s = self._clock.monotonic_s()
                chosen = [self._canary.next(plan, trigger, now_s) for plan in plans]
                plans = tuple(plan for plan in chosen if plan is not None)
                self._canary.forget(snapshot.models)
                self._note_rolled_back(plans)
            published = [plan for plan in plans if self._publish(plan, spans[plan.model])]
        self._board.post(published)
        for plan in published:
            self._beliefs.decisions.made(plan)
        if plans:
            self._measures.settled(plans, snapshot, trigger, solve_s)
        return published

    async def _targets(self, snapshot: Snapshot) -> Sequence[ReplicaTarget]:
        """How many replicas there should be; none where no pool may grow or shrink."""
        if not snapshot.elastic:
            return ()
        ready = {pool.name: pool.workers for pool in snapshot.problem.pools}
        now_s = self._clock.unix_ms() / 1000
        return await asyncio.to_thread(self._elastic.targets, snapshot.problem, snapshot.elastic, ready, now_s)

    def _note_rolled_back(self, plans: Sequence[RoutingPlan]) -> None:
        for plan in plans:
            if plan.rolled_back:
                log.warning("plan %s is rolled back: %s", plan.rolled_back, plan.because)
                self._planner.go_back(plan)

    async def _next(self) -> Trigger:
        """Waits for news, at most until an interval after the last round began."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._due_s - time.monotonic()):
                await self._woken.wait()
        self._woken.clear()
        news, self._news = self._news, None
        return news or (Trigger.START if self._planner.basis is None else Trigger.INTERVAL)

    def _span(self, model: str, snapshot: Snapshot, trigger: Trigger, seen_unix_ms: int) -> Span:
        links = links_to(snapshot.seen[model].traceparents) if self._telemetry.exporting else ()
        # A trace of its own: many requests caused it, so it is a child of none.
        return self._telemetry.tracer.start_span(
            names.SOLVE_SPAN.format(model=model),
            Context(),
            links=links,
            attributes={names.GEN_AI_REQUEST_MODEL: model, names.PLAN_TRIGGER: trigger.value},
            start_time=seen_unix_ms * 1_000_000 or None,
        )

    def _publish(self, plan: RoutingPlan, span: Span) -> bool:
        span.set_attributes({names.PLAN: plan.name, names.PLAN_STATUS: plan.status})
        try:
            self._bus.publish(plan, traceparent=traceparent_of(span))
        except OutboxFull as error:
            log.warning("plan %s was not published: %s", plan.name, error)
            self._measures.failed(error.reason)
            return False
        return True


def _with_targets(plan: RoutingPlan, targets: Sequence[ReplicaTarget], snapshot: Snapshot) -> RoutingPlan:
    """The plan with the targets of the pools that serve its model."""
    serving = {each.replica.name for each in snapshot.elastic if plan.model in each.replica.stations}
    mine = tuple(each for each in targets if each.pool in serving)
    return replace(plan, targets=mine) if mine else plan
