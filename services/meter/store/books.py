"""The writing side of the store: what was booked before, and transactions that book more.

In: entries, touched requests and marks of one batch of events. Out: rows, written together or not at all. Called from
one thread.

Two kinds of transactions, each with its fence. Those of a *shard* (`store/shards.py`) book what belongs to its tenants:
they lock its row first, fail when another meter books it now, and say whether another wrote it meanwhile, for then what
is in memory is old. Those of the *house* change what is nobody's partition: they fail when another meter leads now.
"""

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from types import MappingProxyType
from typing import Final

from sqlalchemy import Connection, Table, delete, func, select, update

from services.mesh.errors import InvariantBroken
from services.mesh.partitions import ALL
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import OpenedBook, Rerating
from services.meter.core.amounts import NOTHING, Amounts
from services.meter.core.budgets import Credit
from services.meter.core.conservation import Audited
from services.meter.core.ledger import Entry
from services.meter.core.marks import Mark, Source
from services.meter.core.requests import Key, Request
from services.meter.core.usage import DIMENSIONS, MINUTES_BY_UNIT, UsageKey, spent_by_tenant
from services.meter.store import hours, rows, schema
from services.meter.store.audit import audited
from services.meter.store.bulk import Bulk, in_order, upsert
from services.meter.store.credit import CreditStore
from services.meter.store.database import Database
from services.meter.store.dropped import DETAIL, Dropped, all_dropped, dropped_by_tenant, hour_of, put_hour
from services.meter.store.hours import next_hour, rolled_before, usage_hours
from services.meter.store.shards import FIRST, Shard, all_shards, durable_of, parsed, shards, split_off, written
from services.meter.store.sums import whole_sum

_KEYS_PER_QUERY: Final = 500
_MINUTES: Final = MINUTES_BY_UNIT["hour"]


class Role(Enum):
    """What a meter is to the books that it opens."""

    SOLE = auto()  # from now on it books the shard, and leads; whoever did before does no more
    HOLDER = auto()  # it books the shard, as the shard's row says
    LEADER = auto()  # it leads, as `state` says; a guest of every shard
    GUEST = auto()  # it changes single things of a shard that another books


class Books:
    """One shard of the books in `database`, and the house, as `writer` writes them."""

    def __init__(self, database: Database, writer: str, shard: int = FIRST, role: Role = Role.SOLE) -> None:
        self._engine = database.writer
        self._writer = writer
        self.shard = shard
        self._role = role
        # Of this object, not of the process: what is in memory is kept by it.
        self._author = f"{writer}#{secrets.token_hex(4)}"
        self.in_order = in_order(self._engine.dialect)
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
            all_shards(connection)
            if role is Role.SOLE:
                connection.execute(update(schema.state).values(writer=writer))
                connection.execute(update(shards).where(shards.c.shard == shard).values(writer=writer))
            self.rolled_before = rolled_before(connection)  # hours; what is booked in them is added to them as well
            self.detail_from = hour_of(connection, DETAIL)  # hours; of those below only sums are kept

    @contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """Of the shard. Commits what the block wrote; an exception in it undoes everything.

        Raises:
            InvariantBroken: another meter books this shard now.
        """
        mine = shards.c.shard == self.shard
        with self._engine.begin() as connection:
            row = connection.execute(select(shards).where(mine).with_for_update()).one()
            if row.writer != self._writer and self._role in (Role.SOLE, Role.HOLDER):
                raise InvariantBroken(
                    f"the books were taken over by {row.writer or 'nobody'}, {self._writer} writes shard"
                    f" {self.shard} no more"
                )
            transaction = Transaction(connection, self, parsed(row.partitions))
            if row.author != self._author:
                connection.execute(update(shards).where(mine).values(author=self._author))
                self.rolled_before = rolled_before(connection)
                self.detail_from = hour_of(connection, DETAIL)
                transaction.others_wrote = True
            yield transaction

    @contextmanager
    def house(self, *, tell: bool = False, alone: bool = False) -> Iterator["Transaction"]:
        """Of what is nobody's partition. Commits what the block wrote; an exception in it undoes everything.

        Args:
            alone: nobody who books a shard is in a transaction meanwhile.
            tell: as `alone`, and they read anew what they keep in memory.

        Raises:
            InvariantBroken: another meter leads now.
        """
        with self._engine.begin() as connection:
            writer = connection.execute(select(schema.state.c.writer).with_for_update()).scalar_one()
            if writer != self._writer:
                raise InvariantBroken(f"the books were taken over by {writer}, {self._writer} writes no more")
            if tell or alone:
                # In order: two that lock all of them must do so in the same.
                connection.execute(select(shards.c.shard).order_by(shards.c.shard).with_for_update()).all()
            if tell:
                connection.execute(update(shards).where(shards.c.author != self._author).values(author=""))
            yield Transaction(connection, self)

    @contextmanager
    def reading(self) -> Iterator["Transaction"]:
        """To look at the shard as it is, whoever books it; nothing may be written."""
        with self._engine.begin() as connection:
            found = connection.execute(select(shards.c.partitions).where(shards.c.shard == self.shard)).scalar_one()
            yield Transaction(connection, self, parsed(found))


class Transaction:
    """What one batch reads and writes.

    Attributes:
        partitions: of the shard.
        others_wrote: since the last transaction of these `Books`.
    """

    def __init__(self, connection: Connection, books: Books, partitions: frozenset[int] = ALL) -> None:
        self._connection = connection
        self._books = books
        self.partitions = partitions
        self.others_wrote = False
        self.credit = CreditStore(connection, partitions)

    @property
    def connection(self) -> Connection:
        return self._connection

    def shards(self) -> list[Shard]:
        return all_shards(self._connection)

    def latest_marks(self, most: int) -> list[tuple[Source, Mark]]:
        """The marks that were changed last, the latest last; at most so many."""
        table = schema.publishers
        mine = select(table).where(table.c.shard == self._books.shard)
        latest = mine.order_by(table.c.changed_unix_ms.desc()).limit(most)
        return [rows.mark_of(row) for row in self._connection.execute(latest).mappings()][::-1]

    def marks(self, sources: Sequence[Source]) -> list[tuple[Source, Mark]]:
        """Those of the publishers' marks that are stored."""
        table, wanted = schema.publishers, set(sources)
        names = sorted({publisher for publisher, _ in wanted})
        found: list[tuple[Source, Mark]] = []
        for start in range(0, len(names), _KEYS_PER_QUERY):
            some = select(table).where(
                table.c.shard == self._books.shard, table.c.publisher.in_(names[start : start + _KEYS_PER_QUERY])
            )
            found += map(rows.mark_of, self._connection.execute(some).mappings())
        return [each for each in found if each[0] in wanted]

    def forget_marks(self, before_unix_ms: int) -> None:
        """Drops marks of publishers in all shards, and dead holders of credit, that the streams hold nothing of."""
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
        books.put_marks.write(
            connection, [rows.of_mark(books.shard, source, seen, now_unix_ms) for source, seen in marks]
        )
        books.put_positions.write(connection, list(positions.items()))
        books.put_requests.write(connection, [rows.of_request(each) for each in requests if each.reported])
        books.put_segments.write(
            connection,
            [rows.of_segment(each.key, segment) for each in requests for segment in each.segments.values()],
        )
        if entries and books.in_order:
            connection.exec_driver_sql(books.in_order)
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

    def give(self, given: frozenset[int], writer: str, durables: Mapping[str, int]) -> int:
        """Has another meter book some partitions, or all of the shard; the shard's number.

        Args:
            durables: positions from which the readers of a new shard begin; all before is booked.
        """
        connection, shard = self._connection, self._books.shard
        mine = shards.c.shard == shard
        if given == self.partitions:
            connection.execute(update(shards).where(mine).values(writer=writer, author=""))
            return shard
        assert given < self.partitions, (given, self.partitions)
        connection.execute(update(shards).where(mine).values(partitions=written(self.partitions - given)))
        number = split_off(connection, shard, given, writer)
        self._books.put_positions.write(
            connection, [(durable_of(name, number), position) for name, position in durables.items()]
        )
        return number

    def correct(self, request: Request, entries: Sequence[Entry], now_unix_ms: int) -> None:
        """Appends the entries and stores the request as it is now; `usage` and `tenants` are left to `add_up_again`."""
        connection, (request_id, tenant) = self._connection, request.key
        table = schema.segments
        connection.execute(delete(table).where(table.c.request_id == request_id, table.c.tenant == tenant))
        request.reported = True
        self.write(entries, {}, [request], [], now_unix_ms)

    def add_up_again(self, tenant: str) -> int:
        """Makes a tenant's usage and its spending what its ledger's lines come to; what it has spent, nano-dollars.

        Of hours whose detail is dropped, its sum alone is known beside usage: what usage lacks of it, or has too much,
        is put on their last minute, on a row that names nothing but the tenant.
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
        lacking = self._lacks_of_dropped(tenant, first_minute)
        if any(lacking):
            nothing_else = (tenant if name == "tenant" else "" for name in DIMENSIONS)
            found.append((first_minute - 1, *nothing_else, *lacking))
        self._books.add_usage.write(self._connection, found)
        hours.add_up_again(self._connection, tenant, self._books.rolled_before)
        price = select(whole_sum(usage.c.price_nusd)).where(usage.c.tenant == tenant)
        spent_nusd = int(self._connection.execute(price).scalar_one() or 0)
        self._connection.execute(update(tenants).where(tenants.c.tenant == tenant).values(spent_nusd=0))
        self._books.add_spent.write(self._connection, [(tenant, spent_nusd, None, 0)])
        return spent_nusd

    def _lacks_of_dropped(self, tenant: str, first_minute: int) -> Amounts:
        """What usage lacks of all before a minute, by the lines that are left and the sum of those that are not."""
        gone = dropped_by_tenant(self._connection).get(tenant, NOTHING) if first_minute else NOTHING
        left, used = (
            rows.amounts_of(
                self._connection.execute(
                    select(*(whole_sum(table.c[name]).label(name) for name in Amounts._fields)).where(
                        table.c.tenant == tenant, table.c.minute < first_minute
                    )
                )
                .mappings()
                .one()
            )
            for table in (schema.entries, schema.usage)
        )
        return gone.plus(left).minus(used)

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
