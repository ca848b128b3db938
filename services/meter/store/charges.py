"""What the books hold of charges, read a bounded piece at a time: the ledger's lines and postings by day.

In: days, tenants, ranges of ids. Out: sums by what charges are told by. The ledger is append-only, so pieces that are
read one after another up to the same `Bounds` agree with each other; nothing is locked meanwhile. From several threads.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, case, func, literal, select

from services.meter.core.charges import MINUTES_PER_DAY, Bounds
from services.meter.core.journal import Account
from services.meter.store import schema
from services.meter.store.bill_tables import bill_hours, postings
from services.meter.store.database import Database
from services.meter.store.dropped import DETAIL, hour_of
from services.meter.store.sums import whole_sum

_CHARGED: Final = (Account.SLO_CREDIT.value, Account.REVENUE.value)


class PricedLines(NamedTuple):
    """Lines of one day that are priced alike.

    Attributes:
        named_book: by their router.
        era: how many of the asked times their requests were admitted at or after.
    """

    day_minute: int
    tenant: str
    workload: str
    model: str
    slo_class: str
    accelerator: str
    named_book: str
    era: int
    requests: int
    tokens: tuple[int, int, int]
    price_nusd: int


class ChargedPostings(NamedTuple):
    """What stands beside the ledger and is charged with, of one day."""

    day_minute: int
    tenant: str
    workload: str
    model: str
    slo_class: str
    accelerator: str
    credit_nusd: int
    adjustment_nusd: int


class ChargeReader:
    def __init__(self, database: Database) -> None:
        self._engine = database.reader

    def bounds(self) -> Bounds:
        """The newest line and posting."""
        with self._engine.begin() as connection:
            line = connection.execute(select(func.max(schema.entries.c.id))).scalar_one()
            posting = connection.execute(select(func.max(postings.c.id))).scalar_one()
        return Bounds(line or 0, posting or 0)

    def first_minute(self, tenant: str = "", from_minute: int = 0) -> int | None:
        """The first minute from then on that has usage, of all tenants or one; None where there is none."""
        table = schema.usage
        query = select(func.min(table.c.minute)).where(table.c.minute >= from_minute)
        if tenant:
            query = query.where(table.c.tenant == tenant)
        with self._engine.begin() as connection:
            found: int | None = connection.execute(query).scalar_one()
        return found

    def next_day(self, from_minute: int) -> int | None:
        """The first minute of the first day from then on that has usage or postings; None where there is none."""
        first_hour = select(func.min(postings.c.hour)).where(postings.c.hour >= from_minute // 60)
        with self._engine.begin() as connection:
            hour = connection.execute(first_hour).scalar_one()
        minutes = [each for each in (self.first_minute("", from_minute), None if hour is None else hour * 60) if each]
        return min(minutes) // MINUTES_PER_DAY * MINUTES_PER_DAY if minutes else None

    def detail_from_minute(self) -> int:
        """What is dated earlier is there in sums alone."""
        with self._engine.begin() as connection:
            return hour_of(connection, DETAIL) * 60

    def line_ranges(self, from_minute: int, to_minute: int, through: int) -> list[tuple[int, int]]:
        """Ranges (after, through] that have all lines dated in [from, to) up to `through`."""
        table = bill_hours
        within = (table.c.hour >= from_minute // 60) & (table.c.hour < -(-to_minute // 60)) & (table.c.first_line > 0)
        with self._engine.begin() as connection:
            first, last = connection.execute(
                select(func.min(table.c.first_line), func.max(table.c.last_line)).where(within)
            ).one()
            sorted_in = connection.execute(select(func.max(table.c.last_line))).scalar_one() or 0
        ranges = [] if first is None else [(first - 1, min(last, through))]
        return [(after, end) for after, end in (*ranges, (sorted_in, through)) if after < end]

    def lines(
        self,
        piece: tuple[int, int],
        from_minute: int,
        to_minute: int,
        tenants: Sequence[str],
        eras: Sequence[int],
    ) -> list[PricedLines]:
        """The lines of a range of ids that are dated in [from, to).

        Args:
            tenants: none: all.
            eras: times of admission, milliseconds since 1970, at which what prices a request may change.
        """
        lines, requests = schema.entries, schema.requests
        day = (lines.c.minute - lines.c.minute % MINUTES_PER_DAY).label("day")
        admitted = case(
            (requests.c.finish_admitted_unix_ms != 0, requests.c.finish_admitted_unix_ms),
            else_=func.coalesce(requests.c.admitted_unix_ms, 0),
        )
        era: ColumnElement[int] = literal(0)
        for unix_ms in eras:
            era = era + case((admitted >= unix_ms, 1), else_=0)
        named = case((requests.c.price_book != "", requests.c.price_book), else_=requests.c.admitted_price_book)
        by = [
            day,
            lines.c.tenant,
            *(func.coalesce(requests.c[name], "").label(name) for name in ("workload", "model", "slo_class")),
            lines.c.accelerator,
            func.coalesce(named, "").label("named"),
            era.label("era"),
        ]
        sums = [
            whole_sum(each)
            for each in (
                lines.c.requests,
                lines.c.prompt_tokens - lines.c.cached_prompt_tokens,
                lines.c.cached_prompt_tokens,
                lines.c.delivered_tokens,
                lines.c.price_nusd,
            )
        ]
        joined = lines.outerjoin(
            requests, (lines.c.request_id == requests.c.request_id) & (lines.c.tenant == requests.c.tenant)
        )
        grouped = select(*by, *sums).select_from(joined).where(lines.c.id > piece[0], lines.c.id <= piece[1])
        grouped = grouped.where(lines.c.minute >= from_minute, lines.c.minute < to_minute)
        if tenants:
            grouped = grouped.where(lines.c.tenant.in_(sorted(tenants)))
        with self._engine.begin() as connection:
            found = []
            for row in connection.execute(grouped.group_by(*by)):
                *keys, count, uncached, cached, output, price = row
                tokens = (int(uncached), int(cached), int(output))
                key = dict(zip(PricedLines._fields, keys, strict=False))
                found.append(PricedLines(**key, requests=int(count), tokens=tokens, price_nusd=int(price)))
            return found

    def posted(
        self, after: int, through: int, from_minute: int, to_minute: int, tenants: Sequence[str]
    ) -> list[ChargedPostings]:
        """Credits, tiers and commitments of the hours [from, to) in a range of ids (after, through]."""
        table = postings
        day = ((table.c.hour - table.c.hour % 24) * 60).label("day")
        by = [day, *(table.c[name] for name in ("tenant", "workload", "model", "slo_class", "accelerator"))]
        credit = whole_sum(case((table.c.account == Account.SLO_CREDIT.value, table.c.amount_nusd), else_=0))
        adjustment = whole_sum(case((table.c.account == Account.REVENUE.value, -table.c.amount_nusd), else_=0))
        query = select(*by, credit, adjustment).where(table.c.account.in_(_CHARGED))
        query = query.where(table.c.id > after, table.c.id <= through)
        query = query.where(table.c.hour >= from_minute // 60, table.c.hour < -(-to_minute // 60))
        if tenants:
            query = query.where(table.c.tenant.in_(sorted(tenants)))
        with self._engine.begin() as connection:
            return [
                ChargedPostings(*row[:6], int(row[6]), int(row[7])) for row in connection.execute(query.group_by(*by))
            ]
