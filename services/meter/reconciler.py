"""The reconciler: holds books, witnesses and streams against each other, without end, and repairs what does not agree.

Every pass, some seconds after the last, does a bounded part of the work, in the reading threads:
1. Gaps in publishers' sequences are asked for again (`gaps.py`).
2. Heartbeats' counts are held against what is booked of each worker (`core/conservation.py`).
3. The requests of the newest ledger lines are looked at, and the next of all requests in the order of their ids: a
   round goes through all of them. Beside it the ledger is added up, and held against usage and tenants' spending.
4. What does not agree is made again from the streams (`repairs.py`). What may only be on its way is left until it has
   stood for `meter.audit_patience_s` while nothing waits to be booked. Then what was delivered, and a worker died too
   early to report, is booked on the deliverer's word; for that alone no stream is read, which takes long.
5. A request that has no end, and of which nothing more was heard for `meter.end_after_s`, is ended: whoever knew its
   end died with it. Billed is what is known to be delivered; an end that is told later holds where it got further.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.errors import BusUnavailable
from services.mesh.events import SequenceRange, WorkerHeartbeat
from services.mesh.price_calendar import PriceCalendar
from services.mesh.pricing import Rates
from services.mesh.publishing import MOST_AGAIN
from services.mesh.sequences import count_of
from services.mesh.settings import MeterSettings
from services.mesh.subjects import FLEET, TOKENS
from services.meter.announcer import Announcer
from services.meter.audit import Audit
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.conservation import AT_ONCE, Audited, Counts, Finding, Kind, check, check_sums
from services.meter.core.requests import Key
from services.meter.feed import Feed
from services.meter.gaps import Gaps
from services.meter.passes import pass_on
from services.meter.repairs import MOST_AT_ONCE, Repairs
from services.meter.store.audit import Audits, Summing, Sums
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)

_REQUESTS_A_PASS: Final = 1000
_LINES_A_PASS: Final = 2000
_SUMMED_A_PASS: Final = 50_000
_SUSPECTS_KEPT: Final = 10_000
_GIVEN_UP_KEPT: Final = 10_000
_OF_REQUESTS: Final = (Kind.LINES, Kind.BILLED, Kind.UNREPORTED, Kind.UNFINISHED)
_GAP_STANDS_S: Final = 2.0
_FORGETS_EVERY_S: Final = 86_400.0
_REST: Final = 10.0  # times as long as it took to read the streams, until they are read again
_START: Final = ("", "")


@dataclass(slots=True)
class _Suspect:
    """A request that does not agree, and since when it is as it is."""

    audited: Audited
    since_s: float


class Reconciler:
    """Reconciles until cancelled. Lives in the event loop."""

    def __init__(
        self,
        *,
        settings: MeterSettings,
        audit: Audit,
        audits: Audits,
        bookkeeper: Bookkeeper,
        prices: PriceCalendar,
        reading: WorkThreads,
        writing: WorkThreads,
        feed: Feed,
        announcer: Announcer,
        bus: Bus,
        clock: Clock,
    ) -> None:
        self._every_s = settings.audit_every_s
        self._patience_s = settings.audit_patience_s
        self._end_after_s = settings.end_after_s
        self._audit = audit
        self._audits = audits
        self._bookkeeper = bookkeeper
        self._prices = prices
        self._reading = reading
        self._writing = writing
        self._feed = feed
        self._announcer = announcer
        self._bus = bus
        self._clock = clock
        self._gaps = Gaps(bus, clock, stands_s=min(_GAP_STANDS_S, settings.audit_patience_s))
        self._lost_before = 0
        self._counts = Counts()
        self._repairs = Repairs(bus, bookkeeper, writing, clock)
        self._settled: frozenset[str] = frozenset()  # re-ratings that were when the pass began
        self._last = _START  # request of the round
        self._last_line = 0
        self._summing = Summing()
        self._suspects: OrderedDict[Key, _Suspect] = OrderedDict()
        self._next_remake_s = float("-inf")
        self._forgets_s = clock.monotonic_s() + _FORGETS_EVERY_S
        self._given_up: OrderedDict[Key, _Suspect] = OrderedDict()  # what cannot be repaired as it stands

    async def run(self) -> None:
        """Passes until cancelled; one that fails is logged, and the next begins where it did."""
        self._last_line = await self._reading.run(self._audits.last_line)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._bus.watch([FLEET], self._hear))
            tasks.create_task(pass_on(self.reconcile, self._every_s, "the audit"))

    async def reconcile(self) -> None:
        """One pass."""
        self._settled = self._prices.settled
        await self._look_at_publishers()
        self._last_line, newest = await self._reading.run(
            partial(self._audits.entered_after, self._last_line, _LINES_A_PASS)
        )
        found = await self._reading.run(partial(self._audits.after, self._last, _REQUESTS_A_PASS))
        self._last = max(found) if len(found) == _REQUESTS_A_PASS else _START
        await self._repair(self._look_at(newest | found))
        await self._add_up()
        if self._clock.monotonic_s() >= self._forgets_s:
            await self._writing.run(partial(self._bookkeeper.forget_long_gone, self._clock.unix_ms()))
            self._forgets_s = self._clock.monotonic_s() + _FORGETS_EVERY_S
        checked = self._audit.checked
        checked.requests += len(found)
        if self._last == _START:
            checked.rounds += 1
            checked.round_ended_unix_ms = self._clock.unix_ms()
        self._audit.tell()

    async def _hear(self, delivered: Delivered) -> None:
        event = delivered.event
        if isinstance(event, WorkerHeartbeat):
            # Events of one start of a process have one epoch, on whatever channel.
            source = (f"{delivered.id.publisher.rpartition('.')[0]}.{TOKENS.name}", delivered.id.epoch)
            now_s = self._clock.monotonic_s()
            self._counts.beat(source, event.worker, event.sequence, event.generated_tokens, now_s)

    async def _look_at_publishers(self) -> None:
        settled = self._feed.lag_events == 0
        noted = await self._writing.run(partial(self._bookkeeper.noted, tuple(self._counts.sources)))
        for lost in await self._gaps.look(noted.gaps):
            self._audit.stands(lost)
        for publisher in self._gaps.take_closed():
            # Unless it is the marks that forgot it: the next start of its publisher sends what the last one held.
            if self._feed.lost_events == self._lost_before:
                self._audit.agrees((Kind.LOST,), publisher, "")
        self._lost_before = self._feed.lost_events
        given_up = self._gaps.given_up
        self._audit.missing_events = sum(map(count_of, noted.gaps.values())) - given_up
        self._audit.lost_events = self._feed.lost_events + given_up
        if not settled:
            return
        looked_at = self._counts.check(noted.tokens, self._clock.monotonic_s(), self._patience_s)
        for (publisher, epoch), finding in looked_at.items():
            if finding is None:
                worker = publisher.split(".", 1)[1].rpartition(".")[0]
                self._audit.agrees((Kind.WORKER,), worker, "")
                continue
            self._audit.stands(finding)
            if finding.found < finding.expected:
                await self._ask_for_the_last(publisher, epoch, noted.high_water.get((publisher, epoch), 0))

    async def _ask_for_the_last(self, publisher: str, epoch: str, high_water: int) -> None:
        """A gap that nothing comes after is not seen in the numbers: what was sent last may be what is lacking."""
        try:
            after = SequenceRange(high_water + 1, high_water + MOST_AGAIN)
            await self._bus.ask_again(publisher, epoch, (after,), 2.0)
        except BusUnavailable as gone:
            log.info("%s", gone)

    def _look_at(self, requests: Mapping[Key, Audited]) -> dict[Key, list[Finding]]:
        """What does not agree, and is not just on its way or beyond repair as it stands."""
        settled = self._feed.lag_events == 0 and not self._audit.missing_events
        now_s = self._clock.monotonic_s()
        wrong: dict[Key, list[Finding]] = {}
        for key, audited in requests.items():
            findings = check(key, audited, self._rates(audited))
            if not findings:
                self._suspects.pop(key, None)
                self._given_up.pop(key, None)
                self._audit.agrees(_OF_REQUESTS, *key)
                continue
            given_up = self._given_up.get(key)
            if given_up is not None and given_up.audited == audited:
                if settled and now_s - given_up.since_s >= self._end_after_s:
                    self._end(key, audited, findings)
                continue
            if not any(each.kind in AT_ONCE for each in findings):
                suspect = self._suspects.get(key)
                if suspect is None or suspect.audited != audited:
                    self._suspects[key] = _Suspect(audited, now_s)
                    if len(self._suspects) > _SUSPECTS_KEPT:
                        self._suspects.popitem(last=False)
                    continue
                if not settled or now_s - suspect.since_s < self._patience_s:
                    continue
            wrong[key] = findings
            if len(wrong) >= MOST_AT_ONCE:
                break
        return wrong

    async def _repair(self, wrong: Mapping[Key, list[Finding]]) -> None:
        unreported = {key for key, findings in wrong.items() if all(each.kind is Kind.UNREPORTED for each in findings)}
        await self._testify(unreported)
        await self._remake({key: findings for key, findings in wrong.items() if key not in unreported})

    async def _testify(self, unreported: Collection[Key]) -> None:
        """Nothing waits or is missing, so all that workers said of these is booked: the streams have no more."""
        if not unreported:
            return
        for key, audited in (await self._reading.run(partial(self._audits.of, list(unreported)))).items():
            findings = check(key, audited, self._rates(audited))
            if audited.request is None or [each.kind for each in findings] != [Kind.UNREPORTED]:
                continue  # it is another by now, and is looked at anew
            self._audit.repaired_now(findings[0], _testified(self._repairs.testify(audited.request)))
            self._suspects.pop(key, None)

    async def _remake(self, wrong: Mapping[Key, list[Finding]]) -> None:
        if not wrong:
            return
        started_s = self._clock.monotonic_s()
        if started_s < self._next_remake_s:
            for each in (finding for findings in wrong.values() for finding in findings):
                self._audit.stands(each)
            return
        before = await self._reading.run(partial(self._audits.of, list(wrong)))
        remade = await self._repairs.remake(before)
        took_s = self._clock.monotonic_s() - started_s
        self._next_remake_s = started_s + max(self._patience_s, _REST * took_s)
        after = await self._reading.run(partial(self._audits.of, list(wrong)))
        for key, findings in wrong.items():
            done, audited = remade[key], after[key]
            if done.entries:
                self._announcer.correct(key[1], done.spent_nusd)
            left = {each.kind: each for each in check(key, audited, self._rates(audited))}
            for finding in findings:
                if finding.kind not in left:
                    made_again = f"made again from the streams, {len(done.entries)} lines added to the ledger"
                    self._audit.repaired_now(finding, done.postponed or made_again)
            if Kind.UNREPORTED in left and audited.request is not None and not left.keys() & AT_ONCE:
                made = self._repairs.testify(audited.request)
                self._audit.repaired_now(left.pop(Kind.UNREPORTED), _testified(made))
            for finding in left.values():
                self._audit.stands(finding)
            self._suspects.pop(key, None)
            if left and not done.again:
                self._given_up[key] = _Suspect(audited, self._clock.monotonic_s())
                if len(self._given_up) > _GIVEN_UP_KEPT:
                    self._given_up.popitem(last=False)

    def _end(self, key: Key, audited: Audited, findings: Sequence[Finding]) -> None:
        unfinished = next((each for each in findings if each.kind is Kind.UNFINISHED), None)
        if unfinished is None or audited.request is None:
            return
        known = self._repairs.end(audited.request)
        self._audit.repaired_now(
            unfinished, f"ended after {self._end_after_s:g} s of silence: {known} tokens are known to be delivered"
        )
        del self._given_up[key]

    async def _add_up(self) -> None:
        totals = await self._reading.run(partial(self._audits.add_up, self._summing, _SUMMED_A_PASS))
        if totals is None:
            return
        checked, self._summing = self._audit.checked, Summing()
        checked.generated_tokens = sum(each.lines.generated_tokens for each in totals.values())
        checked.delivered_tokens = sum(each.lines.delivered_tokens for each in totals.values())
        for tenant, sums in totals.items():
            await self._check_sums(tenant, sums)

    async def _check_sums(self, tenant: str, sums: Sums) -> None:
        findings = check_sums(tenant, sums.lines, sums.usage, sums.spent_nusd)
        if not findings:
            return
        spent_nusd = await self._writing.run(partial(self._bookkeeper.add_up_again, tenant))
        self._announcer.correct(tenant, spent_nusd)
        for finding in findings:
            self._audit.repaired_now(finding, "added up again from the ledger's lines")

    def _rates(self, audited: Audited) -> Rates | None:
        """By the price book that its router named; None where none did, or one that is not known here."""
        request = audited.request
        if request is None:
            return None
        rerating = self._prices.rerated_by(request.admitted_unix_ms)
        if rerating is not None and rerating.rerating not in self._settled:
            return None
        pricing = self._prices.pricing(self._prices.label_for(request.price_book, request.admitted_unix_ms))
        return None if pricing is None else pricing.rates(request.model, request.key[1], request.slo_class)


def _testified(made_tokens: int) -> str:
    return f"{made_tokens} tokens booked as made, on the deliverer's word"
