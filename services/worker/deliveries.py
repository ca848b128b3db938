"""The direct side of a worker: streams for clients that hold a placement, without a router in between.

In: placements with the requests they are for, from the gRPC and HTTP edges. Out: a `Delivery` each; and as the
deliverer this worker tells the mesh what a router tells of a request that it relays: RequestAdmitted and
RequestFinished, each once, or neither where the request was refused before anything was made of it. The routers that
placed the requests hear in batches which of their placements were taken and which ended.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from opentelemetry.trace import get_current_span

from services.mesh import conventions as names
from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import OutboxFull, PlacementRefused, StreamMoved, TokenworksError, WorkerLost
from services.mesh.events import (
    ControlAnswered,
    MoveStreams,
    Outcome,
    PlacementEnded,
    PlacementsUsed,
    RequestAdmitted,
    RequestFinished,
)
from services.mesh.placement import METADATA_KEY, PlacementClaims
from services.worker.core.stillness import LOOKS, REAL_ENGINE_PATIENCE, STILL_S, Stillness
from services.worker.credit import DirectCredit
from services.worker.delivery import Delivery
from services.worker.engine import EngineStats
from services.worker.identity import Identity
from services.worker.outgoing import Outgoing
from services.worker.requests import direct
from services.worker.streams import Streams
from tokenworks.v1 import inference_pb2 as pb

log = logging.getLogger(__name__)

_STREAM: Final = 1  # number of the one stream of a delivery's outgoing
_ANNOUNCE_AFTER_S: Final = 0.05  # what the engine refuses until then leaves no trace
_TELL_EVERY_S: Final = 0.25
_TOLD_AT_ONCE: Final = 256


class Verifier(Protocol):
    """Checks placements; `services.mesh.placement.PlacementVerifier` is one."""

    def verify(self, token: str, now_unix_ms: int) -> PlacementClaims:
        """Raises PlacementRefused: the token is not genuine, not ours, expired or used."""
        ...


@dataclass(slots=True)
class _News:
    """What one router has not been told yet."""

    taken: list[str] = field(default_factory=list)
    ended: list[PlacementEnded] = field(default_factory=list)


class Deliveries:
    """Opens and closes direct streams; `run` in the background, `flush` at the end."""

    def __init__(
        self,
        identity: Identity,
        streams: Streams,
        verifier: Verifier,
        bus: Bus,
        clock: Clock,
        *,
        credit: DirectCredit,
    ) -> None:
        self._identity = identity
        self._streams = streams
        self._verifier = verifier
        self._bus = bus
        self._clock = clock
        self._credit = credit
        self._news: dict[str, _News] = {}
        self._unsaid: deque[tuple[RequestAdmitted | RequestFinished, str]] = deque()
        self._something = asyncio.Event()
        self._open: set[Delivery] = set()

    async def open(self, token: str, request: pb.GenerateRequest, traceparent: str) -> Delivery:
        """Takes a placement and begins the stream; give the delivery back with `close`, whatever happens.

        Args:
            token: of the placement; it is used up from here on.
            traceparent: context of the span that the stream is served under; never empty.

        Raises:
            PlacementRefused: there is no placement, or none that this worker accepts.
            TokenworksError: see `requests.direct` and `Streams.open`; the request left no trace.
        """
        if not token:
            raise PlacementRefused(
                f"the call has no {METADATA_KEY}; ask the router to place the request, or to relay it"
            )
        now_unix_ms = self._clock.unix_ms()
        claims = self._verifier.verify(token, now_unix_ms)
        opened_s = self._clock.monotonic_s()
        outgoing = Outgoing()
        try:
            order = direct(
                request,
                claims,
                traceparent,
                self._streams.new_sequence(),
                self._streams.context_tokens,
                time_left_s=claims.time_left_s(now_unix_ms),
            )
            stream = await self._streams.open(order, outgoing, _STREAM, self._credit.asking(claims))
        except TokenworksError:
            self._tell(claims, ended=PlacementEnded(
                request_id=claims.request_id,
                outcome=Outcome.ERROR,
                delivered_tokens=claims.resume_from,
                prompt_tokens=0,
                cached_prompt_tokens=0,
            ))  # fmt: skip
            raise
        delivery = Delivery(
            self._identity, claims, request, stream, outgoing, traceparent=traceparent, opened_s=opened_s
        )
        self._open.add(delivery)
        self._tell(claims, taken=True)
        asyncio.get_running_loop().call_later(_ANNOUNCE_AFTER_S, self._announce_running, delivery)
        return delivery

    def delivered(self, delivery: Delivery, message: pb.GenerateResponse) -> None:
        """The client has the message."""
        delivery.delivered(message, self._clock.monotonic_s())

    def close(self, delivery: Delivery) -> None:
        """The client has the end, or is gone. Ends what still runs of it."""
        self._open.discard(delivery)
        self._streams.abandon(delivery.stream)
        delivery.end()
        if not delivery.refused:
            self._announce(delivery)
            finished = delivery.finished_event(self._clock.monotonic_s(), self._clock.unix_ms())
            self._say(finished, delivery.traceparent)
        self._credit.ended(delivery.claims)
        self._tell(delivery.claims, ended=delivery.placement_ended())
        _describe(delivery)

    async def run(self) -> None:
        """Tells what there is to tell until cancelled."""
        while True:
            await self._something.wait()
            await asyncio.sleep(_TELL_EVERY_S)
            self.flush()

    async def move_from_stillness(self, stats: Callable[[], EngineStats]) -> None:
        """Runs until cancelled: while the engine stands still with requests in it, direct streams end with an error
        that lets their clients go on elsewhere. Routers see to the streams that they relay; of these nobody else would.

        Args:
            stats: of the engine in force.
        """
        stillness = Stillness()
        while True:
            info = self._streams.info
            still_s = STILL_S * (REAL_ENGINE_PATIENCE if info is not None and not info.simulated else 1.0)
            await asyncio.sleep(still_s / LOOKS)
            now = stats()
            if not stillness.hangs(now.running, now.steps) or not self._open:
                continue
            log.warning("%d direct streams are sent elsewhere: no step for %g s", len(self._open), still_s)
            for delivery in list(self._open):
                lost = WorkerLost(f"the engine of worker {self._identity.worker!r} made no step for {still_s:g} s")
                self._streams.abandon(delivery.stream, lost)

    def move(self, asked: MoveStreams) -> ControlAnswered:
        """Ends the streams that a router names with `StreamMoved`, upon which their clients go on elsewhere."""
        who = self._identity
        if asked.epoch != who.epoch:
            return ControlAnswered(accepted=False, message=f"worker {who.worker!r} has started anew")
        named = frozenset(asked.request_ids)
        moved = [each for each in self._open if each.claims.request_id in named]
        for delivery in moved:
            self._streams.abandon(
                delivery.stream, StreamMoved(f"worker {who.worker!r} {asked.because}; go on elsewhere")
            )
        return ControlAnswered(accepted=True, message=f"{len(moved)} streams go on elsewhere")

    def flush(self) -> int:
        """Hands to the bus what it takes; the number of events that it did not take."""
        self._something.clear()
        for router, news in self._news.items():
            self._tell_router(router, news)
        self._news.clear()
        return self._publish()

    def _announce_running(self, delivery: Delivery) -> None:
        if not delivery.outcome:
            self._announce(delivery)

    def _announce(self, delivery: Delivery) -> None:
        if not delivery.announced:
            delivery.announced = True
            self._say(delivery.admitted_event(), delivery.traceparent)

    def _say(self, event: RequestAdmitted | RequestFinished, traceparent: str) -> None:
        # What the bus does not take waits here, at most two events per stream; new ones are refused meanwhile.
        self._unsaid.append((event, traceparent))
        self._publish()

    def _publish(self) -> int:
        while self._unsaid:
            event, traceparent = self._unsaid[0]
            try:
                self._bus.publish(event, traceparent=traceparent)
            except OutboxFull:
                self._something.set()
                log.warning("the bus takes no more: %d events of direct streams wait", len(self._unsaid))
                break
            self._unsaid.popleft()
        return len(self._unsaid)

    def _tell(self, claims: PlacementClaims, *, taken: bool = False, ended: PlacementEnded | None = None) -> None:
        news = self._news.setdefault(claims.router, _News())
        if taken:
            news.taken.append(claims.request_id)
        if ended is not None:
            news.ended.append(ended)
        self._something.set()

    def _tell_router(self, router: str, news: _News) -> None:
        while news.taken or news.ended:
            self._bus.publish(
                PlacementsUsed(
                    worker=self._identity.worker,
                    router=router,
                    epoch=self._identity.epoch,
                    taken=tuple(news.taken[:_TOLD_AT_ONCE]),
                    ended=tuple(news.ended[:_TOLD_AT_ONCE]),
                    at_unix_ms=self._clock.unix_ms(),
                )
            )
            del news.taken[:_TOLD_AT_ONCE], news.ended[:_TOLD_AT_ONCE]


def _describe(delivery: Delivery) -> None:
    """Writes what became of a stream on the span it was served under."""
    span = get_current_span()
    if not span.is_recording():
        return
    claims, account = delivery.claims, delivery.stream.account
    span.set_attributes(
        {
            names.GEN_AI_REQUEST_MODEL: claims.model,
            names.GEN_AI_RESPONSE_FINISH_REASONS: (delivery.outcome,),
            names.GEN_AI_USAGE_INPUT_TOKENS: account.prompt_tokens,
            names.GEN_AI_USAGE_CACHED_TOKENS: account.cached_prompt_tokens,
            names.REQUEST_ID: claims.request_id,
            names.TENANT: claims.tenant,
            names.WORKLOAD: claims.workload,
            names.SLO_CLASS: claims.slo_class,
            names.PLAN: claims.plan,
            names.PRICE_NUSD: delivery.price_nusd,
        }
    )
