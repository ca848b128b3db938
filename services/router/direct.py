"""Direct requests: the router lets them in, places them and signs; the client streams from the worker, and no token
passes here.

In: requests from the edges, and what workers tell of placements they took (`PlacementsUsed`). Out: placements. A
request is admitted by the same rules as a relayed one and leaves no trace until its worker has taken it: the worker
announces it, delivers it and reports its end. What stays here is a note of each placement that is out, for the view of
the fleet, for Explain, and so that a request of which no worker will ever speak again is closed: when its worker is
gone and its client does not come back, what that worker made is not known to have been delivered, so it is not billed.
"""

import asyncio
import logging
from collections import deque
from dataclasses import replace
from functools import partial
from random import Random
from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.confines import ANYWHERE, Confines
from services.mesh.ends import undelivered_end
from services.mesh.errors import DuplicateRequest, OutboxFull, QueueFull, Unsupported
from services.mesh.events import Outcome, PlacementEnded, PlacementsUsed, RequestFinished
from services.mesh.keys import KeyRecord
from services.mesh.placement import LEEWAY_MS, PlacementClaims, PlacementSigner, placement_funds
from services.mesh.price_calendar import PriceCalendar
from services.mesh.settings import RouterSettings
from services.mesh.subjects import PLACEMENTS
from services.mesh.telemetry import trace_id_of
from services.router.core.admission import Situation, check
from services.router.core.fleet import Fleet
from services.router.core.open_placements import At, OpenPlacement, OpenPlacements
from services.router.core.policy import Decision
from services.router.core.records import RUNNING
from services.router.core.request import Asked, Promise
from services.router.core.resumes import check_asks, check_resumed
from services.router.dispatch import Dispatcher
from services.router.entrance import Entrance
from services.router.funds import Funds
from services.router.placing import Placing
from services.router.reception import Reception
from tokenworks.v1 import inference_pb2 as wire

log = logging.getLogger(__name__)

_SWEEP_EVERY_S: Final = 0.5


class Direct:
    """The direct requests of one router.

    Args:
        signer: None where the mesh has no secret: then nothing is placed.
        prices: which book is in force when; a placement carries its rates.
    """

    def __init__(
        self,
        settings: RouterSettings,
        *,
        signer: PlacementSigner | None,
        dispatcher: Dispatcher,
        fleet: Fleet,
        placing: Placing,
        bus: Bus,
        clock: Clock,
        rng: Random,
        prices: PriceCalendar,
        funds: Funds,
        reception: Reception,
        entrance: Entrance,
    ) -> None:
        self._settings = settings
        self._signer = signer
        self._dispatcher = dispatcher
        self._fleet = fleet
        self._placing = placing
        self._bus = bus
        self._clock = clock
        self._rng = rng
        self._prices = prices
        self._funds = funds
        self._reception = reception
        self._entrance = entrance
        self._open = OpenPlacements()
        self._unsaid: deque[tuple[RequestFinished, str]] = deque()

    def __len__(self) -> int:
        """Placements that are out."""
        return len(self._open)

    @property
    def possible(self) -> bool:
        """Whether placements can be signed at all."""
        return self._signer is not None

    async def place(
        self,
        request: wire.GenerateRequest,
        tenant: str,
        traceparent: str,
        *,
        key: str = "",
        team: str = "",
        within: Confines = ANYWHERE,
        time_left_s: float | None = None,
    ) -> wire.Placement:
        """Lets a request in and says where its client streams it from.

        Args:
            request: with `resume_from` > 0, `avoid_workers` or `place_lost`, it is placed again after a break.
            traceparent: context of the span that the request is placed under; never empty.
            key, team: of the caller, by name, for budgets.
            within: where the caller's key, beside its tenant, has its requests computed.
            time_left_s: of the caller's deadline; None where there is none.

        Raises:
            Unsupported: this mesh has no secret.
            ResumeRefused: see `check_resumed`; or it broke too often.
            CallerError, CapacityError: see `admission.check` and `policy.decide`; the request left no trace.
        """
        asked_s = self._clock.monotonic_s()
        if self._signer is None:
            raise Unsupported(
                "this router hands out no placements, since mesh.secret is empty; call Router.Generate, which relays"
            )
        asked = self._reception.receive(request, tenant, key=key, team=team, within=within)
        passage, credit = await self._entrance.enter(
            asked,
            traceparent,
            check=partial(self._check, asked, request),
            fund=self._funds.fund_placement,
            excluded=request.avoid_workers,
            time_left_s=time_left_s,
        )
        record = passage.record
        if (before := self._open.of(asked.request_id)) is not None:
            self._release(before)  # it is placed again
        self._dispatcher.records.add(record)
        placement = OpenPlacement(
            asked=asked,
            placed=passage.placed,
            record=record,
            cached_tokens=passage.decision.cached_tokens,
            traceparent=traceparent,
            expires_s=self._clock.monotonic_s() + self._settings.placement_ttl_s + LEEWAY_MS / 1000,
            credit=credit,
        )
        self._open.add(placement)
        if time_left_s is not None:
            time_left_s -= self._clock.monotonic_s() - asked_s
        return self._signed(self._signer, placement, passage.served_promise, passage.decision, time_left_s)

    async def place_http(
        self, request: wire.GenerateRequest, caller: KeyRecord, traceparent: str
    ) -> wire.Placement | None:
        """As `place`, for a client that is sent on by HTTP; None where its worker has no endpoint for that."""
        if not self.possible:
            return None
        tenant = caller.tenant
        placement = await self.place(
            request, tenant, traceparent, key=caller.name, team=caller.team, within=caller.confines
        )
        if placement.http_url:
            if (placed := self._open.of(placement.request_id)) is not None:
                placed.stays = True  # by plain HTTP nobody goes on in the middle of an answer
            return placement
        self.superseded(placement.request_id, tenant)
        return None

    def at(self, at: At) -> list[OpenPlacement]:
        """What streams from one start of a worker, as far as it has told."""
        return self._open.taken(at)

    def superseded(self, request_id: str, tenant: str) -> None:
        """The client goes on with the request by another way than its placement."""
        before = self._open.of(request_id)
        if before is not None and before.asked.tenant == tenant:
            self._release(before)

    async def watch(self) -> None:
        """Runs until cancelled: takes in what workers tell of this router's placements."""
        await self._bus.watch([PLACEMENTS], self._fold)

    async def look_after(self) -> None:
        """Runs until cancelled: closes placements that ended without word."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            self.sweep()

    def sweep(self) -> None:
        """Closes those placements that ended without word."""
        now_s = self._clock.monotonic_s()
        over = self._open.sweep(now_s, self._gone, self._idle)
        for placement in (*over.unclaimed, *over.untold):
            self._finish(placement, Outcome.CANCELLED)
        for placement in over.unclaimed:
            if placement.credit is not None:
                self._funds.unused(placement.asked, placement.credit)
        for placement in over.abandoned:
            self._finish(placement, Outcome.ERROR)
            self._unsaid.append((self._last_word(placement), placement.traceparent))
        if over.abandoned:
            log.warning("%d direct requests were closed: their worker is gone, their client too", len(over.abandoned))
        self._say()

    def _check(self, asked: Asked, request: wire.GenerateRequest) -> None:
        """Lets the request in, or raises why not."""
        before = self._open.of(asked.request_id)
        again = bool(asked.resume_from or request.avoid_workers or request.place_lost)
        records = self._dispatcher.records
        earlier = records.of(asked.request_id, asked.tenant)
        if asked.resume_from:
            check_resumed(
                asked.resume_from,
                len(request.resumed_token_ids.ids),
                request.resumed_text,
                features=asked.features,
                earlier=earlier,
            )
        if before is not None and again:
            if before.asked.tenant != asked.tenant:
                raise DuplicateRequest(f"request {asked.request_id!r} runs already; use another request_id")
            check_asks(asked.request_id, earlier)
        situation = Situation(
            draining=self._dispatcher.draining,
            models=self._fleet.models,
            workers=len(self._fleet),
            slo_classes=self._fleet.promises.classes,
            in_flight=0,  # direct ones have a bound of their own
            max_in_flight=1,
            runs=self._dispatcher.runs(asked.request_id) or (before is not None and not again),
            answered=not asked.resume_from and records.was_answered(asked.request_id),
            outbox_slots=float("inf"),  # its worker speaks for it
            credit=self._dispatcher.credit,
            restraints=None if asked.resume_from else self._reception.restraints,
            now_s=self._clock.monotonic_s(),
        )
        # What there is of it is at the client, which is checked above.
        check(replace(asked, resume_from=0) if asked.resume_from else asked, situation)
        if self._unsaid:  # so that no more wait than there were placements out when the bus took no more
            raise OutboxFull(
                f"{len(self._unsaid)} ends of direct requests wait for the bus, which takes no more events; try again"
            )
        if len(self._open) >= self._settings.max_direct:
            raise QueueFull(
                f"{len(self._open)} placements of this router are out, its limit (router.max_direct); try again"
            )

    def _signed(
        self,
        signer: PlacementSigner,
        placement: OpenPlacement,
        promise: Promise,
        decision: Decision,
        time_left_s: float | None,
    ) -> wire.Placement:
        asked, record, beat = placement.asked, placement.record, decision.worker.beat
        pricing = self._prices.at(record.decided_unix_ms)
        # Its worker holds that against its own clock.
        now_there_unix_ms = self._clock.unix_ms() - decision.worker.clock_behind_ms
        expires_unix_ms = now_there_unix_ms + round(self._settings.placement_ttl_s * 1000)
        claims = PlacementClaims(
            id=f"{self._rng.getrandbits(96):024x}",
            request_id=asked.request_id,
            router=self._settings.id,
            worker=beat.worker,
            epoch=beat.epoch,
            tenant=asked.tenant,
            model=asked.model,
            slo_class=asked.slo_class,
            workload=asked.workload,
            plan=record.plan,
            price_book=pricing.label,
            rates=pricing.rates(asked.model, asked.tenant, asked.slo_class),
            admitted_unix_ms=record.decided_unix_ms,
            resume_from=asked.resume_from,
            funded_tokens=min(asked.sampling.max_tokens or beat.context_tokens, beat.context_tokens),
            prompt_tokens=record.prompt_tokens - asked.resume_from,
            ttft_promise_s=promise.ttft_s,
            ttft_promise_s_per_prompt_token=promise.ttft_s_per_prompt_token,
            tpot_promise_s=promise.tpot_s,
            priority=promise.priority,
            expires_unix_ms=expires_unix_ms,
            funds=None if placement.credit is None else placement_funds(placement.credit),
            key=asked.key,
            team=asked.team,
            conversation=asked.conversation,
            within=str(asked.confines),
            waited_s=record.waited_s,
            deadline_unix_ms=0 if time_left_s is None else now_there_unix_ms + max(1, round(time_left_s * 1000)),
        )
        return wire.Placement(
            request_id=asked.request_id,
            worker=beat.worker,
            accelerator=beat.accelerator,
            address=beat.address,
            http_url=beat.http_url,
            token=signer.sign(claims),
            model=asked.model,
            plan=record.plan,
            slo_class=asked.slo_class,
            tokenizer=beat.tokenizer,
            trace_id=record.trace_id,
            expires_unix_ms=expires_unix_ms,
        )

    async def _fold(self, delivered: Delivered) -> None:
        event = delivered.event
        if not isinstance(event, PlacementsUsed) or event.router != self._settings.id:
            return
        at = At(event.worker, event.epoch)
        self._open.took(at, event.taken, self._clock.monotonic_s())
        for ended in event.ended:
            if (placement := self._open.ended(at, ended.request_id)) is not None:
                self._learn(placement, ended)
                if placement.credit is not None and ended.outcome == Outcome.ERROR and not ended.prompt_tokens:
                    self._funds.unused(placement.asked, placement.credit)  # its worker refused it
                self._finish(placement, ended.outcome, ended.delivered_tokens)

    def _learn(self, placement: OpenPlacement, ended: PlacementEnded) -> None:
        if ended.outcome in (Outcome.STOP, Outcome.LENGTH) and not placement.asked.resume_from:
            self._placing.learn(
                placement.asked,
                placement.placed.worker,
                prompt_tokens=ended.prompt_tokens,
                completion_tokens=ended.delivered_tokens,
                expected_cached=placement.cached_tokens,
                cached_tokens=ended.cached_prompt_tokens,
            )

    def _release(self, placement: OpenPlacement) -> None:
        self._open.remove(placement)
        self._fleet.finished(placement.placed, self._clock.monotonic_s())

    def _finish(self, placement: OpenPlacement, outcome: str, delivered_tokens: int = 0) -> None:
        """For a placement that is no longer among the open ones."""
        self._fleet.finished(placement.placed, self._clock.monotonic_s())
        if placement.record.outcome == RUNNING:
            placement.record.outcome = outcome
            placement.record.delivered = max(placement.record.delivered, delivered_tokens)
            self._dispatcher.records.ended(placement.record)
        if placement.credit is not None:
            self._funds.ended(placement.asked)

    def _gone(self, at: At) -> bool:
        worker = self._fleet.worker(at.worker)
        if worker is None or worker.beat.epoch != at.epoch:
            return True
        return self._fleet.lost(worker, self._clock.monotonic_s())

    def _idle(self, at: At) -> bool:
        worker = self._fleet.worker(at.worker)
        return worker is not None and worker.beat.running == worker.beat.waiting == 0

    def _last_word(self, placement: OpenPlacement) -> RequestFinished:
        """Of a request whose worker is gone: known to be delivered is what its client said to have when it resumed."""
        asked, record, beat = placement.asked, placement.record, placement.placed.worker.beat
        now_unix_ms = self._clock.unix_ms()
        return replace(
            undelivered_end(asked, now_unix_ms, router=self._settings.id, had_tokens=asked.resume_from),
            worker=beat.worker,
            pool=beat.pool,
            accelerator=beat.accelerator,
            e2e_s=max(0, now_unix_ms - record.decided_unix_ms) / 1000,
            trace_id=record.trace_id or trace_id_of(placement.traceparent),
            admitted_unix_ms=record.decided_unix_ms,
            price_book=self._prices.at(record.decided_unix_ms).label,
            plan=record.plan,
            funding=() if placement.credit is None else placement.credit.funding(),
        )

    def _say(self) -> None:
        """Publishes what waits to be, as far as the bus takes it."""
        while self._unsaid:
            event, traceparent = self._unsaid[0]
            try:
                self._bus.publish(event, traceparent=traceparent)
            except OutboxFull:
                return
            self._unsaid.popleft()
