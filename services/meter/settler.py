"""The settler: makes the fleet's bill, hour by hour, and books what is beside the ledger. Batch work, never per event.

Every pass, some seconds after the last:
1. What workers were paid for since, by their heartbeats, is stored; the ledger's new lines are sorted into hours.
2. Credits of hours with new lines are booked at once; tiers and commitments now and then.
3. Hours that ended `cost.settle_after_s` ago are billed and booked; again where a line came late. What is booked stays:
   the difference becomes a new transaction (`core/journal.py`).
4. Hours that are not booked yet are worked out as they stand, for whoever asks, and kept in memory only.
5. One hour that is booked is held against the ledger: its bill is the sum of its parts, to the nano-dollar.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.errors import InvariantBroken
from services.mesh.events import WorkerHeartbeat, WorkerState
from services.mesh.price_calendar import PriceCalendar
from services.mesh.subjects import FLEET
from services.meter.audit import Audit
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.amounts import MS_PER_MINUTE
from services.meter.core.conservation import check_bill
from services.meter.core.credits import AtRisk, CreditTerms, at_risk, credits_of
from services.meter.core.fleet_bill import Rule, settle_hour
from services.meter.core.fleet_rates import FleetRates
from services.meter.core.journal import Account, Booked, Posting, difference
from services.meter.core.presence import MS_PER_HOUR, Presence, Start, WorkerHour
from services.meter.core.requests import Key
from services.meter.core.volumes import Volume, adjustments, period_of
from services.meter.passes import pass_on
from services.meter.store.bill import BillHour, BillReader, BillWriter
from services.meter.store.books import Transaction
from services.meter.thread import WorkThreads

BILL: Final = "bill"
CREDIT: Final = "credit"
_LINES_A_PASS: Final = 200_000
_HOURS_A_PASS: Final = 24
_ROWS_A_TURN: Final = 2000  # of the thread that writes: bookings wait meanwhile
_STANDING_HOURS: Final = 3
_REST: Final = 20.0  # times as long as it took to work hours out as they stand, until it is done again
_VOLUMES_EVERY_S: Final = 30.0
_NO_RISK: Final = AtRisk(0, 0, 0.0)
_PERIODS: Final = ("day", "month")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the settler goes by: the site's rates, the rule of idle, what a miss gives back, when an hour is booked."""

    rates: FleetRates
    rule: Rule
    credits: Mapping[str, CreditTerms]
    settle_after_s: float


@dataclass(slots=True)
class Standing:
    """What is not booked yet, by hour: the difference to what is; and what requests under way put at risk.

    Attributes:
        missed: by SLO class, how many ended lately, and how many of these without their promise kept.
    """

    hours: dict[int, list[Posting]] = field(default_factory=dict)
    missed: dict[str, tuple[int, int]] = field(default_factory=dict)
    at_risk: AtRisk = _NO_RISK


class Settler:
    """Settles until cancelled. Lives in the event loop; works in the meter's threads."""

    def __init__(
        self,
        *,
        terms: Terms,
        every_s: float,
        reader: BillReader,
        writer: BillWriter,
        bookkeeper: Bookkeeper,
        prices: PriceCalendar,
        reading: WorkThreads,
        writing: WorkThreads,
        audit: Audit,
        bus: Bus,
        clock: Clock,
    ) -> None:
        self.terms = terms
        self.standing = Standing()
        self._every_s = every_s
        self._reader = reader
        self._writer = writer
        self._bookkeeper = bookkeeper
        self._prices = prices
        self._reading = reading
        self._writing = writing
        self._audit = audit
        self._bus = bus
        self._clock = clock
        self._presence = Presence()
        self._hours: dict[int, BillHour] = {}
        self._line = 0
        self._transactions = 0
        self._stand_again_s = float("-inf")
        self._volumes_again_s = float("-inf")
        self._checked_hour = -1
        self._broken: set[int] = set()  # hours whose postings somebody changed: they are left as they are

    async def run(self) -> None:
        """Passes until cancelled; one that fails is logged, and the next does what it did not."""
        self._presence.restore(await self._reading.run(self._reader.worker_hours))
        self._hours = await self._reading.run(self._reader.hours)
        self._line = max((each.last_line for each in self._hours.values()), default=0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._bus.watch([FLEET], self._hear))
            tasks.create_task(pass_on(self.settle, self._every_s, "the bill"))

    async def settle(self) -> None:
        """One pass."""
        touched = await self._take_in()
        for hour in sorted(touched):
            await self._book_credits(self._hours[hour])
        await self._book_volumes()
        now_ms = self._clock.unix_ms()
        due = [each for each in self._hours.values() if self._due(each, now_ms) and each.hour not in self._broken]
        for each in sorted(due, key=lambda each: each.hour)[:_HOURS_A_PASS]:
            await self._book_hour(each)
        await self._check()
        if self._clock.monotonic_s() >= self._stand_again_s:
            await self.stand()

    async def stand(self) -> None:
        """Works out the latest hours that are not booked, as they stand."""
        started_s = self._clock.monotonic_s()
        unbooked = [each for each in self._hours.values() if not _booked(each) and each.hour not in self._broken]
        unbooked.sort(key=lambda each: each.hour)
        standing = Standing()
        for each in unbooked[-_STANDING_HOURS:]:
            transactions = await self._worked_out(each)
            standing.hours[each.hour] = [posting for some in transactions.values() for posting in some]
        for each in sorted(self._hours.values(), key=lambda each: -each.hour)[:_STANDING_HOURS]:
            _, ended = await self._reading.run(partial(self._reader.missed, each))
            for slo_class, (count, without) in ended.items():
                before = standing.missed.get(slo_class, (0, 0))
                standing.missed[slo_class] = before[0] + count, before[1] + without
        running = await self._writing.run(self._bookkeeper.under_way)
        standing.at_risk = at_risk(running, self.terms.credits, standing.missed)
        self.standing = standing
        self._stand_again_s = started_s + _REST * (self._clock.monotonic_s() - started_s)

    def standing_of(self, key: Key) -> list[tuple[int, Posting]]:
        """What is not booked yet about a request, by hour since 1970."""
        return [
            (hour, posting)
            for hour, postings in self.standing.hours.items()
            for posting in postings
            if (posting.subject.request_id, posting.subject.tenant) == key
        ]

    async def _hear(self, delivered: Delivered) -> None:
        event = delivered.event
        if isinstance(event, WorkerHeartbeat):
            self._presence.beat(
                Start(event.worker, event.epoch),
                event.pool,
                event.accelerator,
                warming_up=event.state == WorkerState.STARTING,
                at_unix_ms=event.at_unix_ms,
                energy_uj=event.energy_uj,
            )

    async def _take_in(self) -> set[int]:
        """Stores what workers were paid for, and sorts new lines into hours; the hours of these."""
        paid = self._presence.take_changed()
        through, found = await self._reading.run(partial(self._reader.lines, self._line, _LINES_A_PASS))
        hours: dict[int, BillHour] = {}
        for hour, (first, last) in found.items():
            known = self._hours.get(hour, BillHour(hour))
            hours[hour] = replace(known, first_line=known.first_line or first, last_line=last)
        for each in paid:  # it was there in an hour that is booked: the bill is made again
            known = hours.get(each.hour) or self._hours.get(each.hour, BillHour(each.hour))
            hours[each.hour] = replace(known, settled_unix_ms=0)
        if self.terms.rates.reservations and (self._hours or hours):
            first_hour = min(self._hours.keys() | hours.keys())
            for hour in range(first_hour, self._clock.unix_ms() // MS_PER_HOUR + 1):
                if hour not in self._hours:
                    hours.setdefault(hour, BillHour(hour))
        if not paid and not hours:
            return set()

        # First that these hours are to be booked again: what is stored of them later is not overlooked then.
        await self._write(lambda transaction: self._writer.put_hours(transaction, hours.values()))
        for some in _batched(paid, _ROWS_A_TURN):
            await self._write(partial(self._put_worker_hours, some))
        self._hours.update(hours)
        self._line = through
        return set(found)

    def _due(self, hour: BillHour, now_unix_ms: int) -> bool:
        ended_unix_ms = (hour.hour + 1) * MS_PER_HOUR
        return not _booked(hour) and ended_unix_ms + self.terms.settle_after_s * 1000 <= now_unix_ms

    async def _book_hour(self, hour: BillHour) -> None:
        transactions = await self._worked_out(hour)
        if hour.hour in self._broken:
            return
        now_ms = self._clock.unix_ms()
        booked = replace(hour, settled_line=hour.last_line, settled_unix_ms=now_ms)

        # Each of these balances by itself. What a crash leaves out is the difference that the next pass books.
        for some in turns(transactions, _ROWS_A_TURN):
            await self._write(partial(self._post, hour.hour, some, now_ms))
        await self._write(lambda transaction: self._writer.put_hours(transaction, [booked]))
        self._hours[hour.hour] = booked
        self.standing.hours.pop(hour.hour, None)

    async def _worked_out(self, hour: BillHour) -> dict[str, list[Posting]]:
        """The transactions that an hour's bill lacks; none for one whose postings do not balance: it is told of."""
        try:
            return await self._reading.run(partial(self._bill, hour))
        except InvariantBroken as broken:
            self._broken.add(hour.hour)
            unbalanced = await self._reading.run(partial(self._reader.unbalanced, hour.hour, hour.hour + 1))
            for finding in check_bill(hour.hour, 0, 0, unbalanced or [(f"{BILL}:{hour.hour}: {broken}", 1)]):
                self._audit.stands(finding)
            return {}

    def _bill(self, hour: BillHour) -> dict[str, list[Posting]]:
        """The transactions that make an hour's bill of what is booked of it, by id. Runs in a thread."""
        paid, work = self._reader.worker_hours(hour.hour), self._reader.work(hour)
        target = settle_hour(hour.hour, paid, work, self.terms.rates, self.terms.rule)
        booked: dict[str, Booked] = {}
        for (account, subject), value in self._reader.posted(BILL, hour.hour, hour.hour + 1).items():
            booked.setdefault(subject.pool, {})[account, subject] = value
        transactions = {}
        for pool in sorted(target.keys() | booked.keys()):
            if postings := difference(target.get(pool, {}), booked.get(pool, {})):
                transactions[self._id(BILL, hour.hour, pool)] = postings
        return transactions

    async def _book_credits(self, hour: BillHour) -> None:
        if any(any(each) for each in self.terms.credits.values()):
            await self._post_difference(CREDIT, hour.hour, (hour.hour, hour.hour + 1), partial(self._credits, hour))

    def _credits(self, hour: BillHour) -> Booked:
        missed, _ = self._reader.missed(hour)
        return credits_of(missed, self.terms.credits)

    async def _book_volumes(self) -> None:
        now_s = self._clock.monotonic_s()
        books = self._prices.opened
        if now_s < self._volumes_again_s or not any(each.by_volume for one in books for each in one.book.prices):
            return
        self._volumes_again_s = now_s + _VOLUMES_EVERY_S
        now_minute = self._clock.unix_ms() // MS_PER_MINUTE
        for period in _PERIODS:
            first, end = period_of(now_minute, period)
            for start, stop in (period_of(first - 1, period), (first, end)):
                if stop * MS_PER_MINUTE <= min(each.recorded_unix_ms for each in books):
                    continue
                ended = now_minute >= stop + self.terms.settle_after_s / 60
                hour = min(now_minute, stop - 1) // 60
                volumes = partial(self._adjustments, period, start, stop, ended=ended)
                await self._post_difference(f"volume-{period}", hour, (start // 60, stop // 60), volumes)

    def _adjustments(self, period: str, start: int, stop: int, *, ended: bool) -> Booked:
        """What tiers and commitments come to in the period between two minutes. Runs in a thread."""
        effective = [-(-each.effective_unix_ms // MS_PER_MINUTE) for each in self._prices.opened]
        cuts = sorted({start, stop, *(minute for minute in effective if start < minute < stop)})
        volumes: list[Volume] = []
        for first, end in pairwise(cuts):
            book = self._prices.at(first * MS_PER_MINUTE).book
            for tenant, model, slo_class, tokens in self._reader.volumes(first, end):
                price = book.find(model, tenant, slo_class)
                volumes.append(Volume(tenant, model, slo_class, price, tokens))
            for price in book.prices:
                if price.committed and end == stop:  # due from whoever used nothing, too
                    plans = {plan.name: plan.tenants for plan in book.plans}
                    whom = plans.get(price.plan, (price.tenant,))
                    volumes += [Volume(each, price.model, price.slo_class, price, (0, 0, 0)) for each in whom]
        mine = (each for each in volumes if each.price.by_volume and each.price.period == period)
        return adjustments(mine, ended=ended)

    async def _post_difference(self, kind: str, hour: int, span: tuple[int, int], target: Callable[[], Booked]) -> None:
        """Books what makes `target` of what is booked of a kind in the hours of `span`, dated in `hour`."""

        def work_out() -> list[Posting]:
            return difference(target(), self._reader.posted(kind, *span))

        postings = await self._reading.run(work_out)
        if not postings:
            return
        now_ms, transaction_id = self._clock.unix_ms(), self._id(kind, hour, "")

        def store(transaction: Transaction) -> None:
            self._writer.post(transaction, kind, hour, {transaction_id: postings}, now_unix_ms=now_ms)

        await self._write(store)

    async def _check(self) -> None:
        """Holds the next hour that is booked against the books."""
        booked = sorted(each.hour for each in self._hours.values() if _booked(each))
        if not booked:
            return
        hour = next((each for each in booked if each > self._checked_hour), booked[0])
        self._checked_hour = hour

        def look() -> tuple[int, Booked, list[tuple[str, int]]]:
            reader = self._reader
            return reader.accrued(hour), reader.posted(BILL, hour, hour + 1), reader.unbalanced(hour, hour + 1)

        accrued_nusd, posted, unbalanced = await self._reading.run(look)
        taken = sum(value.amount_nusd for (account, _), value in posted.items() if account is Account.ACCRUED)
        newest = await self._reading.run(partial(self._reader.lines, self._line, 1))
        if newest[0] > self._line:
            return  # usage may be ahead of the lines that were sorted
        findings = check_bill(hour, accrued_nusd, taken, unbalanced)
        for finding in findings:
            self._audit.stands(finding)
        if unbalanced:
            self._broken.add(hour)
        elif findings:
            await self._book_hour(self._hours[hour])
            self._audit.repaired_now(findings[0], "the hour is settled again")

    def _put_worker_hours(self, hours: Sequence[WorkerHour], transaction: Transaction) -> None:
        self._writer.put_worker_hours(transaction, hours)

    def _post(
        self, hour: int, transactions: Mapping[str, Sequence[Posting]], now_unix_ms: int, transaction: Transaction
    ) -> None:
        self._writer.post(transaction, BILL, hour, transactions, now_unix_ms=now_unix_ms)

    async def _write(self, store: Callable[[Transaction], None]) -> None:
        await self._writing.run(partial(self._bookkeeper.within, store))

    def _id(self, kind: str, hour: int, pool: str) -> str:
        self._transactions += 1
        return f"{kind}:{hour}:{pool}:{self._clock.unix_ms()}:{self._transactions}"


def _batched(rows: Sequence[WorkerHour], most: int) -> Iterator[Sequence[WorkerHour]]:
    """In parts of at most `most`."""
    return (rows[start : start + most] for start in range(0, len(rows), most))


def turns(transactions: Mapping[str, Sequence[Posting]], most: int) -> Iterator[Mapping[str, Sequence[Posting]]]:
    """The transactions in parts of about `most` postings; none is divided."""
    part: dict[str, Sequence[Posting]] = {}
    rows = 0
    for transaction_id, postings in transactions.items():
        if part and rows + len(postings) > most:
            yield part
            part, rows = {}, 0
        part[transaction_id] = postings
        rows += len(postings)
    if part:
        yield part


def _booked(hour: BillHour) -> bool:
    return bool(hour.settled_unix_ms) and hour.last_line <= hour.settled_line
