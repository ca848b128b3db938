"""The writing side of the store: what was booked before, and transactions that book more.

In: entries, touched requests and marks of one batch of events. Out: rows, written together or not at all. Called from
one thread. One meter writes a set of books: `Books` takes them over when it opens, and from then on the transactions of
a meter that had them before fail.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from sqlalchemy import Connection, Table, delete, func, select, update

from services.mesh.errors import InvariantBroken
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import OpenedBook, Rerating
from services.meter.core.amounts import Amounts
from services.meter.core.budgets import Credit
from services.meter.core.conservation import Audited
from services.meter.core.ledger import Entry
from services.meter.core.marks import Mark, Source
from services.meter.core.requests import Key, Request
from services.meter.core.usage import DIMENSIONS, MINUTES_BY_UNIT, UsageKey, spent_by_tenant
from services.meter.store import hours, rows, schema
from services.meter.store.audit import audited
from services.meter.store.bulk import Bulk, upsert
from services.meter.store.credit import CreditStore
from services.meter.store.database import Database
from services.meter.store.dropped import DETAIL, Dropped, all_dropped, hour_of, put_hour
from services.meter.store.hours import next_hour, rolled_before, usage_hours
from services.meter.store.sums import whole_sum

_KEYS_PER_QUERY: Final = 500
_MINUTES: Final = MINUTES_BY_UNIT["hour"]


class Books:
    """The books in `database`, written by `writer` from now on."""

    def __init__(self, database: Database, writer: str) -> None:
        self._engine = database.writer
        self._writer = writer
        dialect = self._engine.dialect
        self.put_marks = upsert(dialect, schema.publishers)
        self.put_positions = upsert(dialect, schema.positions)
        self.put_requests = upsert(dialect, schema.requests)
        self.put_segments = upsert(dialect, schema.segments)
        self.add_entries = Bulk(dialect, schema.entries)
        self.add_usage = upsert(dialect, schema.usage, added=Amounts._fields)
        self.add_spent = upsert(dialect, schema.tenants, added=("spent_nusd",), kept=("limit_nusd", "budgeted_unix_ms"))
        self.add_usage_hours = upsert(dialect, usage_hours, added=Amounts._fields)
        self.put_reratings = upsert(dialect, schema.reratings)
        self.put_limits = upsert(dialect, schema.tenants, kept=("spent_nusd",))
        with self._engine.begin() as connection:
            connection.execute(update(schema.state).values(writer=writer))
            self.rolled_before = rolled_before(connection)  # hours; what is booked in them is added to them as well
            self.detail_from = hour_of(connection, DETAIL)  # hours; of those below only sums are kept

    @contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """Commits what the block wrote; an exception in it undoes everything.

        Raises:
            InvariantBroken: another meter has taken over these books.
        """
        with self._engine.begin() as connection:
            writer = connection.execute(select(schema.state.c.writer).with_for_update()).scalar_one()
            if writer != self._writer:
                raise InvariantBroken(f"the books were taken over by {writer}, {self._writer} writes no more")
            yield Transaction(connection, self)


class Transaction:
    """What one batch reads and writes."""

    def __init__(self, connection: Connection, books: Books) -> None:
        self._connection = connection
        self._books = books
        self.credit = CreditStore(connection)

    @property
    def connection(self) -> Connection:
        return self._connection

    def latest_marks(self, most: int) -> list[tuple[Source, Mark]]:
        """The marks that were changed last, the latest last; at most so many."""
        latest = select(schema.publishers).order_by(schema.publishers.c.changed_unix_ms.desc()).limit(most)
        return [rows.mark_of(row) for row in self._connection.execute(latest).mappings()][::-1]

    def marks(self, sources: Sequence[Source]) -> list[tuple[Source, Mark]]:
        """Those of the publishers' marks that are stored."""
        table, wanted = schema.publishers, set(sources)
        names = sorted({publisher for publisher, _ in wanted})
        found: list[tuple[Source, Mark]] = []
        for start in range(0, len(names), _KEYS_PER_QUERY):
            some = select(table).where(table.c.publisher.in_(names[start : start + _KEYS_PER_QUERY]))
            found += map(rows.mark_of, self._connection.execute(some).mappings())
        return [each for each in found if each[0] in wanted]

    def forget_marks(self, before_unix_ms: int) -> None:
        """Drops marks of publishers, and dead holders of credit, of which the streams hold nothing any more."""
        self._connection.execute(delete(schema.publishers).where(schema.publishers.c.changed_unix_ms < before_unix_ms))
        self.credit.forget(before_unix_ms)

    def requests(self, keys: Iterable[Key]) -> list[Request]:
        """Those of the requests that are stored, with their segments."""
        wanted = set(keys)
        found: dict[Key, Request] = {}
        for row in self._select(schema.requests, wanted):
            request = rows.request_of(row)
            if request.key in wanted:
                found[request.key] = request
        for row in self._select(schema.segments, found):
            segment = rows.segment_of(row)
            if owner := found.get((row["request_id"], row["tenant"])):
                owner.segments[segment.place] = segment
        return list(found.values())

    def write(
        self,
        entries: Sequence[Entry],
        usage: Mapping[UsageKey, Amounts],
        requests: Sequence[Request],
        marks: Sequence[tuple[Source, Mark]],
        now_unix_ms: int,
        *,
        positions: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Appends the entries, adds their `usage`, and stores what they follow from: requests, marks, positions."""
        connection, books = self._connection, self._books
        books.put_marks.write(connection, [rows.of_mark(source, seen, now_unix_ms) for source, seen in marks])
        books.put_positions.write(connection, list(positions.items()))
        books.put_requests.write(connection, [rows.of_request(each) for each in requests if each.reported])
        books.put_segments.write(
            connection,
            [rows.of_segment(each.key, segment) for each in requests for segment in each.segments.values()],
        )
        books.add_entries.write(
            connection,
            [(now_unix_ms, each.request_id, each.tenant, *each.place, each.minute, *each.amounts) for each in entries],
        )
        books.add_usage.write(connection, [(*key, *amounts) for key, amounts in usage.items()])
        late = [(key.minute // _MINUTES, *key[1:], *amounts) for key, amounts in usage.items() if self._rolled(key)]
        books.add_usage_hours.write(connection, late)
        books.add_spent.write(
            connection, [(tenant, amount_nusd, None, 0) for tenant, amount_nusd in spent_by_tenant(usage).items()]
        )
        for each in requests:
            each.reported = False

    def audited(self, keys: Collection[Key]) -> dict[Key, Audited]:
        """What the books say of the requests, each with the ledger's lines."""
        return audited(self._connection, keys)

    def correct(self, request: Request, entries: Sequence[Entry], now_unix_ms: int) -> None:
        """Appends the entries and stores the request as it is now; `usage` and `tenants` are left to `add_up_again`."""
        connection, (request_id, tenant) = self._connection, request.key
        table = schema.segments
        connection.execute(delete(table).where(table.c.request_id == request_id, table.c.tenant == tenant))
        request.reported = True
        self.write(entries, {}, [request], [], now_unix_ms)

    def add_up_again(self, tenant: str) -> int:
        """Makes a tenant's usage and its spending what its ledger's lines come to; what it has spent, nano-dollars.

        Of hours whose detail is dropped, usage is what is left to go by.
        """
        entries, requests, usage, tenants = schema.entries, schema.requests, schema.usage, schema.tenants
        # The place is the line's own; the rest of the dimensions is the request's.
        own = [name for name in DIMENSIONS if name in entries.c]
        keys = [
            entries.c.minute,
            *(entries.c[name] if name in own else func.coalesce(requests.c[name], "") for name in DIMENSIONS),
        ]
        sums = [whole_sum(entries.c[name]) for name in Amounts._fields]
        joined = entries.join(
            requests,
            (entries.c.request_id == requests.c.request_id) & (entries.c.tenant == requests.c.tenant),
            isouter=True,
        )
        first_minute = self._books.detail_from * _MINUTES
        mine = (entries.c.tenant == tenant) & (entries.c.minute >= first_minute)
        query = select(*keys, *sums).select_from(joined).where(mine).group_by(*keys)
        found = [
            (*row[: len(keys)], *(int(each) for each in row[len(keys) :]))  # sums are decimals in some databases
            for row in self._connection.execute(query)
        ]
        self._connection.execute(delete(usage).where(usage.c.tenant == tenant, usage.c.minute >= first_minute))
        self._books.add_usage.write(self._connection, found)
        hours.add_up_again(self._connection, tenant, self._books.rolled_before)
        price = select(whole_sum(usage.c.price_nusd)).where(usage.c.tenant == tenant)
        spent_nusd = int(self._connection.execute(price).scalar_one() or 0)
        self._connection.execute(update(tenants).where(tenants.c.tenant == tenant).values(spent_nusd=0))
        self._books.add_spent.write(self._connection, [(tenant, spent_nusd, None, 0)])
        return spent_nusd

    def keep_detail_from(self, hour: int) -> None:
        """Says that of the hours below only sums are kept."""
        put_hour(self._connection, DETAIL, hour)

    def dropped(self) -> Dropped:
        """What was dropped in all."""
        return all_dropped(self._connection)

    def roll_up(self, before_hour: int) -> int | None:
        """Adds the next hour of usage up that ended before `before_hour`; which one, None where there was none."""
        hour = next_hour(self._connection, self._books.rolled_before)
        if hour is None or hour >= before_hour:
            return None
        hours.roll_up(self._connection, hour)
        return hour

    def _rolled(self, key: UsageKey) -> bool:
        return key.minute < self._books.rolled_before * _MINUTES

    def credits(self) -> list[tuple[Credit, bool]]:
        """Every tenant's credit, and whether its budget was ever set."""
        return [
            (Credit(row.tenant, row.limit_nusd, row.spent_nusd), bool(row.budgeted_unix_ms))
            for row in self._connection.execute(select(schema.tenants))
        ]

    def spent_nusd(self, tenant: str) -> int:
        """What a tenant was billed in all."""
        tenants = schema.tenants
        found = self._connection.execute(select(tenants.c.spent_nusd).where(tenants.c.tenant == tenant)).scalar()
        return int(found or 0)

    def set_limit(self, tenant: str, limit_nusd: int | None, now_unix_ms: int) -> None:
        """Sets a tenant's budget; None lifts it."""
        self._books.put_limits.write(self._connection, [(tenant, 0, limit_nusd, now_unix_ms)])

    def price_books(self) -> list[OpenedBook]:
        """Every price book that is known, in the order in which they become effective."""
        table = schema.price_books
        query = select(table.c.body, table.c.first_unix_ms, table.c.recorded_unix_ms).order_by(table.c.first_unix_ms)
        return [
            OpenedBook(PriceBook.model_validate_json(body), effective_unix_ms, recorded_unix_ms or effective_unix_ms)
            for body, effective_unix_ms, recorded_unix_ms in self._connection.execute(query)
        ]

    def add_price_book(self, opened: OpenedBook) -> None:
        row = {
            "label": opened.book.label,
            "body": opened.book.model_dump_json(),
            "first_unix_ms": opened.effective_unix_ms,
            "recorded_unix_ms": opened.recorded_unix_ms,
        }
        self._connection.execute(schema.price_books.insert(), [row])

    def reratings(self, *, unfinished: bool = False) -> list[Rerating]:
        """Those that are known; or of these the ones that not all requests were settled under."""
        table = schema.reratings
        query = select(table).order_by(table.c.recorded_unix_ms)
        if unfinished:
            query = query.where(table.c.finished.is_(False))
        return [
            Rerating(row.rerating, row.from_unix_ms, row.to_unix_ms, row.recorded_unix_ms)
            for row in self._connection.execute(query)
        ]

    def put_rerating(self, rerating: Rerating, *, finished: bool) -> None:
        values = (rerating.rerating, rerating.from_unix_ms, rerating.to_unix_ms, rerating.recorded_unix_ms, finished)
        self._books.put_reratings.write(self._connection, [values])

    def _select(self, table: Table, keys: Iterable[Key]) -> Iterator[rows.Stored]:
        """Rows with the keys' request ids; the same id of another tenant comes along."""
        ids = sorted({request_id for request_id, _ in keys})
        for start in range(0, len(ids), _KEYS_PER_QUERY):
            some = select(table).where(table.c.request_id.in_(ids[start : start + _KEYS_PER_QUERY]))
            yield from self._connection.execute(some).mappings()
