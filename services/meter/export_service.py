"""The meter's service of exports: charges, usage and bookings streamed from the books, and invoices.

In: requests of exports.proto, from who knows the mesh's secret. Out: batches of bounded size, read from the books one
after another, so an export of any length takes the memory of one batch, and a reader that is slow or gone holds up
nothing but its own stream.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import grpc

from services.mesh.clock import Clock
from services.mesh.errors import InvalidRequest, QueueFull
from services.mesh.rpc import require_mesh_secret
from services.mesh.settings import InvoiceSettings
from services.meter.bookkeeper import Bookkeeper
from services.meter.charging import Charging
from services.meter.core.amounts import MS_PER_MINUTE
from services.meter.core.charges import MINUTES_PER_DAY, parse_month
from services.meter.core.invoices import Invoice
from services.meter.core.usage import UsageKey
from services.meter.export_answers import bookings_of, charge_of, invoice_message, usage_of
from services.meter.store.books import Transaction
from services.meter.store.charges import ChargeReader
from services.meter.store.exports import ExportReader
from services.meter.store.invoices import InvoiceReader, issue
from services.meter.thread import WorkThreads
from tokenworks.v1 import exports_pb2, exports_pb2_grpc

SERVICE_NAME: Final = "tokenworks.v1.Exports"
_AT_ONCE: Final = 4  # streams
_BATCH: Final = 2_000  # records
_MOST_INVOICES: Final = 1_000
_MAX_TENANT: Final = 128
_MAX_TENANTS: Final = 1_000

Context = grpc.aio.ServicerContext[Any, Any]


class ExportService(exports_pb2_grpc.ExportsServicer):
    """Args:
    exporting: threads of its own, so that what answers questions does not wait for exports.
    """

    def __init__(
        self,
        *,
        charging: Charging,
        charges: ChargeReader,
        reader: ExportReader,
        invoices: InvoiceReader,
        terms: InvoiceSettings,
        bookkeeper: Bookkeeper,
        exporting: WorkThreads,
        writing: WorkThreads,
        clock: Clock,
        secrets: Sequence[str],
    ) -> None:
        self._charging = charging
        self._charges = charges
        self._reader = reader
        self._invoices = invoices
        self._terms = terms
        self._bookkeeper = bookkeeper
        self._exporting = exporting
        self._writing = writing
        self._clock = clock
        self._secrets = secrets
        self._streams = 0
        self._issuing = asyncio.Lock()

    async def StreamCharges(
        self, request: exports_pb2.StreamChargesRequest, context: Context
    ) -> AsyncIterator[exports_pb2.ChargeBatch]:
        """Day after day, in the order of what charges are told by; at least one batch, which may be empty."""
        require_mesh_secret(context, self._secrets)
        _check(request.from_unix_ms, request.to_unix_ms, request.tenants)
        tenants, issuer = tuple(request.tenants), self._terms.issuer
        with self._stream():
            await self._require_detail(request.from_unix_ms // MS_PER_MINUTE)
            yield exports_pb2.ChargeBatch(issuer=issuer)
            bounds = await self._exporting.run(self._charging.bounds)
            day, end_ms = -(-request.from_unix_ms // MS_PER_MINUTE), request.to_unix_ms
            while (found := await self._exporting.run(partial(self._charging.next_day, day, end_ms))) is not None:
                day = found + MINUTES_PER_DAY
                charges = await self._exporting.run(partial(self._charging.of_day, found, tenants, bounds))
                ordered = charges.ordered()
                for start in range(0, len(ordered), _BATCH):
                    some = ordered[start : start + _BATCH]
                    yield exports_pb2.ChargeBatch(charges=[charge_of(*each) for each in some], issuer=issuer)

    async def StreamUsage(
        self, request: exports_pb2.StreamRequest, context: Context
    ) -> AsyncIterator[exports_pb2.UsageBatch]:
        require_mesh_secret(context, self._secrets)
        first, end = self._minutes(request)
        tenants, after = tuple(request.tenants), None
        with self._stream():
            minute: int | None = first
            while minute is not None and minute < end:
                some = await self._exporting.run(
                    partial(self._reader.usage, after, minute, end, tenants, limit=_BATCH),
                )
                if some:
                    yield usage_of(some)
                if len(some) < _BATCH:
                    return
                last: UsageKey = some[-1][0]
                after, minute = last, last.minute

    async def StreamBookings(
        self, request: exports_pb2.StreamRequest, context: Context
    ) -> AsyncIterator[exports_pb2.BookingBatch]:
        """The lines that are dated in the time that is asked for, in the order in which they were booked."""
        require_mesh_secret(context, self._secrets)
        first, end = self._minutes(request)
        tenants = tuple(request.tenants)
        with self._stream():
            await self._require_detail(first)
            bounds = await self._exporting.run(self._charges.bounds)
            ranges = await self._exporting.run(partial(self._charges.line_ranges, first, end, bounds.line))
            for after, through in ranges:
                position = after
                while position < through:
                    some = await self._exporting.run(
                        partial(
                            self._reader.lines,
                            position,
                            through,
                            limit=_BATCH,
                            from_minute=first,
                            to_minute=end,
                            tenants=tenants,
                        )
                    )
                    if some:
                        yield bookings_of(some)
                    if len(some) < _BATCH:
                        break
                    position = some[-1].line

    async def GetInvoice(self, request: exports_pb2.GetInvoiceRequest, context: Context) -> exports_pb2.Invoice:
        require_mesh_secret(context, self._secrets)
        found = await self._issued(request)
        if found is None:
            await self._require_detail(parse_month(request.month)[0])
            draft = await self._exporting.run(partial(self._charging.draft, request.tenant, request.month))
            found = draft[0]
        return invoice_message(found)

    async def IssueInvoice(self, request: exports_pb2.GetInvoiceRequest, context: Context) -> exports_pb2.Invoice:
        """An invoice that was issued is answered as it is."""
        require_mesh_secret(context, self._secrets)
        async with self._issuing:
            found = await self._issued(request)
            if found is None:
                return invoice_message(await self._issue(request.tenant, request.month))
            return invoice_message(found)

    async def ListInvoices(
        self, request: exports_pb2.ListInvoicesRequest, context: Context
    ) -> exports_pb2.ListInvoicesResponse:
        """The latest thousand, the newest first."""
        require_mesh_secret(context, self._secrets)
        found = await self._exporting.run(partial(self._invoices.all, request.tenant, _MOST_INVOICES))
        return exports_pb2.ListInvoicesResponse(invoices=[invoice_message(each, with_lines=False) for each in found])

    async def _issued(self, request: exports_pb2.GetInvoiceRequest) -> Invoice | None:
        if not 1 <= len(request.tenant) <= _MAX_TENANT:
            raise InvalidRequest(f"tenant = {request.tenant!r} must have 1 to {_MAX_TENANT} characters")
        from_minute, _ = parse_month(request.month)
        return await self._exporting.run(partial(self._invoices.find, request.tenant, from_minute))

    async def _issue(self, tenant: str, month: str) -> Invoice:
        await self._require_detail(parse_month(month)[0])
        await self._exporting.run(partial(self._charging.check_issuable, tenant, month))
        draft, cuts = await self._exporting.run(partial(self._charging.draft, tenant, month))
        if not draft.lines:
            raise InvalidRequest(f"month = {month!r}: {tenant!r} is charged with nothing, so there is no invoice")
        now_ms, issued = self._clock.unix_ms(), []

        def store(transaction: Transaction) -> None:
            issued.append(issue(transaction, draft, cuts, self._terms.prefix, now_ms))

        await self._writing.run(partial(self._bookkeeper.within, store))
        return issued[-1]

    async def _require_detail(self, from_minute: int) -> None:
        await self._exporting.run(partial(self._charging.require_detail, from_minute))

    def _minutes(self, request: exports_pb2.StreamRequest) -> tuple[int, int]:
        _check(request.from_unix_ms, request.to_unix_ms, request.tenants)
        end_ms = request.to_unix_ms or self._clock.unix_ms() + MS_PER_MINUTE
        return request.from_unix_ms // MS_PER_MINUTE, -(-end_ms // MS_PER_MINUTE)

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if self._streams >= _AT_ONCE:
            raise QueueFull(f"{self._streams} exports are under way; try again when one has ended")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def _check(from_unix_ms: int, to_unix_ms: int, tenants: Sequence[str]) -> None:
    for field, unix_ms in (("from_unix_ms", from_unix_ms), ("to_unix_ms", to_unix_ms)):
        if unix_ms < 0:
            raise InvalidRequest(f"{field} = {unix_ms} is negative; give milliseconds since 1970, or 0 for no bound")
    if to_unix_ms and from_unix_ms > to_unix_ms:
        raise InvalidRequest(f"from_unix_ms = {from_unix_ms} is after to_unix_ms = {to_unix_ms}; exchange them")
    if len(tenants) > _MAX_TENANTS:
        raise InvalidRequest(f"{len(tenants)} tenants are named, at most {_MAX_TENANTS} at once; name none for all")
