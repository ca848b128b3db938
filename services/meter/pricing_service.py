"""The meter's second gRPC service: price books, re-ratings, the fleet's bill.

In: requests of pricing.proto, from who knows the mesh's secret. Out: answers from the books, or an error that names the
field, its value, and what would do.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import grpc

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import InvalidRequest
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import OpenedBook
from services.mesh.rpc import require_mesh_secret
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.fleet_rates import Paid
from services.meter.core.journal import HOUSE, Account, Posting
from services.meter.core.presence import MS_PER_HOUR, WorkerHour
from services.meter.reratings import Reratings
from services.meter.settler import BILL, Settler
from services.meter.store.bill import BillReader
from services.meter.thread import WorkThreads
from tokenworks.v1 import pricing_pb2, pricing_pb2_grpc

SERVICE_NAME: Final = "tokenworks.v1.Pricing"
_MOST_HOURS: Final = 24 * 31
_FIELDS: Final = {
    Account.USE: "use_nusd",
    Account.ENERGY: "energy_nusd",
    Account.POOL_IDLE: "idle_nusd",
}
_SUMMED: Final = (
    "paid_ns",
    "warm_up_ns",
    "energy_uj",
    "bill_nusd",
    "use_nusd",
    "energy_nusd",
    "idle_nusd",
    "carbon_ug",
)

Context = grpc.aio.ServicerContext[Any, Any]


class PricingService(pricing_pb2_grpc.PricingServicer):
    def __init__(
        self,
        *,
        bookkeeper: Bookkeeper,
        reratings: Reratings,
        settler: Settler,
        bills: BillReader,
        reading: WorkThreads,
        writing: WorkThreads,
        bus: Bus,
        clock: Clock,
        secrets: Sequence[str],
    ) -> None:
        self._bookkeeper = bookkeeper
        self._reratings = reratings
        self._settler = settler
        self._bills = bills
        self._reading = reading
        self._writing = writing
        self._bus = bus
        self._clock = clock
        self._secrets = secrets

    async def ListPrices(
        self, request: pricing_pb2.ListPricesRequest, context: Context
    ) -> pricing_pb2.ListPricesResponse:
        require_mesh_secret(context, self._secrets)
        prices = self._bookkeeper.prices
        unfinished = {each.rerating for each in await self._writing.run(self._bookkeeper.unfinished_reratings)}
        return pricing_pb2.ListPricesResponse(
            books=[self._opened(each) for each in prices.opened],
            reratings=[
                pricing_pb2.PastRerating(
                    rerating=each.rerating,
                    from_unix_ms=each.from_unix_ms,
                    to_unix_ms=each.to_unix_ms,
                    recorded_unix_ms=each.recorded_unix_ms,
                    finished=each.rerating not in unfinished,
                )
                for each in prices.reratings
            ],
        )

    async def OpenPrices(self, request: pricing_pb2.OpenPricesRequest, context: Context) -> pricing_pb2.OpenedPrices:
        """Stored and told at once. In the past it changes no bill until `Rerate`, except of what comes late unnamed."""
        require_mesh_secret(context, self._secrets)
        try:
            book = PriceBook.model_validate_json(request.body_json)
        except ValueError as error:
            raise InvalidRequest(f"body_json is no price book: {error}") from error
        if request.effective_unix_ms < 0:
            raise InvalidRequest(f"effective_unix_ms = {request.effective_unix_ms} is before 1970; 0 means now")
        now_ms = self._clock.unix_ms()
        opened = OpenedBook(book, request.effective_unix_ms or now_ms, now_ms)
        await self._writing.run(partial(self._bookkeeper.open_prices, opened))
        known = next(each for each in self._bookkeeper.prices.opened if each.book.label == book.label)
        self._bus.publish(known.event)
        return self._opened(known)

    async def Rerate(self, request: pricing_pb2.RerateRequest, context: Context) -> pricing_pb2.Rerated:
        require_mesh_secret(context, self._secrets)
        if request.from_unix_ms < 0 or (request.to_unix_ms and request.to_unix_ms <= request.from_unix_ms):
            raise InvalidRequest(
                f"from_unix_ms = {request.from_unix_ms}, to_unix_ms = {request.to_unix_ms}: nothing lies between; 0"
                " means the beginning and no end"
            )
        done = await self._reratings.rerate(request.from_unix_ms, request.to_unix_ms, dry_run=request.dry_run)
        return pricing_pb2.Rerated(
            rerating=done.rerating,
            tenants=[
                pricing_pb2.RepricedTenant(
                    tenant=tenant,
                    requests=each.requests,
                    before_nusd=each.before_nusd,
                    after_nusd=each.after_nusd,
                )
                for tenant, each in sorted(done.tenants.items())
            ],
            looked_at=done.looked_at,
            entries=done.entries,
        )

    async def GetFleetBill(self, request: pricing_pb2.GetFleetBillRequest, context: Context) -> pricing_pb2.FleetBill:
        """Booked hours as they are booked; the latest others as they stand."""
        require_mesh_secret(context, self._secrets)
        hours = await self._reading.run(self._bills.hours)
        first = request.from_unix_ms // MS_PER_HOUR
        end = -(-request.to_unix_ms // MS_PER_HOUR) if request.to_unix_ms else max(hours, default=0) + 1
        wanted = sorted(hour for hour in hours if first <= hour < end)
        if len(wanted) > _MOST_HOURS:
            raise InvalidRequest(f"{len(wanted)} hours are asked for, at most {_MOST_HOURS} at once; narrow the times")
        bill = pricing_pb2.FleetBill(idle_rule=self._settler.terms.rule.idle)
        total_house: dict[str, int] = defaultdict(int)
        for hour in wanted:
            paid, booked = await self._reading.run(partial(self._hour, hour))
            standing = self._settler.standing.hours.get(hour, ())
            rows = _rows(hour, paid, (*booked, *standing))
            for row in rows:
                row.settled = not standing and bool(hours[hour].settled_unix_ms)
                _add(bill.total, row)
                for reason, nusd in row.house_nusd.items():
                    total_house[reason] += nusd
            bill.workers.extend(rows)
        bill.total.house_nusd.update(total_house)
        return bill

    def _hour(self, hour: int) -> tuple[list[WorkerHour], list[Posting]]:
        booked = self._bills.posted(BILL, hour, hour + 1)
        accrued = self._bills.accrued_by_worker(hour)
        return self._bills.worker_hours(hour), [*(Posting(*key, value) for key, value in booked.items()), *accrued]

    def _opened(self, opened: OpenedBook) -> pricing_pb2.OpenedPrices:
        in_force = self._bookkeeper.prices.at(self._clock.unix_ms()).label
        return pricing_pb2.OpenedPrices(
            label=opened.book.label,
            body_json=opened.book.model_dump_json(),
            effective_unix_ms=opened.effective_unix_ms,
            recorded_unix_ms=opened.recorded_unix_ms,
            in_force=opened.book.label == in_force,
        )


def _rows(hour: int, paid: Iterable[WorkerHour], postings: Iterable[Posting]) -> list[pricing_pb2.WorkerBill]:
    rows: dict[Paid, pricing_pb2.WorkerBill] = {}

    def row_of(who: Paid) -> pricing_pb2.WorkerBill:
        if who not in rows:
            rows[who] = pricing_pb2.WorkerBill(hour_unix_ms=hour * MS_PER_HOUR, **who._asdict())
        return rows[who]

    for each in paid:
        row = row_of(Paid(each.start.worker, each.pool, each.accelerator))
        row.paid_ns += each.paid_ns
        row.warm_up_ns += each.warm_up_ns
        row.energy_uj += each.energy_uj
    for posting in postings:
        subject, nusd = posting.subject, posting.value.amount_nusd
        if posting.account is Account.POOL_IDLE and not subject.worker:
            continue
        row = row_of(Paid(subject.worker, subject.pool, subject.accelerator))
        row.carbon_ug = max(0, row.carbon_ug + posting.value.carbon_ug)
        if posting.account in (Account.FLEET, Account.FLEET_ENERGY):
            row.bill_nusd -= nusd
        elif posting.account in HOUSE:
            row.house_nusd[posting.account.removeprefix("house.")] += nusd
        elif (field := _FIELDS.get(posting.account)) is not None:
            setattr(row, field, getattr(row, field) + nusd)
    return [rows[who] for who in sorted(rows)]


def _add(total: pricing_pb2.WorkerBill, row: pricing_pb2.WorkerBill) -> None:
    for field in _SUMMED:
        setattr(total, field, getattr(total, field) + getattr(row, field))
