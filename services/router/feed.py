"""What the router hears: beats, steps, plans, prefixes, credit, prices, runaways; folded into its view as they come."""

import logging

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
from services.router.core.fleet import Fleet
from services.router.dispatch import Dispatcher
from services.router.funds import Funds
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
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._sessions = sessions
        self._dispatcher = dispatcher
        self._reception = reception
        self._clock = clock
        self._prices = prices
        self._funds = funds

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
                self._fleet.plan(event, delivered.traceparent, now_s)
            case CreditChanged():
                # In the order of the stream: no clock of a meter's host tells which is the last word.
                if event.unlimited and not event.suspended:
                    self._dispatcher.credit.pop(event.tenant, None)  # as good as never heard of
                else:
                    self._dispatcher.credit[event.tenant] = event
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
