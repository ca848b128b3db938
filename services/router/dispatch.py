"""Every request of this router from admission to its end: lets it in, places it, and again when its worker fails it.

In: requests from the gRPC and HTTP edges, chunks from sessions. Out: `Relay`s, whose messages the edges pass on.

What a worker's failure means depends on it. The caller's fault ends the request. A worker that is full or gone is
excluded and the request placed again, with the tokens that came so far, so that the client sees one stream; while no
other worker takes it, it is tried again for a few seconds, since workers restart. Placements are bounded.

A request refused by its first worker within `_ANNOUNCE_AFTER_S` (its prompt was longer than the router could know, say)
leaves no trace: RequestAdmitted waits that long.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial
from random import Random
from typing import Final

from services.mesh.clock import Clock
from services.mesh.confines import ANYWHERE, Confines
from services.mesh.errors import (
    CallerError,
    ClientTooSlow,
    DuplicateRequest,
    InvariantBroken,
    PromptTooLong,
    ResumeRefused,
    TokenworksError,
    WorkerLost,
)
from services.mesh.events import CreditChanged
from services.mesh.price_calendar import PriceCalendar
from services.mesh.settings import RouterSettings
from services.router.announcer import Announcer
from services.router.core.admission import Situation, check
from services.router.core.fleet import Fleet
from services.router.core.known_worker import Placed
from services.router.core.policy import Decision
from services.router.core.records import DecisionRecords
from services.router.core.request import Asked
from services.router.core.resumes import cannot_go_on, check_resumed
from services.router.core.scores import Ask
from services.router.entrance import Entrance
from services.router.funds import Funds, funds_of
from services.router.measures import Measures
from services.router.messages import MOST_HELD_BYTES, Unread
from services.router.placing import Placing
from services.router.reception import Reception
from services.router.relay import Relay, Usage
from services.router.room import Room
from services.router.sessions import Sessions
from tokenworks.v1 import inference_pb2 as wire

log = logging.getLogger(__name__)

_MOST_PLACEMENTS: Final = 8
_ANNOUNCE_AFTER_S: Final = 0.05
_RETRY_FOR_S: Final = 5.0
_RETRY_EVERY_S: Final = 0.1
_CLOSING_S: Final = 1.0


class Dispatcher:
    """The requests that run at this router.

    Attributes:
        credit: the last word on each tenant that has a budget; the feed writes it.
        records: of recent decisions.
        draining: no new requests are let in.
    """

    def __init__(
        self,
        settings: RouterSettings,
        *,
        fleet: Fleet,
        placing: Placing,
        sessions: Sessions,
        announcer: Announcer,
        measures: Measures,
        clock: Clock,
        rng: Random,
        prices: PriceCalendar,
        funds: Funds,
        room: Room,
        reception: Reception,
        entrance: Entrance,
    ) -> None:
        self.credit: dict[str, CreditChanged] = {}
        self.records = DecisionRecords(settings.decision_records)
        self.draining = False
        self._settings = settings
        self._fleet = fleet
        self._placing = placing
        self._sessions = sessions
        self._announcer = announcer
        self._measures = measures
        self._clock = clock
        self._rng = rng
        self._prices = prices
        self._funds = funds
        self._room = room
        self._entrance = entrance
        self._reception = reception
        self._relays: dict[str, Relay] = {}
        self._unread = Unread()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._relays)

    def running(self) -> list[Relay]:
        """The requests that run now."""
        return list(self._relays.values())

    def runs(self, request_id: str) -> bool:
        """Whether a request of that id runs now, or waits."""
        return request_id in self._relays or request_id in self._room

    async def admit(
        self,
        request: wire.GenerateRequest,
        tenant: str,
        traceparent: str,
        *,
        key: str = "",
        team: str = "",
        within: Confines = ANYWHERE,
        time_left_s: float | None = None,
    ) -> Relay:
        """Lets a request in and sends it to a worker; give the relay back with `close`, whatever happens. Waits for
        capacity where there is none, and for credit that others hold.

        Args:
            time_left_s: of the caller's deadline; None where there is none.
            key, team: of the caller, by name, for budgets.
            within: where the caller's key, beside its tenant, has its requests computed.
            request: its `request_id` and `slo_class` are filled in here where they are empty.
            traceparent: context of the span that the request is served under; never empty.

        Raises:
            ResumeRefused: see `check_resumed`.
            CallerError, CapacityError: see `admission.check` and `policy.decide`; the request left no trace.
        """
        asked = self._reception.receive(request, tenant, key=key, team=team, within=within)
        passage, credit = await self._entrance.enter(
            asked,
            traceparent,
            check=partial(self._check, asked, request),
            fund=self._funds.fund,
            excluded=request.avoid_workers,
            time_left_s=time_left_s,
        )
        record = passage.record
        now = self._clock.monotonic_s
        promise = passage.served_promise
        relay = Relay(self, asked, request, promise, record, traceparent=traceparent, unread=self._unread, now=now)
        relay.admitted_s -= passage.waited_s
        if time_left_s is not None:
            relay.deadline_s = now() - passage.waited_s + time_left_s
        relay.credit = credit
        self._relays[asked.request_id] = relay
        self._idle.clear()
        self.records.add(record)
        self._send(relay, passage.decision, passage.placed)
        asyncio.get_running_loop().call_later(_ANNOUNCE_AFTER_S, self._announce, relay)
        return relay

    def close(self, relay: Relay) -> None:
        """The client is done with the relay, or gone. Ends what still runs of it; again changes nothing."""
        if not self._runs(relay):
            return
        del self._relays[relay.asked.request_id]
        if not self._relays:
            self._idle.set()
        now_s = self._clock.monotonic_s()
        self._release(relay, cancel="cancelled")
        if relay.outcome in ("stop", "length") and relay.delivered_tokens < relay.journal.next_index:
            relay.outcome = ""  # it ended, but its client left before the end reached it
        relay.end("cancelled")
        relay.journal.close()
        relay.record.outcome = relay.outcome
        relay.record.delivered = relay.delivered_tokens
        self.records.ended(relay.record)
        # Where several workers had it, one may have made something of it that is held against its credit.
        held = relay.credit is not None and relay.placements > 1
        if relay.announced or held or not relay.refused_by(relay.error):
            self._announcer.finished(relay, now_s)
            self._measures.finished(relay, now_s)
            if relay.credit is not None:
                self._funds.ended(relay.asked)
        elif relay.credit is not None:
            self._funds.unused(relay.asked, relay.credit)

    async def drain(self, grace_s: float) -> int:
        """Lets no new requests in, waits `grace_s` for those that run, then ends the rest; how many those were."""
        self.draining = True
        self._room.dismiss()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        left = self.running()
        for relay in left:
            self._release(relay, cancel="cancelled")
            relay.end("cancelled", WorkerLost("this router has stopped; send the request to another one"))
        with suppress(TimeoutError):  # a client that does not read is cut off with its server
            async with asyncio.timeout(_CLOSING_S):
                await self._idle.wait()
        return len(left)

    def at(self, worker: str) -> list[Relay]:
        """The requests that run at a worker."""
        session = self._sessions.of(worker)
        return [each for each in session.recipients if isinstance(each, Relay)] if session else []

    def move(self, relay: Relay, ask: Ask, decision: Decision) -> None:
        """Takes a request off its worker and sends it to another, with what there is of its answer."""
        self._release(relay, cancel="cancelled")
        self._place(relay, ask, decision)

    # What a relay tells its owner.

    def started(self, relay: Relay) -> None:
        relay.retry_until_s = None
        if relay.placed is not None:
            self._fleet.prefilled(relay.placed, self._clock.monotonic_s())

    def completed(self, relay: Relay, last: wire.GenerateResponse) -> None:
        if last.finish.reason == "cancelled":
            # Nobody here asked for that: the worker is going away.
            if last.token_count:
                last.ClearField("finish")
                relay.put(last.SerializeToString(), last.token_count)
            self.failed(relay, WorkerLost(f"worker {relay.worker.name!r} gave the request up"))
            return
        asked, finish = relay.asked, last.finish
        tokens = relay.journal.next_index + last.token_count
        prompt_tokens = finish.usage.prompt_tokens
        cached_tokens = min(finish.usage.cached_prompt_tokens, prompt_tokens)
        rates = self._prices.at(relay.admitted_unix_ms).rates(asked.model, asked.tenant, asked.slo_class)
        finish.usage.completion_tokens = tokens
        unpaid = finish.reason == "budget" and not tokens  # then not even the prompt was
        finish.price_nusd = 0 if unpaid else rates.price_nusd(prompt_tokens, cached_tokens, tokens)
        relay.usage = Usage(prompt_tokens, cached_tokens, finish.price_nusd)
        del finish.segments[:]
        finish.segments.extend(relay.wire_segments(last.token_count))
        if finish.reason in ("stop", "length") and relay.placements == 1 and not relay.resumed_tokens:
            self._placing.learn(
                asked,
                relay.worker,
                prompt_tokens=prompt_tokens,
                completion_tokens=tokens,
                expected_cached=relay.cached_tokens,
                cached_tokens=cached_tokens,
            )
        self._release(relay)
        relay.put(last.SerializeToString(), last.token_count)
        relay.end(finish.reason)

    def funds_asked(self, relay: Relay, asked: wire.FundsAsked) -> None:
        credit = relay.credit
        if credit is None or relay.outcome:
            return

        def done(more: bool) -> None:
            if relay.session is not None and not relay.outcome:
                fund = wire.FundStream(stream=relay.number, funds=funds_of(credit), final=not more)
                relay.session.fund(relay.number, fund)

        self._funds.extend(credit, relay.asked, asked.prompt_tokens, asked.completion_tokens, done)

    def failed(self, relay: Relay, error: TokenworksError) -> None:
        if relay.outcome:
            return
        self._release(relay, cancel="cancelled")
        self._measures.broke(error)
        failing = relay.worker
        relay.excluded.add(failing.name)
        if relay.asked.features and relay.journal.next_index and not isinstance(error, CallerError):
            relay.give_up(cannot_go_on(relay.asked.features, error))
            return
        if isinstance(error, PromptTooLong):  # it may fit where the context is longer
            short = failing.beat.context_tokens
            relay.excluded.update(each.name for each in self._fleet.workers() if each.beat.context_tokens <= short)
        elif isinstance(error, ResumeRefused):  # one whose tokenizer made what was delivered may take it
            like = failing.beat.tokenizer
            relay.excluded.update(each.name for each in self._fleet.workers() if each.beat.tokenizer == like)
        elif isinstance(error, DuplicateRequest) and relay.placements > 1 and not relay.journal.next_index:
            log.info("request %s runs on %s yet, which it left", relay.asked.request_id, failing.name)
        elif isinstance(error, CallerError | InvariantBroken):
            relay.give_up(error)
            return
        if relay.retry_until_s is None:
            relay.retry_until_s = self._clock.monotonic_s() + _RETRY_FOR_S
        self._place_again(relay, error)

    def overflowed(self, relay: Relay) -> None:
        self._release(relay, cancel="cancelled")
        error = ClientTooSlow(
            f"more than {MOST_HELD_BYTES} bytes of the answer wait for its client, which does not read; ask for"
            " shorter answers, or go on from the last token received"
        )
        relay.end("cancelled", error)

    def _check(self, asked: Asked, request: wire.GenerateRequest) -> None:
        """Lets the request in, or raises why not."""
        if not asked.resume_from:
            check(asked, self._situation(asked))
            return
        check_resumed(
            asked.resume_from,
            len(request.resumed_token_ids.ids),
            request.resumed_text,
            features=asked.features,
            earlier=self.records.of(asked.request_id, asked.tenant),
        )
        before = self._relays.get(asked.request_id)
        if before is not None and before.asked.tenant == asked.tenant:
            # Its client lost the connection, and is back before that was noticed here.
            self._release(before, cancel="cancelled")
            before.end("cancelled", DuplicateRequest(f"request {asked.request_id!r} goes on in another call"))
            self.close(before)
        # What there is of it is at the client, which is checked above.
        check(replace(asked, resume_from=0), replace(self._situation(asked), answered=False))

    def _place_again(self, relay: Relay, error: TokenworksError) -> None:
        """Places a request that `error` happened to once more, now or in a while."""
        if relay.outcome or not self._runs(relay):
            return
        if relay.placements >= _MOST_PLACEMENTS:
            relay.give_up(error)
            return
        ask = self._placing.ask(relay.asked, relay.excluded, relay.journal.next_index)
        try:
            decision = self._placing.decide(relay.asked, ask)
        except TokenworksError:
            late = relay.retry_until_s is None or self._clock.monotonic_s() >= relay.retry_until_s
            if late or relay.refused_by(error) or isinstance(error, ResumeRefused):
                relay.give_up(error)
                return
            relay.excluded.clear()  # those that failed may be back
            asyncio.get_running_loop().call_later(_RETRY_EVERY_S, self._place_again, relay, error)
            return
        self._place(relay, ask, decision)

    def _place(self, relay: Relay, ask: Ask, decision: Decision) -> None:
        self._send(relay, decision, self._placing.carried_out(relay.asked, ask, decision))

    def _send(self, relay: Relay, decision: Decision, placed: Placed) -> None:
        relay.placements += 1
        relay.cached_tokens = decision.cached_tokens
        relay.served_by(decision.worker, placed)
        relay.session = self._sessions.to(decision.worker)
        relay.number = relay.session.open(relay, relay.open_stream(decision.plan.name if decision.plan else ""))

    def _release(self, relay: Relay, cancel: str = "") -> None:
        """Takes the request off its worker; `cancel` says why where the worker does not know yet."""
        if relay.placed is not None:
            self._fleet.finished(relay.placed, self._clock.monotonic_s())
            relay.placed = None
        if relay.session is not None:
            if cancel:
                relay.session.cancel(relay.number, cancel)
            relay.session = None

    def _announce(self, relay: Relay) -> None:
        if self._runs(relay):
            self._announcer.admitted(relay)

    def _runs(self, relay: Relay) -> bool:
        return self._relays.get(relay.asked.request_id) is relay

    def _situation(self, asked: Asked) -> Situation:
        return Situation(
            draining=self.draining,
            models=self._fleet.models,
            workers=len(self._fleet),
            slo_classes=self._fleet.promises.classes,
            in_flight=len(self._relays),
            max_in_flight=self._settings.max_in_flight,
            runs=self.runs(asked.request_id),
            answered=self.records.was_answered(asked.request_id),
            outbox_slots=self._announcer.outbox_slots,
            credit=self.credit,
            restraints=None if asked.resume_from else self._reception.restraints,
            now_s=self._clock.monotonic_s(),
        )
