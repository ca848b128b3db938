"""What the router hears: beats, steps, plans, prefixes, credit, prices, runaways; folded into its view as they come."""

import logging

from services.mesh import conventions as names
from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.events import (
    BudgetsSet,
    CreditChanged,
    LatencyObserved,
    PrefixesChanged,
    PriceBookOpened,
    RoutingPlan,
    RunawayFound,
    WorkerHeartbeat,
)
from services.mesh.price_calendar import OpenedBook, PriceCalendar
from services.mesh.subjects import BUDGETS, CREDIT, FLEET, LATENCY, PLAN, PREFIXES, PRICES, RUNAWAY
from services.mesh.telemetry import Telemetry, context_of
from services.router.core.credit import MOST_TENANTS
from services.router.core.fleet import Fleet
from services.router.dispatch import Dispatcher
from services.router.funds import Funds
from services.router.measures import Measures
from services.router.reception import Reception
from services.router.sessions import Sessions

log = logging.getLogger(__name__)


class Feed:
    """Runs until cancelled: `await feed.watch()`."""

    def __init__(
        self,
        bus: Bus,
        fleet: Fleet,
        sessions: Sessions,
        dispatcher: Dispatcher,
        reception: Reception,
        *,
        clock: Clock,
        prices: PriceCalendar,
        funds: Funds,
        telemetry: Telemetry,
        measures: Measures,
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._sessions = sessions
        self._dispatcher = dispatcher
        self._reception = reception
        self._clock = clock
        self._prices = prices
        self._funds = funds
        self._telemetry = telemetry
        self._measures = measures
        self._began_unix_ms = clock.unix_ms()

    async def watch(self) -> None:
        await self._bus.watch([FLEET, LATENCY, PLAN, PREFIXES, CREDIT, PRICES, RUNAWAY, BUDGETS], self._fold)

    async def _fold(self, delivered: Delivered) -> None:
        event, now_s = delivered.event, self._clock.monotonic_s()
        match event:
            case WorkerHeartbeat():
                self._fleet.heartbeat(event, now_s, self._clock.unix_ms())
                if (worker := self._fleet.worker(event.worker)) is not None:
                    self._sessions.warm(worker)
            case LatencyObserved():
                self._fleet.latency(event, now_s)
            case PrefixesChanged():
                self._fleet.prefixes_changed(event, now_s)
            case RoutingPlan():
                self._apply(event, delivered.traceparent, now_s)
            case CreditChanged():
                # In the order of the stream: no clock of a meter's host tells which is the last word.
                credit = self._dispatcher.credit
                if not (event.suspended or event.exhausted):
                    credit.pop(event.tenant, None)  # it refuses nobody: as good as never heard of
                elif event.tenant in credit or len(credit) < MOST_TENANTS:
                    credit[event.tenant] = event
            case BudgetsSet():
                if self._funds.budgets.set(event):
                    self._funds.refilled()
            case RunawayFound():
                self._reception.restraints.fold(event, now_s)
            case PriceBookOpened():
                try:
                    self._prices.open(OpenedBook.of(event))
                except ValueError as error:
                    log.error("price book %s cannot be read, and is not priced by: %s", event.label, error)

    def _apply(self, plan: RoutingPlan, traceparent: str, now_s: float) -> None:
        """The last step on the way from news to what routers do; in the plan's own trace."""
        evidence = plan.evidence
        span = self._telemetry.tracer.start_span(
            names.APPLY_SPAN.replace("{model}", plan.model),
            context_of(traceparent),
            attributes={
                names.PLAN: plan.name,
                names.GEN_AI_REQUEST_MODEL: plan.model,
                names.PLAN_TRIGGER: evidence.trigger,
            },
        )
        try:
            applied = self._fleet.plan(plan, traceparent, now_s)
            span.set_attribute(names.PLAN_APPLIED, applied)
        finally:
            span.end()
        # One from before this router began stood in the stream: how old it is says nothing of how the mesh reacts.
        if applied and evidence.seen_unix_ms >= self._began_unix_ms:
            self._measures.reacted((self._clock.unix_ms() - evidence.seen_unix_ms) / 1000, evidence.trigger)
