"""Charges, usage, bookings and invoices as they go over the wire.

In: what the books gave. Out: messages of exports.proto.
"""

from collections.abc import Iterable, Sequence

from services.mesh.price_book import KINDS
from services.meter.core.amounts import MS_PER_MINUTE, Amounts
from services.meter.core.charges import MINUTES_PER_DAY, Charged, ChargeKey, month_name, rate_of
from services.meter.core.invoices import Invoice
from services.meter.core.lines import BookedLine
from services.meter.core.usage import UsageKey
from tokenworks.v1 import exports_pb2


def charge_of(key: ChargeKey, charged: Charged) -> exports_pb2.Charge:
    tokens = []
    if charged.rates is not None and charged.list_rates is not None:
        tokens = [
            exports_pb2.ChargedTokens(
                kind=kind,
                tokens=charged.tokens[place],
                rate_nusd_per_mtok=rate_of(charged.rates, kind),
                list_rate_nusd_per_mtok=rate_of(charged.list_rates, kind),
            )
            for place, kind in enumerate(KINDS)
            if charged.tokens[place]
        ]
    return exports_pb2.Charge(
        from_unix_ms=key.day_minute * MS_PER_MINUTE,
        to_unix_ms=(key.day_minute + MINUTES_PER_DAY) * MS_PER_MINUTE,
        tenant=key.tenant,
        workload=key.workload,
        model=key.model,
        slo_class=key.slo_class,
        accelerator=key.accelerator,
        price_book=key.price_book,
        billing_from_unix_ms=key.billing.from_minute * MS_PER_MINUTE,
        billing_to_unix_ms=key.billing.to_minute * MS_PER_MINUTE,
        invoice=key.billing.invoice,
        correction=key.billing.correction,
        tokens=tokens,
        price_nusd=charged.price_nusd,
        credit_nusd=charged.credit_nusd,
        adjustment_nusd=charged.adjustment_nusd,
        requests=charged.requests,
    )


def usage_of(records: Iterable[tuple[UsageKey, Amounts]]) -> exports_pb2.UsageBatch:
    return exports_pb2.UsageBatch(records=[_record(key, amounts) for key, amounts in records])


def bookings_of(lines: Sequence[BookedLine]) -> exports_pb2.BookingBatch:
    return exports_pb2.BookingBatch(
        bookings=[
            exports_pb2.Booking(
                line=each.line,
                booked_unix_ms=each.booked_unix_ms,
                request_id=each.request_id,
                record=_record(each.key, each.amounts),
            )
            for each in lines
        ]
    )


def invoice_message(invoice: Invoice, *, with_lines: bool = True) -> exports_pb2.Invoice:
    lines = invoice.lines if with_lines else ()
    return exports_pb2.Invoice(
        number=invoice.number,
        tenant=invoice.tenant,
        month=month_name(invoice.from_minute),
        from_unix_ms=invoice.from_minute * MS_PER_MINUTE,
        to_unix_ms=invoice.to_minute * MS_PER_MINUTE,
        issued_unix_ms=invoice.issued_unix_ms,
        issuer=invoice.issuer,
        issuer_address=invoice.issuer_address,
        lines=[exports_pb2.InvoiceLine(**each._asdict()) for each in lines],
        total_nusd=invoice.total_nusd,
        payable_cents=invoice.payable_cents,
        requests=invoice.requests,
    )


def _record(key: UsageKey, amounts: Amounts) -> exports_pb2.UsageRecord:
    return exports_pb2.UsageRecord(
        minute_unix_ms=key.minute * MS_PER_MINUTE,
        tenant=key.tenant,
        workload=key.workload,
        model=key.model,
        accelerator=key.accelerator,
        worker=key.worker,
        pool=key.pool,
        slo_class=key.slo_class,
        amounts=exports_pb2.BookedAmounts(**amounts._asdict()),
    )
