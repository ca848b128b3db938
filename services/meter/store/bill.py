"""The fleet's bill on disk: hours that workers are paid for, which of the ledger's lines are about each hour, postings.

`BillReader` reads, from several threads; each of its answers is one snapshot. `BillWriter` writes within a transaction
of `Books`, so that only the meter that has the books posts to them. SQLite and PostgreSQL alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, FromClause, and_, func, literal, select

from services.meter.core.credits import Missed
from services.meter.core.fleet_bill import Work
from services.meter.core.journal import Account, Booked, Posting, Subject, Value
from services.meter.core.paid import PaidHour
from services.meter.core.presence import Start, WorkerHour
from services.meter.core.usage import MINUTES_BY_UNIT, Grouping
from services.meter.store import schema
from services.meter.store.bill_tables import bill_hours, postings, worker_hours
from services.meter.store.books import Transaction
from services.meter.store.bulk import Bulk, upsert
from services.meter.store.database import Database
from services.meter.store.dropped import DETAIL, hour_of
from services.meter.store.hours import rolled_before, usage_between
from services.meter.store.sums import whole_sum

_MINUTES: Final = MINUTES_BY_UNIT["hour"]
_IDS_PER_QUERY: Final = 500


@dataclass(frozen=True, slots=True)
class BillHour:
    """One hour since 1970; the ids of the ledger's lines that are dated in it, and up to which its bill is booked.

    Attributes:
        first_line, last_line: inclusive; 0 where there are none.
        settled_unix_ms: 0 where its bill is not booked.
    """

    hour: int
    first_line: int = 0
    last_line: int = 0
    settled_line: int = 0
    settled_unix_ms: int = 0


class BillReader:
    def __init__(self, database: Database) -> None:
        self._engine = database.reader

    def lines(self, after_line: int, limit: int) -> tuple[int, dict[int, tuple[int, int]]]:
        """The last line looked at; and of these lines, by the hour that they are dated in, the first and the last."""
        table = schema.entries
        hour = table.c.minute // _MINUTES
        with self._engine.begin() as connection:
            newest = connection.execute(select(func.max(table.c.id))).scalar_one() or 0
            through = min(newest, after_line + limit)
            query = select(hour, func.min(table.c.id), func.max(table.c.id)).group_by(hour)
            # An hour whose detail is dropped could not be worked out again.
            kept = table.c.minute >= hour_of(connection, DETAIL) * _MINUTES
            found = connection.execute(query.where(table.c.id > after_line, table.c.id <= through, kept))
            return through, {int(at): (first, last) for at, first, last in found}

    def hours(self) -> dict[int, BillHour]:
        """Every hour that lines are dated in or that workers were paid for."""
        with self._engine.begin() as connection:
            known = {row.hour: BillHour(*row) for row in connection.execute(select(bill_hours))}
            paid = connection.execute(select(worker_hours.c.hour).distinct()).scalars()
            return {**{hour: BillHour(hour) for hour in paid}, **known}

    def worker_hours(self, hour: int | None = None) -> list[WorkerHour]:
        """What starts of workers were paid for, in one hour, or the latest of each."""
        table = worker_hours
        query = select(table)
        if hour is not None:
            query = query.where(table.c.hour == hour)
        else:
            latest = select(table.c.worker, table.c.epoch, func.max(table.c.hour).label("hour"))
            newest = latest.group_by(table.c.worker, table.c.epoch).subquery()
            query = query.join(
                newest,
                (table.c.worker == newest.c.worker)
                & (table.c.epoch == newest.c.epoch)
                & (table.c.hour == newest.c.hour),
            )
        with self._engine.begin() as connection:
            return [
                WorkerHour(
                    row.hour,
                    Start(row.worker, row.epoch),
                    row.pool,
                    row.accelerator,
                    paid_ns=row.paid_ns,
                    warm_up_ns=row.warm_up_ns,
                    energy_uj=row.energy_uj,
                    heard_unix_ms=row.heard_unix_ms,
                    heard_energy_uj=row.heard_energy_uj,
                )
                for row in connection.execute(query)
            ]

    def work(self, hour: BillHour) -> list[Work]:
        """What requests did at each place in an hour, by the ledger's lines."""
        lines, requests, segments = schema.entries, schema.requests, schema.segments
        sums = ("device_ns", "energy_uj", "generated_tokens", "delivered_tokens", "use_cost_nusd", "energy_cost_nusd")
        place = ("request_id", "tenant", "worker", "pool", "accelerator")
        keys = [lines.c[name] for name in place]
        summed = (
            select(*keys, *(whole_sum(lines.c[name]).label(name) for name in sums))
            .where(_dated_in(hour))
            .group_by(*keys)
            .subquery()
        )
        joined = summed.outerjoin(
            requests, (summed.c.request_id == requests.c.request_id) & (summed.c.tenant == requests.c.tenant)
        ).outerjoin(segments, _all_equal(summed, segments, place))
        # A place where no request begins goes on with one that was begun elsewhere.
        replayed = func.coalesce(segments.c.worker_prompt_tokens - segments.c.worker_cached_prompt_tokens, 0)
        begun_here = func.coalesce(segments.c.requests, 1)
        names = [func.coalesce(requests.c[name], "").label(name) for name in ("workload", "model", "slo_class")]
        query = select(summed, *names, replayed.label("replayed"), begun_here.label("begun_here")).select_from(joined)
        with self._engine.begin() as connection:
            return [
                Work(
                    subject=Subject(**{name: row[name] for name in Subject._fields}),
                    device_ns=max(0, int(row["device_ns"])),
                    energy_uj=max(0, int(row["energy_uj"])),
                    generated_tokens=max(0, int(row["generated_tokens"])),
                    delivered_tokens=int(row["delivered_tokens"]),
                    replay_tokens=0 if row["begun_here"] else max(0, int(row["replayed"])),
                    use_nusd=int(row["use_cost_nusd"]),
                    energy_nusd=int(row["energy_cost_nusd"]),
                )
                for row in connection.execute(query).mappings()
            ]

    def missed(self, hour: BillHour) -> tuple[list[Missed], dict[str, tuple[int, int]]]:
        """Requests that ended in an hour without their promise kept; and by class, how many ended, and how many so."""
        lines, requests, segments = schema.entries, schema.requests, schema.segments
        ended, met = whole_sum(lines.c.finished_requests), whole_sum(lines.c.slo_met_requests)
        summed = (
            select(lines.c.request_id, lines.c.tenant, ended.label("ended"), met.label("met"))
            .where(_dated_in(hour), lines.c.finished_requests != 0)
            .group_by(lines.c.request_id, lines.c.tenant)
            .having(ended > 0)
            .subquery()
        )
        mine = (summed.c.request_id == requests.c.request_id) & (summed.c.tenant == requests.c.tenant)
        with self._engine.begin() as connection:
            counted = connection.execute(
                select(requests.c.slo_class, func.count(), whole_sum(summed.c.ended - summed.c.met))
                .select_from(summed.join(requests, mine))
                .group_by(requests.c.slo_class)
            ).all()
            names = [requests.c[name] for name in Subject._fields]
            query = select(*names).select_from(summed.join(requests, mine)).where(summed.c.met <= 0)
            subjects = [Subject(*row) for row in connection.execute(query)]
            prices: dict[tuple[str, str], int] = {}
            ids = sorted({each.request_id for each in subjects})
            for start in range(0, len(ids), _IDS_PER_QUERY):
                some = segments.c.request_id.in_(ids[start : start + _IDS_PER_QUERY])
                price = whole_sum(segments.c.price_nusd)
                by = (segments.c.request_id, segments.c.tenant)
                for request_id, tenant, nusd in connection.execute(select(*by, price).where(some).group_by(*by)):
                    prices[request_id, tenant] = int(nusd)
        return (
            [Missed(each, prices.get((each.request_id, each.tenant), 0)) for each in subjects],
            {slo_class: (int(count), int(without)) for slo_class, count, without in counted},
        )

    def posted(self, kind: str, from_hour: int, to_hour: int, pool: str | None = None) -> Booked:
        """What the postings of a kind come to in the hours [from, to)."""
        table = postings
        keys = [table.c.account, *(table.c[name] for name in Subject._fields)]
        query = select(*keys, whole_sum(table.c.amount_nusd), whole_sum(table.c.carbon_ug)).group_by(*keys)
        query = query.where(table.c.kind == kind, table.c.hour >= from_hour, table.c.hour < to_hour)
        if pool is not None:
            query = query.where(table.c.pool == pool)
        with self._engine.begin() as connection:
            found = {
                (Account(account), Subject(*rest[:-2])): Value(int(rest[-2]), int(rest[-1]))
                for account, *rest in connection.execute(query)
            }
        return {key: value for key, value in found.items() if any(value)}

    def of_request(self, request_id: str, tenant: str) -> list[tuple[int, Posting]]:
        """A request's postings, added up, by hour since 1970."""
        table = postings
        keys = [table.c.hour, table.c.account, *(table.c[name] for name in Subject._fields)]
        query = select(*keys, whole_sum(table.c.amount_nusd), whole_sum(table.c.carbon_ug)).group_by(*keys)
        query = query.where(table.c.request_id == request_id, table.c.tenant == tenant).order_by(*keys)
        with self._engine.begin() as connection:
            return [
                (hour, Posting(Account(account), Subject(*rest[:-2]), Value(int(rest[-2]), int(rest[-1]))))
                for hour, account, *rest in connection.execute(query)
            ]

    def paid(self, grouping: Grouping, from_hour: int | None, to_hour: int | None) -> list[PaidHour]:
        """What workers were paid for in the hours [from, to), by hour and what the grouping says of hardware."""
        table = worker_hours
        asked = {*grouping.names, *grouping.filters}
        named = [table.c[name] if name in asked else literal("") for name in PaidHour._fields[1:-1]]
        keys = [table.c.hour, *(each.label(name) for name, each in zip(PaidHour._fields[1:-1], named, strict=True))]
        query = select(*keys, whole_sum(table.c.paid_ns).label("paid_ns")).group_by(*keys)
        if from_hour is not None:
            query = query.where(table.c.hour >= from_hour)
        if to_hour is not None:
            query = query.where(table.c.hour < to_hour)
        with self._engine.begin() as connection:
            found = connection.execute(query)
            return [PaidHour(row.hour, row.accelerator, row.worker, row.pool, int(row.paid_ns)) for row in found]

    def unbalanced(self, from_hour: int, to_hour: int) -> list[tuple[str, int]]:
        """Transactions of some hours whose amounts do not come to 0, with what they come to."""
        table = postings
        total = whole_sum(table.c.amount_nusd)
        query = select(table.c.transaction_id, total).group_by(table.c.transaction_id).having(total != 0)
        with self._engine.begin() as connection:
            found = connection.execute(query.where(table.c.hour >= from_hour, table.c.hour < to_hour))
            return [(transaction_id, int(nusd)) for transaction_id, nusd in found]

    def accrued(self, hour: int) -> int:
        """Use and energy that usage has of an hour, nano-dollars."""
        table = schema.usage
        total = whole_sum(table.c.use_cost_nusd + table.c.energy_cost_nusd)
        within = (table.c.minute >= hour * _MINUTES) & (table.c.minute < (hour + 1) * _MINUTES)
        with self._engine.begin() as connection:
            return int(connection.execute(select(total).where(within)).scalar_one() or 0)

    def accrued_by_worker(self, hour: int) -> list[Posting]:
        """The same by worker, as postings that the bill's differences add to."""
        table = schema.usage
        by = (table.c.accelerator, table.c.worker, table.c.pool)
        sums = (whole_sum(table.c.use_cost_nusd), whole_sum(table.c.energy_cost_nusd))
        within = (table.c.minute >= hour * _MINUTES) & (table.c.minute < (hour + 1) * _MINUTES)
        found = []
        with self._engine.begin() as connection:
            for accelerator, worker, pool, use, energy in connection.execute(
                select(*by, *sums).where(within).group_by(*by)
            ):
                subject = Subject(accelerator=accelerator, worker=worker, pool=pool)
                found += [
                    Posting(Account.USE, subject, Value(int(use))),
                    Posting(Account.ENERGY, subject, Value(int(energy))),
                ]
        return found

    def volumes(self, from_minute: int, to_minute: int) -> list[tuple[str, str, str, tuple[int, int, int]]]:
        """Tokens of each tenant, model and class between two minutes: uncached input, cached input, output."""
        with self._engine.begin() as connection:
            table = usage_between(from_minute, to_minute, rolled_before(connection))
            by = (table.c.tenant, table.c.model, table.c.slo_class)
            sums = (
                whole_sum(table.c.prompt_tokens - table.c.cached_prompt_tokens),
                whole_sum(table.c.cached_prompt_tokens),
                whole_sum(table.c.delivered_tokens),
            )
            found = connection.execute(select(*by, *sums).group_by(*by).order_by(*by))
            return [(tenant, model, slo, (int(a), int(b), int(c))) for tenant, model, slo, a, b, c in found]

    def first_minute(self) -> int | None:
        """Of all usage; None where there is none."""
        with self._engine.begin() as connection:
            found: int | None = connection.execute(select(func.min(schema.usage.c.minute))).scalar_one()
            return found


class BillWriter:
    """Prepared statements for one database."""

    def __init__(self, database: Database) -> None:
        dialect = database.writer.dialect
        self._put_worker_hours = upsert(dialect, worker_hours)
        self._put_hours = upsert(dialect, bill_hours)
        self._add_postings = Bulk(dialect, postings)

    def put_worker_hours(self, transaction: Transaction, hours: Iterable[WorkerHour]) -> None:
        self._put_worker_hours.write(
            transaction.connection,
            [
                (
                    each.hour,
                    *each.start,
                    each.pool,
                    each.accelerator,
                    each.paid_ns,
                    each.warm_up_ns,
                    each.energy_uj,
                    each.heard_unix_ms,
                    each.heard_energy_uj,
                )
                for each in hours
            ],
        )

    def put_hours(self, transaction: Transaction, hours: Iterable[BillHour]) -> None:
        self._put_hours.write(
            transaction.connection,
            [(each.hour, each.first_line, each.last_line, each.settled_line, each.settled_unix_ms) for each in hours],
        )

    def post(
        self,
        transaction: Transaction,
        kind: str,
        hour: int,
        transactions: Mapping[str, Sequence[Posting]],
        *,
        now_unix_ms: int,
    ) -> None:
        """Appends transactions, by id."""
        self._add_postings.write(
            transaction.connection,
            [
                (now_unix_ms, transaction_id, kind, hour, each.account.value, *each.subject, *each.value)
                for transaction_id, some in transactions.items()
                for each in some
            ],
        )


def _dated_in(hour: BillHour) -> ColumnElement[bool]:
    lines = schema.entries
    return (
        (lines.c.id >= hour.first_line)
        & (lines.c.id <= hour.last_line)
        & (lines.c.minute >= hour.hour * _MINUTES)
        & (lines.c.minute < (hour.hour + 1) * _MINUTES)
    )


def _all_equal(left: FromClause, right: FromClause, names: Sequence[str]) -> ColumnElement[bool]:
    return and_(*(left.c[name] == right.c[name] for name in names))
