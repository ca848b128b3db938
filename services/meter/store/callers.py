"""Usage and postings by who called: team, key, session, beside all that usage is kept by.

In: a `Grouping` and two times. Out: sums by group, from hours that are added up (`caller_tables.py`) where they lie
wholly within the times, and from the ledger's lines and the postings for the rest; so an answer is exact whatever was
added up already. Each answer is one snapshot. May be called from several threads.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, FromClause, Select, case, func, literal, select

from services.meter.core.amounts import NOTHING, Amounts
from services.meter.core.beside import Caller
from services.meter.core.journal import HOUSE, OF_REQUESTS, Account, Value
from services.meter.core.requests import Key
from services.meter.core.usage import CALLERS, DIMENSIONS, MINUTES_BY_UNIT, Group, Grouping
from services.meter.store import schema
from services.meter.store.bill_tables import bill_hours, postings
from services.meter.store.caller_tables import (
    caller_hours,
    caller_postings,
    rolled_hours,
    session_hours,
    session_postings,
)
from services.meter.store.database import Database
from services.meter.store.grouped import COLUMNS, amounts_by_group, sums_by_group
from services.meter.store.sums import whole_sum

ALL_POSTINGS: Final = -1  # the row of `rolled_hours` that says up to where postings were looked at
_HOUR: Final = MINUTES_BY_UNIT["hour"]


class LedgerHour(NamedTuple):
    """An hour that lines are dated in: the first and the last of them, and whether it is added up with all of these."""

    hour: int
    first_line: int
    last_line: int
    rolled: bool


class CallerReader:
    """Answers from the books in `database`."""

    def __init__(self, database: Database) -> None:
        self._engine = database.reader

    def usage(
        self, grouping: Grouping, from_minute: int | None, to_minute: int | None, max_rows: int
    ) -> list[tuple[Group, Amounts]]:
        """The sums of each group; at most some times `max_rows`, and more than that tell that there may be more.

        Args:
            from_minute: since 1970, inclusive; None: the beginning.
            to_minute: exclusive; None: no end.
        """
        table = session_hours if _asks_sessions(grouping) else caller_hours
        totals: dict[Group, Amounts] = defaultdict(lambda: NOTHING)
        with self._engine.begin() as connection:
            hours = _ledger_hours(connection, from_minute, to_minute)
            newest = connection.execute(select(func.max(bill_hours.c.last_line))).scalar_one() or 0
            queries: list[Select[Any]] = []
            for whole, run in _runs(hours, from_minute, to_minute, rolled="minute" not in grouping.names):
                first, end = run[0].hour, run[-1].hour + 1
                if whole:
                    within = (table.c.hour >= first) & (table.c.hour < end)
                    queries.append(amounts_by_group(table, grouping, table.c.hour * _HOUR).where(within))
                    continue
                lines = (schema.entries.c.id >= min(each.first_line for each in run)) & (
                    schema.entries.c.id <= max(each.last_line for each in run)
                )
                minutes = max(from_minute or 0, first * _HOUR), min(to_minute or end * _HOUR, end * _HOUR)
                queries.append(amounts_by_group(_lines(lines, *minutes), grouping))
            unseen = schema.entries.c.id > newest  # not sorted into hours yet
            queries.append(amounts_by_group(_lines(unseen, from_minute, to_minute), grouping))
            for query in queries:
                for row in connection.execute(query.limit(max_rows)).mappings():
                    if row["requests"] is not None:
                        group = tuple(row[f"group_{name}"] for name in grouping.names)
                        amounts = Amounts(*(int(row[name] or 0) for name in Amounts._fields))
                        totals[group] = totals[group].plus(amounts)
        return [(group, amounts) for group, amounts in sorted(totals.items()) if any(amounts)]

    def postings(
        self, grouping: Grouping, from_hour: int | None, to_hour: int | None
    ) -> list[tuple[Group, Account, Value]]:
        """What postings come to by account, in the hours [from, to)."""
        table = session_postings if _asks_sessions(grouping) else caller_postings
        totals: dict[tuple[Group, str], Value] = defaultdict(Value)
        with self._engine.begin() as connection:
            position = _looked_at(connection)
            query = select(rolled_hours.c.hour).where(rolled_hours.c.stale.is_(False), rolled_hours.c.hour >= 0)
            rolled = sorted(connection.execute(query).scalars())
            within = [
                hour
                for hour in rolled
                if (from_hour is None or hour >= from_hour) and (to_hour is None or hour < to_hour)
            ]
            queries: list[Select[Any]] = []
            start = from_hour
            for first, end in _consecutive(within):
                hours = (table.c.hour >= first) & (table.c.hour < end)
                queries.append(_postings_of(table, grouping).where(hours))
                queries.append(_postings_of(_raw_postings(first, end, after=position), grouping))
                if start is None or start < first:
                    queries.append(_postings_of(_raw_postings(start, first), grouping))
                start = end
            if start is None or to_hour is None or start < to_hour:
                queries.append(_postings_of(_raw_postings(start, to_hour), grouping))
            for query in queries:
                for *group, account, nusd, carbon_ug in connection.execute(query):
                    before = totals[tuple(group), account]
                    totals[tuple(group), account] = Value(
                        before.amount_nusd + int(nusd), before.carbon_ug + int(carbon_ug)
                    )
        return [(group, Account(account), value) for (group, account), value in totals.items()]

    def callers_of(self, hours: Iterable[int]) -> dict[Key, Caller]:
        """Who called for the requests that have lines in these hours since 1970."""
        requests, lines = schema.requests, schema.entries
        found: dict[Key, Caller] = {}
        with self._engine.begin() as connection:
            query = select(func.min(bill_hours.c.first_line)).where(
                bill_hours.c.hour.in_(list(hours)), bill_hours.c.first_line > 0
            )
            first_line = connection.execute(query).scalar_one()
            if first_line is None:
                return {}
            keys = select(lines.c.request_id, lines.c.tenant).where(lines.c.id >= first_line).distinct().subquery()
            mine = (requests.c.request_id == keys.c.request_id) & (requests.c.tenant == keys.c.tenant)
            columns = [requests.c[COLUMNS[name]] for name in CALLERS]
            for request_id, tenant, *who in connection.execute(
                select(requests.c.request_id, requests.c.tenant, *columns).join(keys, mine)
            ):
                found[request_id, tenant] = Caller(*who)
        return found


def _ledger_hours(connection: Connection, from_minute: int | None, to_minute: int | None) -> list[LedgerHour]:
    """The hours that the times touch and that lines are dated in, in order."""
    full = (rolled_hours.c.last_line == bill_hours.c.last_line) & rolled_hours.c.stale.is_(False)
    query = (
        select(bill_hours.c.hour, bill_hours.c.first_line, bill_hours.c.last_line, func.coalesce(full, literal(False)))
        .outerjoin(rolled_hours, rolled_hours.c.hour == bill_hours.c.hour)
        .where(bill_hours.c.first_line > 0)
        .order_by(bill_hours.c.hour)
    )
    if from_minute is not None:
        query = query.where(bill_hours.c.hour >= from_minute // _HOUR)
    if to_minute is not None:
        query = query.where(bill_hours.c.hour * _HOUR < to_minute)
    return [LedgerHour(hour, first, last, bool(rolled)) for hour, first, last, rolled in connection.execute(query)]


def _runs(
    hours: Sequence[LedgerHour], from_minute: int | None, to_minute: int | None, *, rolled: bool
) -> Iterator[tuple[bool, list[LedgerHour]]]:
    """Hours after each other that are answered the same way; True: from what is added up."""

    def whole(each: LedgerHour) -> bool:
        begins = from_minute is None or each.hour * _HOUR >= from_minute
        ends = to_minute is None or (each.hour + 1) * _HOUR <= to_minute
        return rolled and each.rolled and begins and ends

    for is_whole, run in groupby(hours, whole):
        yield is_whole, list(run)


def _consecutive(hours: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted hours as runs [first, end)."""
    start = previous = None
    for hour in hours:
        if previous is None or start is None:
            start = hour
        elif hour != previous + 1:
            yield start, previous + 1
            start = hour
        previous = hour
    if start is not None and previous is not None:
        yield start, previous + 1


def _asks_sessions(grouping: Grouping) -> bool:
    return "session" in grouping.names or "session" in grouping.filters


def _looked_at(connection: Connection) -> int:
    query = select(rolled_hours.c.last_posting).where(rolled_hours.c.hour == ALL_POSTINGS)
    return connection.execute(query).scalar_one_or_none() or 0


def _lines(which: ColumnElement[bool], from_minute: int | None, to_minute: int | None) -> FromClause:
    """Lines of the ledger with who called."""
    lines = schema.entries
    query = lines_with_callers().where(which)
    if from_minute is not None:
        query = query.where(lines.c.minute >= from_minute)
    if to_minute is not None:
        query = query.where(lines.c.minute < to_minute)
    return query.subquery()


def lines_with_callers() -> Select[Any]:
    """Every line of the ledger as a row of usage: minute, who called, dimensions, amounts."""
    lines, requests = schema.entries, schema.requests
    mine = (lines.c.request_id == requests.c.request_id) & (lines.c.tenant == requests.c.tenant)
    who = [func.coalesce(requests.c[name], "").label(name) for name in COLUMNS.values()]
    dimensions = [
        lines.c[name] if name in lines.c else func.coalesce(requests.c[name], "").label(name) for name in DIMENSIONS
    ]
    amounts = [lines.c[name] for name in Amounts._fields]
    return select(lines.c.minute, *who, *dimensions, *amounts).select_from(lines.outerjoin(requests, mine))


def postings_with_callers() -> Select[Any]:
    """Every posting with who called; what the house bears is nobody's, whoever asked for it."""
    requests = schema.requests
    mine = (postings.c.request_id == requests.c.request_id) & (postings.c.tenant == requests.c.tenant)
    of_house = postings.c.account.in_([each.value for each in HOUSE])

    def told(name: str, column: Column[str]) -> ColumnElement[str]:
        return case((of_house, ""), else_=func.coalesce(column, "")).label(name)

    who = [told(name, requests.c[name]) for name in COLUMNS.values()]
    dimensions = [told(name, postings.c[name]) if name in OF_REQUESTS else postings.c[name] for name in DIMENSIONS]
    own = (postings.c.hour, postings.c.account, *who, *dimensions, postings.c.amount_nusd, postings.c.carbon_ug)
    return select(*own).select_from(postings.outerjoin(requests, mine))


def _raw_postings(from_hour: int | None, to_hour: int | None, *, after: int = 0) -> FromClause:
    query = postings_with_callers()
    if from_hour is not None:
        query = query.where(postings.c.hour >= from_hour)
    if to_hour is not None:
        query = query.where(postings.c.hour < to_hour)
    if after:
        query = query.where(postings.c.id > after)
    return query.subquery()


def _postings_of(source: FromClause, grouping: Grouping) -> Select[Any]:
    """What postings in a source come to, by group and account."""
    totals = whole_sum(source.c.amount_nusd), whole_sum(source.c.carbon_ug)
    return sums_by_group(source, grouping, totals, at=source.c.hour * _HOUR, also=(source.c.account,))
