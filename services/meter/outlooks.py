"""Forecasts of what is billed, and when budgets run out, from the books.

In: what to look at, and how far. Out: a `Forecast` of insight.proto. Works in the meter's reading threads: fitting
takes up to some seconds.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from services.mesh.clock import Clock
from services.mesh.credit import Scope, Unit, month_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.budget_calls import states
from services.meter.core.amounts import Amounts
from services.meter.core.outlook import Range, seasonal
from services.meter.core.presence import MS_PER_HOUR
from services.meter.core.usage import Grouping
from services.meter.forecaster import forecast
from services.meter.store.callers import CallerReader
from services.meter.store.questions import Questions
from services.meter.thread import WorkThreads
from tokenworks.v1 import insight_pb2, metering_pb2

MOST_DAYS: Final = 92
_DAY: Final = 24
_WEEK: Final = 7
_HISTORY_DAYS: Final = 28  # of hours; of days it is as long again for each
_DAILY_FROM_DAYS: Final = 15  # ahead: from there on days are forecast, not hours
_BUDGET_DAYS: Final = 366
_MOST_BUDGETS: Final = 50
_MOST_ROWS: Final = 100_000
_FIELDS: Final = {Scope.TEAM: "team", Scope.KEY: "key", Scope.WORKLOAD: "workload", Scope.SESSION: "session"}


class Outlooks:
    def __init__(
        self,
        *,
        questions: Questions,
        callers: CallerReader,
        bookkeeper: Bookkeeper,
        reading: WorkThreads,
        writing: WorkThreads,
        clock: Clock,
    ) -> None:
        self._questions = questions
        self._callers = callers
        self._bookkeeper = bookkeeper
        self._reading = reading
        self._writing = writing
        self._clock = clock

    async def forecast(self, wanted: Grouping, tenant: str, days: int, level: float) -> insight_pb2.Forecast:
        """`days` 0: to the end of the month, and at least a week. Budgets are looked at where a tenant is named."""
        now_unix_ms = self._clock.unix_ms()
        budgets: list[metering_pb2.BudgetState] = []
        if tenant:
            look = partial(states, tenant, now_unix_ms // 1000)
            (budgets,) = await self._writing.run(partial(self._bookkeeper.look, look, tenant))
        return await self._reading.run(partial(self._forecast, wanted, budgets, days, level, now_unix_ms))

    def _forecast(
        self,
        wanted: Grouping,
        budgets: Sequence[metering_pb2.BudgetState],
        days: int,
        level: float,
        now_unix_ms: int,
    ) -> insight_pb2.Forecast:
        month_ms, month_end_ms = (1000 * each for each in month_of(now_unix_ms // 1000))
        left_days = (month_end_ms - now_unix_ms) / MS_PER_HOUR / _DAY
        ahead_days = days or max(_WEEK, -(-int(left_days * _DAY) // _DAY) + 1)
        step_h = 1 if ahead_days < _DAILY_FROM_DAYS else _DAY
        season = _DAY if step_h == 1 else _WEEK
        history, under_way = self._history(wanted, now_unix_ms, step_h, _price)
        history = history or self._so_far(under_way, step_h, now_unix_ms)
        first_ms = now_unix_ms // (step_h * MS_PER_HOUR) * step_h * MS_PER_HOUR
        reach_ms = now_unix_ms + ahead_days * _DAY * MS_PER_HOUR
        steps = -(-(max(reach_ms, month_end_ms if not days else 0) - first_ms) // (step_h * MS_PER_HOUR))
        outlook = forecast(history, season, steps, level)
        found = insight_pb2.Forecast(
            method=outlook.method,
            because=outlook.because,
            level=level,
            step_hours=step_h,
            history_steps=len(history),
            now_unix_ms=now_unix_ms,
        )
        for index, (expected, low, high) in enumerate(outlook.steps):
            at_ms = first_ms + index * step_h * MS_PER_HOUR
            floor = under_way if index == 0 else 0.0  # what the step under way was billed already
            found.points.append(
                insight_pb2.ForecastPoint(
                    from_unix_ms=at_ms,
                    expected_nusd=max(expected, floor),
                    low_nusd=max(low, floor),
                    high_nusd=max(high, floor),
                )
            )
        found.horizon.CopyFrom(
            _total(first_ms, first_ms + steps * step_h * MS_PER_HOUR, under_way, 0.0, outlook.total(steps))
        )
        billed = self._billed(wanted, month_ms, first_ms)
        to_end = (month_end_ms - first_ms) / (step_h * MS_PER_HOUR)
        if to_end <= steps:
            found.month.CopyFrom(_total(month_ms, month_end_ms, billed + under_way, billed, outlook.total(to_end)))
        for each in budgets[:_MOST_BUDGETS]:
            found.budgets.extend(self._budget(each, level, now_unix_ms))
        return found

    def _budget(
        self, budget: metering_pb2.BudgetState, level: float, now_unix_ms: int
    ) -> list[insight_pb2.BudgetOutlook]:
        """When each open account of a budget runs out, by the plain method: there may be many."""
        count = _price if budget.unit == Unit.NUSD else _tokens
        found = []
        for account in budget.accounts[:_MOST_BUDGETS]:
            wanted = Grouping().only(tenant=budget.tenant)
            if budget.scope in _FIELDS:
                wanted = wanted.only(**{_FIELDS[Scope(budget.scope)]: account.subject})
            history, _ = self._history(wanted, now_unix_ms, 1, count)
            horizon_h = _BUDGET_DAYS * _DAY
            if account.to_unix_ms:
                horizon_h = min(horizon_h, max(1, -(-(account.to_unix_ms - now_unix_ms) // MS_PER_HOUR)))
            outlook = seasonal(history, _DAY, horizon_h, level)
            left = max(0, budget.limit - account.spent)
            expected, soonest, latest = outlook.steps_until(left)
            made = insight_pb2.BudgetOutlook(
                budget=budget.budget,
                tenant=budget.tenant,
                scope=budget.scope,
                subject=account.subject,
                unit=budget.unit,
                period=budget.period,
                limit=budget.limit,
                spent=account.spent,
                to_unix_ms=account.to_unix_ms,
            )
            for name, hours in (("days", expected), ("soonest_days", soonest), ("latest_days", latest)):
                if hours is not None:
                    setattr(made, name, hours / _DAY)
            found.append(made)
        return found

    def _history(
        self, wanted: Grouping, now_unix_ms: int, step_h: int, count: Callable[[Amounts], int]
    ) -> tuple[list[float], float]:
        """Amounts of whole steps from the first with any, and that of the step under way."""
        step_minutes = step_h * 60
        present = now_unix_ms // MS_PER_HOUR // step_h
        first = present - _HISTORY_DAYS * _DAY
        by = Grouping(("hour" if step_h == 1 else "day",), wanted.filters)
        source = self._callers if wanted.by_caller else self._questions
        rows = source.usage(by, max(0, first) * step_minutes, None, _MOST_ROWS)
        amounts = {int(group[0]) // step_minutes: float(max(0, count(each))) for group, each in rows}
        begin = min((step for step in amounts if step < present), default=present)
        history = [amounts.get(step, 0.0) for step in range(begin, present)]
        return history, amounts.get(present, 0.0)

    @staticmethod
    def _so_far(under_way: float, step_h: int, now_unix_ms: int) -> list[float]:
        """Where no whole step is known, the one under way at its pace so far."""
        passed_ms = now_unix_ms % (step_h * MS_PER_HOUR)
        return [under_way * step_h * MS_PER_HOUR / passed_ms] if under_way and passed_ms else []

    def _billed(self, wanted: Grouping, from_ms: int, to_ms: int) -> float:
        source = self._callers if wanted.by_caller else self._questions
        minutes = from_ms // 60_000, to_ms // 60_000
        rows = source.usage(Grouping((), wanted.filters), *minutes, _MOST_ROWS) if minutes[0] < minutes[1] else []
        return float(sum(amounts.price_nusd for _, amounts in rows))


def _price(amounts: Amounts) -> int:
    return amounts.price_nusd


def _tokens(amounts: Amounts) -> int:
    return amounts.prompt_tokens + amounts.delivered_tokens


def _total(from_ms: int, to_ms: int, billed: float, before: float, to_come: Range) -> insight_pb2.ForecastTotal:
    """`before`: billed in steps that are over; what is billed of the one under way is part of `to_come`."""
    return insight_pb2.ForecastTotal(
        from_unix_ms=from_ms,
        to_unix_ms=to_ms,
        billed_nusd=round(billed),
        expected_nusd=max(billed, before + to_come.expected),
        low_nusd=max(billed, before + to_come.low),
        high_nusd=max(billed, before + to_come.high),
    )
