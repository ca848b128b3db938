"""Usage rows and request bills as they go over the wire.

In: amounts of the ledger's lines, and what stands beside them. Out: messages of metering.proto.
"""

from collections.abc import Sequence
from typing import Any, Final

from services.meter.core.amounts import MS_PER_MINUTE, Amounts
from services.meter.core.beside import Beside
from services.meter.core.journal import Posting
from services.meter.core.presence import MS_PER_HOUR
from services.meter.core.requests import Request
from services.meter.core.usage import MINUTES_BY_UNIT, Group, Grouping
from tokenworks.v1 import metering_pb2

_NUSD_PER_MTOK_USD: Final = 1000  # nano-dollars a token, of a dollar per million


def row_of(
    wanted: Grouping, group: Group, amounts: Amounts, beside: Beside | None = None, *, paid_ns: int = 0
) -> metering_pb2.UsageRow:
    """One row of usage; without `beside`, what the ledger's lines say alone.

    Args:
        paid_ns: that the workers of the group's hardware and time were paid for; 0: not known.
    """
    key: dict[str, Any] = {
        "from_unix_ms" if name in MINUTES_BY_UNIT else name: value if isinstance(value, str) else value * MS_PER_MINUTE
        for name, value in zip(wanted.names, group, strict=True)
    }
    row = metering_pb2.UsageRow(key=metering_pb2.UsageKey(**key), **amounts._asdict())
    if beside is not None:
        row.use_cost_nusd += beside.use_nusd
        row.energy_cost_nusd += beside.energy_nusd
        row.idle_cost_nusd, row.house_cost_nusd = beside.idle_nusd, beside.house_nusd
        row.credit_nusd, row.adjustment_nusd = beside.credit_nusd, beside.adjustment_nusd
        row.carbon_ug = max(0, beside.carbon_ug)
        row.margin_nusd = beside.margin_nusd(amounts)
        _add_efficiency(row, paid_ns)
    return row


def _add_efficiency(row: metering_pb2.UsageRow, paid_ns: int) -> None:
    """What follows from the sums, where there is anything to divide by."""
    if row.delivered_tokens:
        cost_nusd = row.use_cost_nusd + row.energy_cost_nusd + row.idle_cost_nusd + row.house_cost_nusd
        row.price_usd_per_mtok = (row.price_nusd + row.adjustment_nusd) / row.delivered_tokens / _NUSD_PER_MTOK_USD
        row.cost_usd_per_mtok = cost_nusd / row.delivered_tokens / _NUSD_PER_MTOK_USD
    if row.energy_uj:
        row.tokens_per_joule = row.delivered_tokens / row.energy_uj * 1e6
    if row.finished_requests:
        row.slo_attainment = row.slo_met_requests / row.finished_requests
    if paid_ns > 0:
        row.paid_ns = paid_ns
        row.utilisation = row.device_ns / paid_ns


def bill_of(
    request: Request, price_book: str, postings: Sequence[tuple[int, Posting]], *, settled: bool
) -> metering_pb2.RequestBill:
    """A request's bill.

    Args:
        price_book: that prices it now.
        postings: of the fleet's bill and of promises not kept, by hour since 1970.
        settled: nothing of them is still open.
    """
    request_id, tenant = request.key
    amounts, finish, admission = request.booked, request.finish, request.admission
    segments = sorted(request.segments.values(), key=lambda each: (each.generated.first, each.place))
    bill = metering_pb2.RequestBill(
        request_id=request_id,
        tenant=tenant,
        workload=request.workload,
        model=request.model,
        slo_class=request.slo_class,
        outcome=finish.outcome if finish else "running",
        prompt_tokens=amounts.prompt_tokens,
        cached_prompt_tokens=amounts.cached_prompt_tokens,
        generated_tokens=amounts.generated_tokens,
        delivered_tokens=amounts.delivered_tokens,
        price_nusd=amounts.price_nusd,
        use_cost_nusd=amounts.use_cost_nusd,
        energy_cost_nusd=amounts.energy_cost_nusd,
        margin_nusd=amounts.price_nusd - amounts.use_cost_nusd - amounts.energy_cost_nusd,
        segments=[
            metering_pb2.BillSegment(
                worker=each.place.worker,
                accelerator=each.place.accelerator,
                pool=each.place.pool,
                from_index=each.generated.first,
                count=each.generated.count,
                device_ns=each.booked.device_ns,
                energy_uj=each.booked.energy_uj,
                use_cost_nusd=each.booked.use_cost_nusd,
                energy_cost_nusd=each.booked.energy_cost_nusd,
                measured_energy_uj=each.booked.measured_energy_uj,
            )
            for each in segments
        ],
        price_book=price_book,
        admitted_price_book=request.price_book,
        settled=settled,
    )
    if admission is not None:
        bill.admitted_unix_ms = admission.at_unix_ms
    if finish is not None:
        bill.slo_met, bill.trace_id = finish.slo_met, finish.trace_id
        bill.ttft_s, bill.tpot_s = finish.ttft_s, finish.tpot_s
        bill.admitted_unix_ms = bill.admitted_unix_ms or finish.admitted_unix_ms
        bill.finished_unix_ms = finish.at_unix_ms
    _add_postings(bill, amounts, postings)
    return bill


def _add_postings(bill: metering_pb2.RequestBill, amounts: Amounts, postings: Sequence[tuple[int, Posting]]) -> None:
    """What the fleet's bill and broken promises add to a request's bill."""
    beside = Beside()
    for hour, posting in postings:
        beside.take(posting.account, posting.value)
        bill.postings.append(
            metering_pb2.BillPosting(
                account=posting.account,
                worker=posting.subject.worker,
                hour_unix_ms=hour * MS_PER_HOUR,
                amount_nusd=posting.value.amount_nusd,
                carbon_ug=max(0, posting.value.carbon_ug),
            )
        )
    bill.use_cost_nusd += beside.use_nusd
    bill.energy_cost_nusd += beside.energy_nusd
    bill.idle_cost_nusd, bill.house_cost_nusd = beside.idle_nusd, beside.house_nusd
    bill.carbon_ug, bill.credit_nusd = max(0, beside.carbon_ug), beside.credit_nusd
    bill.margin_nusd = beside.margin_nusd(amounts)
