"""How requests, segments and marks look as rows. Pure."""

import json
from collections.abc import Mapping
from typing import Any, Final

from services.mesh.sequences import SeenSequences
from services.meter.core.amounts import Amounts, Place
from services.meter.core.costs import Rate
from services.meter.core.marks import Source
from services.meter.core.ranges import Ranges
from services.meter.core.requests import Admission, Finish, Key, Request, Segment
from services.meter.store import schema

Stored = Mapping[Any, Any]  # by column name
Parameters = dict[str, Any]

_SEGMENT_COLUMNS: Final = tuple(column.name for column in schema.segments.columns)
_NO_ADMISSION: Final = Admission(0, "", "", "")


def of_mark(source: Source, seen: SeenSequences, now_unix_ms: int) -> Parameters:
    publisher, epoch = source
    missing = Ranges((number, number + 1) for number in sorted(seen.missing))
    return {
        "publisher": publisher,
        "epoch": epoch,
        "high_water": seen.high_water,
        "missing": str(missing),
        "changed_unix_ms": now_unix_ms,
    }


def mark_of(row: Stored) -> tuple[Source, SeenSequences]:
    missing = {number for start, end in Ranges.parse(row["missing"]) for number in range(start, end)}
    return (row["publisher"], row["epoch"]), SeenSequences(row["high_water"], missing)


def of_request(request: Request) -> Parameters:
    request_id, tenant = request.key
    admission = request.admission or _NO_ADMISSION
    finish = request.finish
    return {
        "request_id": request_id,
        "tenant": tenant,
        "workload": request.workload,
        "model": request.model,
        "slo_class": request.slo_class,
        "admitted_unix_ms": admission.at_unix_ms,
        "admitted_by": admission.router,
        "admitted_price_book": admission.price_book,
        "admitted_plan": admission.plan,
        "outcome": finish.outcome if finish else "",
        "delivered": str(request.delivered),
        "delivered_end": finish.delivered_end if finish else 0,
        "finished_unix_ms": finish.at_unix_ms if finish else 0,
        "finished_by": finish.router if finish else "",
        "worker": finish.place.worker if finish else "",
        "pool": finish.place.pool if finish else "",
        "accelerator": finish.place.accelerator if finish else "",
        "prompt_tokens": finish.prompt_tokens if finish else 0,
        "cached_prompt_tokens": finish.cached_prompt_tokens if finish else 0,
        "ttft_s": finish.ttft_s if finish else 0.0,
        "tpot_s": finish.tpot_s if finish else 0.0,
        "e2e_s": finish.e2e_s if finish else 0.0,
        "slo_met": finish.slo_met if finish else False,
        "trace_id": finish.trace_id if finish else "",
        "finish_admitted_unix_ms": finish.admitted_unix_ms if finish else 0,
        "price_book": finish.price_book if finish else "",
        "plan": finish.plan if finish else "",
        "finished": finish is not None,
    }


def request_of(row: Stored) -> Request:
    """The request without its segments."""
    request = Request((row["request_id"], row["tenant"]), row["workload"], row["model"], row["slo_class"])
    if row["admitted_by"]:
        request.admission = Admission(
            row["admitted_unix_ms"], row["admitted_by"], row["admitted_price_book"], row["admitted_plan"]
        )
    if row["finished"]:
        request.finish = Finish(
            delivered_end=row["delivered_end"],
            at_unix_ms=row["finished_unix_ms"],
            router=row["finished_by"],
            outcome=row["outcome"],
            place=Place(row["worker"], row["pool"], row["accelerator"]),
            prompt_tokens=row["prompt_tokens"],
            cached_prompt_tokens=row["cached_prompt_tokens"],
            ttft_s=row["ttft_s"],
            tpot_s=row["tpot_s"],
            e2e_s=row["e2e_s"],
            slo_met=row["slo_met"],
            trace_id=row["trace_id"],
            admitted_unix_ms=row["finish_admitted_unix_ms"],
            price_book=row["price_book"],
            plan=row["plan"],
        )
        request.delivered = Ranges.parse(row["delivered"])
    request.reported = False
    return request


def of_segment(key: Key, segment: Segment) -> Parameters:
    earlier = json.dumps(segment.earlier) if segment.earlier else ""
    values = (
        *key,
        *segment.place,
        str(segment.generated),
        segment.prompt_tokens,
        segment.cached_prompt_tokens,
        *segment.rate,
        segment.minute,
        earlier,
        *segment.booked,
    )
    return dict(zip(_SEGMENT_COLUMNS, values, strict=True))


def segment_of(row: Stored) -> Segment:
    booked = amounts_of(row)
    return Segment(
        place=Place(row["worker"], row["pool"], row["accelerator"]),
        rate=Rate(row["rate_nusd_per_hour"], row["tariff_nusd_per_kwh"]),
        generated=Ranges.parse(row["generated"]),
        prompt_tokens=row["worker_prompt_tokens"],
        cached_prompt_tokens=row["worker_cached_prompt_tokens"],
        device_ns=booked.device_ns,
        energy_uj=booked.energy_uj,
        booked=booked,
        minute=row["minute"],
        earlier={int(minute): Amounts(*each) for minute, each in json.loads(row["earlier"] or "{}").items()},
    )


def amounts_of(row: Stored) -> Amounts:
    """Amounts from a row that has them, also as sums, which some databases give as decimals."""
    return Amounts(*(int(row[name] or 0) for name in Amounts._fields))
