"""How requests, segments and marks look as rows, in the order of the columns of `schema.py`. Pure."""

import json
from collections.abc import Mapping
from typing import Any, Final

from services.meter.core.amounts import NOWHERE, Amounts, Place
from services.meter.core.costs import Rate
from services.meter.core.marks import Mark, Source
from services.meter.core.ranges import Ranges
from services.meter.core.requests import Admission, Finish, Key, Request, Segment
from services.meter.store.bulk import Values

Stored = Mapping[Any, Any]  # by column name

_NO_ADMISSION: Final = Admission(0, "", "", "", "", "", "")
_NO_FINISH: Final = Finish(0, 0, "", "", NOWHERE, 0, 0, 0.0, 0.0, 0.0, False, "", 0, "", "")
_PLACE: Final = Finish._fields.index("place")


def of_mark(shard: int, source: Source, mark: Mark, now_unix_ms: int) -> Values:
    publisher, epoch = source
    missing = Ranges((number, number + 1) for number in sorted(mark.missing))
    return shard, publisher, epoch, mark.high_water, str(missing), now_unix_ms, mark.tokens


def mark_of(row: Stored) -> tuple[Source, Mark]:
    missing = {number for start, end in Ranges.parse(row["missing"]) for number in range(start, end)}
    return (row["publisher"], row["epoch"]), Mark(row["high_water"], missing, row["tokens"])


def of_request(request: Request) -> Values:
    finish = request.finish or _NO_FINISH
    return (
        *request.key,
        request.workload,
        request.model,
        request.slo_class,
        *(request.admission or _NO_ADMISSION),
        request.finish is not None,
        str(request.delivered),
        *finish[:_PLACE],
        *finish.place,
        *finish[_PLACE + 1 :],
    )


def request_of(row: Stored) -> Request:
    """The request without its segments."""
    request = Request((row["request_id"], row["tenant"]), row["workload"], row["model"], row["slo_class"])
    if row["admitted_by"]:
        request.admission = Admission(
            at_unix_ms=row["admitted_unix_ms"],
            router=row["admitted_by"],
            price_book=row["admitted_price_book"],
            plan=row["admitted_plan"],
            key=row["caller_key"],
            team=row["caller_team"],
            session_id=row["session_id"],
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


def of_segment(key: Key, segment: Segment) -> Values:
    earlier = json.dumps(segment.earlier) if segment.earlier else ""
    return (
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
        measured_energy_uj=booked.measured_energy_uj,
        booked=booked,
        minute=row["minute"],
        earlier={int(minute): Amounts(*each) for minute, each in json.loads(row["earlier"] or "{}").items()},
    )


def amounts_of(row: Stored) -> Amounts:
    """Amounts from a row that has them, also as sums, which some databases give as decimals."""
    return Amounts(*(int(row[name] or 0) for name in Amounts._fields))
