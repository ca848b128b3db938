"""What the books say of what comes: forecasts, anomalies, and what promises cost; for gRPC, HTTP, and the bus.

In: questions of insight.proto. Out: their answers, worked out from usage by the hour in the meter's reading threads;
and a `SpendAnomalyFound` for each hour under way that goes out of the ordinary, once.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.credit import month_of
from services.mesh.errors import InvalidRequest, OutboxFull
from services.mesh.events import SpendAnomalyFound
from services.mesh.money import format_usd, usd_to_nusd
from services.mesh.settings import MeterSettings
from services.meter.core.amounts import NOTHING, Amounts
from services.meter.core.anomalies import DAY, LEAST_HOURS, SCORE, Anomaly, Rules, anomalies
from services.meter.core.credits import CreditTerms
from services.meter.core.journal import Account
from services.meter.core.presence import MS_PER_HOUR
from services.meter.core.promised import outcome
from services.meter.core.usage import CALLERS, DIMENSIONS, Grouping
from services.meter.inquiry import grouping_of
from services.meter.outlooks import MOST_DAYS, Outlooks
from services.meter.passes import pass_on
from services.meter.store.callers import CallerReader
from services.meter.store.questions import Questions
from services.meter.thread import WorkThreads
from tokenworks.v1 import events_pb2, insight_pb2

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 60.0
_HISTORY_HOURS: Final = 28 * DAY
_SHOWN_HOURS: Final = 7 * DAY
_MOST_SHOWN_HOURS: Final = 92 * DAY
_MOST_ROWS: Final = 1_000_000
_MOST_SAID: Final = 10_000
_MOST_FOUND: Final = 1_000

Whose = tuple[str, str]  # tenant, workload; empty for the tenant as a whole


class _Watched(NamedTuple):
    found: list[SpendAnomalyFound]
    judged: int
    learning: int


class Insight:
    """Answers, and watches spending until cancelled. Lives in the event loop."""

    def __init__(
        self,
        meter: MeterSettings,
        *,
        questions: Questions,
        callers: CallerReader,
        outlooks: Outlooks,
        terms: Mapping[str, CreditTerms],
        reading: WorkThreads,
        bus: Bus,
        clock: Clock,
    ) -> None:
        self._meter_id = meter.id
        self._rules = Rules(meter.anomaly_ratio, float(usd_to_nusd(meter.anomaly_least_usd)))
        self._questions = questions
        self._callers = callers
        self._outlooks = outlooks
        self._terms = terms
        self._reading = reading
        self._bus = bus
        self._clock = clock
        self._said: OrderedDict[tuple[str, str, int], None] = OrderedDict()

    async def forecast(self, request: insight_pb2.GetForecastRequest) -> insight_pb2.Forecast:
        """Raises InvalidRequest: names the field, its value, and what would do."""
        if not 0 <= request.days <= MOST_DAYS:
            raise InvalidRequest(f"days = {request.days} is not within 1 to {MOST_DAYS}; 0: to the end of the month")
        level = request.level or 0.9
        if not 0.5 <= level <= 0.99:
            raise InvalidRequest(f"level = {request.level} is not within 0.5 to 0.99; 0 means 0.9")
        wanted = grouping_of((), request.filters, (*DIMENSIONS, *CALLERS))
        if request.tenant:
            wanted = wanted.only(tenant=request.tenant)
        return await self._outlooks.forecast(wanted, request.tenant, request.days, level)

    async def anomalies(self, request: insight_pb2.ListAnomaliesRequest) -> insight_pb2.ListAnomaliesResponse:
        """Worked out from the books again, so that a restart forgets none.

        Raises:
            InvalidRequest: from a time before 1970.
        """
        if request.from_unix_ms < 0:
            raise InvalidRequest(f"from_unix_ms = {request.from_unix_ms} is negative; 0 means the last seven days")
        hour = self._clock.unix_ms() // MS_PER_HOUR
        first = request.from_unix_ms // MS_PER_HOUR if request.from_unix_ms else hour - _SHOWN_HOURS
        first = min(hour, max(first, hour - _MOST_SHOWN_HOURS))
        seen = await self._reading.run(partial(self._look, request.tenant, first, hour))
        return insight_pb2.ListAnomaliesResponse(
            found=[events_pb2.SpendAnomalyFound(**asdict(each)) for each in seen.found[-_MOST_FOUND:]],
            watched=seen.judged,
            learning=seen.learning,
            threshold_score=SCORE,
            threshold_ratio=self._rules.ratio,
        )

    async def promises(self, request: insight_pb2.GetPromisesRequest) -> insight_pb2.Promises:
        """The running month, by SLO class."""
        return await self._reading.run(partial(self._promises, request.tenant, self._clock.unix_ms()))

    async def run(self) -> None:
        """Says what goes out of the ordinary, until cancelled."""
        await pass_on(self.watch, _LOOK_EVERY_S, "looking at spending")

    async def watch(self) -> list[SpendAnomalyFound]:
        """One look at the hour under way and the one before; what was found for the first time."""
        hour = self._clock.unix_ms() // MS_PER_HOUR
        seen = await self._reading.run(partial(self._look, "", hour - 1, hour))
        fresh = []
        for each in seen.found:
            key = (each.tenant, each.workload, each.hour_unix_ms)
            if key in self._said:
                continue
            try:
                self._bus.publish(each)
            except OutboxFull:  # said at the next look
                break
            log.warning("spending: %s", each.evidence)
            self._said[key] = None
            fresh.append(each)
            while len(self._said) > _MOST_SAID:
                self._said.popitem(last=False)
        return fresh

    def _look(self, tenant: str, first: int, hour: int) -> _Watched:
        """Judges the hours from `first` to the one under way. Runs in a thread."""
        begin = first - _HISTORY_HOURS
        wanted = Grouping(("tenant", "workload", "hour"))
        if tenant:
            wanted = wanted.only(tenant=tenant)
        spent: dict[Whose, dict[int, int]] = {}
        lines = self._questions.usage(wanted, begin * 60, (hour + 1) * 60, _MOST_ROWS)
        for (owner, workload, minute), amounts in lines:
            for whose in {(str(owner), str(workload)), (str(owner), "")}:
                hours = spent.setdefault(whose, {})
                hours[int(minute) // 60] = hours.get(int(minute) // 60, 0) + amounts.price_nusd
        found, learning = [], 0
        for whose, hours in sorted(spent.items()):
            start = min(hours)
            learning += hour - start < LEAST_HOURS
            series = [float(max(0, hours.get(each, 0))) for each in range(start, hour + 1)]
            odd = anomalies(series, first - start, self._rules, _HISTORY_HOURS)
            found += [self._event(whose, start + each.index, hour, each) for each in odd]
        found.sort(key=lambda each: (each.hour_unix_ms, each.tenant, each.workload))
        return _Watched(found, len(spent) - learning, learning)

    def _event(self, whose: Whose, at_hour: int, hour: int, anomaly: Anomaly) -> SpendAnomalyFound:
        tenant, workload = whose
        known = anomaly.ordinary
        score = known.score(anomaly.spent_nusd)
        named = f"workload {workload!r} of tenant {tenant!r}" if workload else f"tenant {tenant!r}"
        at = datetime.fromtimestamp(at_hour * 3600, UTC).isoformat(" ", "minutes")
        return SpendAnomalyFound(
            found_by=self._meter_id,
            tenant=tenant,
            workload=workload,
            hour_unix_ms=at_hour * MS_PER_HOUR,
            under_way=at_hour == hour,
            spent_nusd=round(anomaly.spent_nusd),
            usual_nusd=round(known.usual_nusd),
            threshold_nusd=round(known.threshold_nusd),
            score=score,
            hours=known.hours,
            evidence=(
                f"{named}: {format_usd(round(anomaly.spent_nusd))} in the hour from {at}, usually"
                f" {format_usd(round(known.usual_nusd))} at that time; {format_usd(round(known.threshold_nusd))} would"
                f" be ordinary ({score:.1f} spreads above, from {known.hours} hours)"
            ),
            at_unix_ms=self._clock.unix_ms(),
        )

    def _promises(self, tenant: str, now_unix_ms: int) -> insight_pb2.Promises:
        """Runs in a thread."""
        begin_ms, end_ms = (1000 * each for each in month_of(now_unix_ms // 1000))
        begin, hour = begin_ms // MS_PER_HOUR, now_unix_ms // MS_PER_HOUR
        by = Grouping(("slo_class",))
        if tenant:
            by = by.only(tenant=tenant)

        def since(first: int) -> dict[str, Amounts]:
            return {
                str(group[0]): amounts for group, amounts in self._questions.usage(by, first * 60, None, _MOST_ROWS)
            }

        month, day, week = since(begin), since(hour - DAY), since(hour - 7 * DAY)
        per_hour = Grouping(("hour",), by.filters)
        known = self._questions.usage(per_hour, (hour - 7 * DAY) * 60, None, _MOST_ROWS)
        first_known = min((int(group[0]) // 60 for group, _ in known), default=hour)
        week_h = max(1.0, now_unix_ms / MS_PER_HOUR - first_known)
        credited: dict[str, int] = {}
        for group, account, value in self._callers.postings(by, begin, None):
            if account is Account.SLO_CREDIT:
                name = str(group[0])
                credited[name] = credited.get(name, 0) + value.amount_nusd
        classes = []
        for name in sorted({*month, *week, *credited, *self._terms}):
            used = month.get(name, NOTHING)
            comes = outcome(
                used,
                day.get(name, NOTHING),
                week.get(name, NOTHING),
                credited.get(name, 0),
                self._terms.get(name, CreditTerms()),
                week_h=week_h,
                left_h=max(0.0, (end_ms - now_unix_ms) / MS_PER_HOUR),
            )
            classes.append(
                insight_pb2.PromiseOutlook(
                    slo_class=name,
                    finished_requests=max(0, used.finished_requests),
                    slo_met_requests=max(0, used.slo_met_requests),
                    attainment=comes.attainment,
                    price_nusd=used.price_nusd,
                    credited_nusd=comes.credited_nusd,
                    expected_credit_nusd=comes.expected_nusd,
                    most_credit_nusd=comes.most_nusd,
                    expected_price_nusd=comes.expected_price_nusd,
                )
            )
        return insight_pb2.Promises(
            classes=classes, total=_together(classes), month_unix_ms=begin_ms, now_unix_ms=now_unix_ms
        )


def _together(classes: Sequence[insight_pb2.PromiseOutlook]) -> insight_pb2.PromiseOutlook:
    total = insight_pb2.PromiseOutlook()
    for each in classes:
        for name in _ADDED:
            setattr(total, name, getattr(total, name) + getattr(each, name))
    finished = total.finished_requests
    total.attainment = total.slo_met_requests / finished if finished else 1.0
    return total


_ADDED: Final = (
    "finished_requests",
    "slo_met_requests",
    "price_nusd",
    "credited_nusd",
    "expected_credit_nusd",
    "most_credit_nusd",
    "expected_price_nusd",
)
