"""What the router tells the mesh of a request: RequestAdmitted and RequestFinished, each exactly once, or neither.

And how far an answer got whose client came back for the rest and was refused: nobody else may know of its end.
"""

import logging
from dataclasses import replace
from typing import Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.ends import undelivered_end
from services.mesh.errors import CapacityError, CreditExhausted, OutboxFull, PeerError, RateLimited, TokenworksError
from services.mesh.events import Funding, RequestAdmitted, RequestFinished
from services.mesh.price_calendar import PriceCalendar
from services.mesh.telemetry import trace_id_of
from services.router.core.request import Asked
from services.router.relay import Relay

log = logging.getLogger(__name__)

_NOT_ITS_FAULT: Final = (CreditExhausted, RateLimited, CapacityError, PeerError)


class Announcer:
    """Publishes for one router.

    Args:
        outbox_events: the bound of the bus's outbox, per channel.
        prices: which price book is in force when.
    """

    def __init__(self, bus: Bus, clock: Clock, router: str, *, outbox_events: int, prices: PriceCalendar) -> None:
        self._bus = bus
        self._clock = clock
        self._router = router
        self._outbox_events = outbox_events
        self._prices = prices

    @property
    def outbox_slots(self) -> float:
        """How many events the fullest outbox still takes: each running request must be able to say its last word."""
        return self._bus.outbox_free * self._outbox_events

    def admitted(self, relay: Relay) -> None:
        if relay.announced:
            return
        relay.announced = True
        if relay.resumed_tokens:
            return  # whoever let it in first has said so
        asked, worker = relay.asked, relay.worker
        self._bus.publish(
            RequestAdmitted(
                request_id=asked.request_id,
                router=self._router,
                tenant=asked.tenant,
                workload=asked.workload,
                model=asked.model,
                slo_class=asked.slo_class,
                prompt_tokens=relay.prompt_tokens,
                max_tokens=asked.sampling.max_tokens or 0,
                worker=worker.name,
                pool=worker.pool,
                plan=relay.record.plan,
                at_unix_ms=relay.admitted_unix_ms,
                price_book=self._prices.at(relay.admitted_unix_ms).label,
                session_id=asked.session_id,
                key=asked.key,
                team=asked.team,
                conversation=asked.conversation,
                funding=_funding(relay),
                within=str(asked.confines),
            ),
            traceparent=relay.traceparent,
        )

    def finished(self, relay: Relay, now_s: float) -> None:
        """The relay has ended, `outcome` is set; RequestAdmitted is published first where it was not yet."""
        self.admitted(relay)
        asked, worker = relay.asked, relay.worker
        self._bus.publish(
            RequestFinished(
                request_id=asked.request_id,
                router=self._router,
                tenant=asked.tenant,
                workload=asked.workload,
                model=asked.model,
                slo_class=asked.slo_class,
                worker=worker.name,
                pool=worker.pool,
                accelerator=worker.beat.accelerator,
                delivered_from=0,
                delivered_count=relay.delivered_tokens,
                prompt_tokens=relay.usage.prompt_tokens,
                cached_prompt_tokens=relay.usage.cached_prompt_tokens,
                outcome=relay.outcome,
                ttft_s=relay.ttft_s,
                tpot_s=relay.tpot_s,
                e2e_s=now_s - relay.admitted_s,
                slo_met=relay.slo_met,
                trace_id=relay.record.trace_id,
                at_unix_ms=self._clock.unix_ms(),
                admitted_unix_ms=relay.admitted_unix_ms,
                price_book=self._prices.at(relay.admitted_unix_ms).label,
                plan=relay.record.plan,
                funding=_funding(relay),
            ),
            traceparent=relay.traceparent,
        )

    def refused(self, asked: Asked, error: TokenworksError, traceparent: str) -> None:
        """A request gets no place. Of one whose client has the first tokens, that was the end, unless it finds a place
        later: then the longer end counts."""
        if not asked.resume_from or not isinstance(error, _NOT_ITS_FAULT):
            return
        end = undelivered_end(asked, self._clock.unix_ms(), router=self._router, had_tokens=asked.resume_from)
        event = replace(end, trace_id=trace_id_of(traceparent))
        try:
            self._bus.publish(event, traceparent=traceparent)
        except OutboxFull:
            log.error("the bus takes no more: %s is in this log only", event)


def _funding(relay: Relay) -> tuple[Funding, ...]:
    return () if relay.credit is None else relay.credit.funding()
