"""Who used what, at what price and cost, over any time: one answer for gRPC and HTTP.

In: a GetUsageRequest. Out: its answer, from the ledger's sums, the fleet's bill and what of it is not booked yet; or an
error that names the field, its value, and what would do.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from services.mesh.clock import Clock
from services.mesh.errors import InvalidRequest
from services.meter.answers import row_of
from services.meter.core.amounts import MS_PER_MINUTE, NOTHING, Amounts
from services.meter.core.beside import Beside, Caller, by_group
from services.meter.core.journal import Account, Value
from services.meter.core.paid import HARDWARE, PaidHour, paid_by_group
from services.meter.core.requests import Key
from services.meter.core.usage import CALLERS, DIMENSIONS, Group, Grouping, grouping
from services.meter.feed import Feed
from services.meter.settler import Settler
from services.meter.store.bill import BillReader
from services.meter.store.callers import CallerReader
from services.meter.store.questions import Questions
from services.meter.thread import WorkThreads
from tokenworks.v1 import metering_pb2

_MAX_ROWS: Final = 100_000
_Span = tuple[int | None, int | None]
_Looked = tuple[list[tuple[Group, Amounts]], list[tuple[Group, Account, Value]], dict[Key, Caller], list[PaidHour]]


class Inquiry:
    """Answers from the books, in the meter's reading threads."""

    def __init__(
        self,
        *,
        questions: Questions,
        callers: CallerReader,
        bills: BillReader,
        settler: Settler,
        feed: Feed,
        reading: WorkThreads,
        clock: Clock,
    ) -> None:
        self._questions = questions
        self._callers = callers
        self._bills = bills
        self._settler = settler
        self._feed = feed
        self._reading = reading
        self._clock = clock

    async def usage(self, request: metering_pb2.GetUsageRequest) -> metering_pb2.GetUsageResponse:
        """Times count in whole minutes: all that [from, to) touches; what is billed by the hour, in whole hours.

        Raises:
            InvalidRequest: a field that cannot be grouped by or filtered on, times that cannot be, too many rows.
        """
        wanted = grouping_of(request.group_by, request.filters, (*DIMENSIONS, *CALLERS))
        minutes = minutes_of(request.from_unix_ms, request.to_unix_ms)
        lag_events = self._feed.lag_events
        hours = None if minutes[0] is None else minutes[0] // 60, None if minutes[1] is None else -(-minutes[1] // 60)
        standing = self._settler.standing
        look = partial(self._look, wanted, minutes, hours, list(standing.hours))
        lines, booked, callers, worker_hours = await self._reading.run(look)
        found = by_group(wanted, lines, booked, standing.hours, hours, callers=callers)
        if len(found) > _MAX_ROWS:
            raise InvalidRequest(
                f"group_by = {list(request.group_by)} gives more than {_MAX_ROWS} rows; narrow the times, or filter"
            )
        now_unix_ms = self._clock.unix_ms()
        paid = paid_by_group(wanted, worker_hours, minutes, now_unix_ms)
        whole = paid_by_group(Grouping((), wanted.filters), worker_hours, minutes, now_unix_ms)
        total, beside = NOTHING, Beside()
        for each in found:
            total = total.plus(each.amounts)
            beside.add(each.beside)
        at_risk = standing.at_risk
        return metering_pb2.GetUsageResponse(
            rows=[
                row_of(
                    wanted, each.group, each.amounts, each.beside, paid_ns=paid.get(_hardware(wanted, each.group), 0)
                )
                for each in found
            ],
            total=row_of(Grouping(), (), total, beside, paid_ns=whole.get((), 0)),
            lag_events=lag_events,
            at_risk_nusd=at_risk.at_risk_nusd,
            expected_credit_nusd=at_risk.expected_nusd,
            running_requests=at_risk.requests,
            idle_rule=self._settler.terms.rule.idle,
        )

    def _look(self, wanted: Grouping, minutes: _Span, hours: _Span, unbooked: Sequence[int]) -> _Looked:
        """All that an answer needs of the books. Runs in a thread."""
        source = self._callers if wanted.by_caller else self._questions
        return (
            source.usage(wanted, *minutes, max_rows=_MAX_ROWS + 1),
            self._callers.postings(wanted, *hours),
            self._callers.callers_of(unbooked) if wanted.by_caller else {},
            self._bills.paid(wanted, *hours),
        )


def grouping_of(names: Sequence[str], filters: Iterable[metering_pb2.UsageFilter], fields: Sequence[str]) -> Grouping:
    """Raises InvalidRequest: see `core.usage.grouping`."""
    return grouping(tuple(names), [(each.field, tuple(each.values)) for each in filters], fields)


def minutes_of(from_unix_ms: int, to_unix_ms: int) -> tuple[int | None, int | None]:
    """The minutes that [from, to) touches, as [first, end); None where 0 says that there is no bound.

    Raises:
        InvalidRequest: a time before 1970, or the first after the last.
    """
    for field, unix_ms in (("from_unix_ms", from_unix_ms), ("to_unix_ms", to_unix_ms)):
        if unix_ms < 0:
            raise InvalidRequest(f"{field} = {unix_ms} is negative; give milliseconds since 1970, or 0 for no bound")
    if to_unix_ms and from_unix_ms > to_unix_ms:
        raise InvalidRequest(f"from_unix_ms = {from_unix_ms} is after to_unix_ms = {to_unix_ms}; exchange them")
    first = from_unix_ms // MS_PER_MINUTE if from_unix_ms else None
    end = -(-to_unix_ms // MS_PER_MINUTE) if to_unix_ms else None
    return first, end


def _hardware(wanted: Grouping, group: Group) -> Group:
    """What of a group is about hardware and time."""
    return tuple(value for name, value in zip(wanted.names, group, strict=True) if name in HARDWARE)
