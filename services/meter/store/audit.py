"""The books as the audit reads them, a bounded part at a time, each part in one snapshot.

In: where the last part ended. Out: requests with the ledger's lines of them, and sums by tenant. A round over all
requests goes in the order of their ids; the ledger's newest lines say which requests to look at before their turn.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, func, select, tuple_

from services.meter.core.amounts import NOTHING, Amounts, Place
from services.meter.core.conservation import Audited
from services.meter.core.requests import Key, Request
from services.meter.store import rows, schema
from services.meter.store.database import Database
from services.meter.store.dropped import dropped_by_tenant, dropped_lines
from services.meter.store.months import hold_months
from services.meter.store.sums import whole_sum

_IDS_PER_QUERY: Final = 500
_NAMES: Final = Amounts._fields


@dataclass(slots=True)
class Summing:
    """The ledger's lines added up so far, by tenant.

    Attributes:
        through: the id of the last one.
        dropped: lines that were dropped when it began.
    """

    through: int = 0
    dropped: int = 0
    lines: dict[str, Amounts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sums:
    """One tenant's totals in one snapshot; `lines` with those that were dropped."""

    lines: Amounts
    usage: Amounts
    spent_nusd: int


def audited(connection: Connection, keys: Collection[Key]) -> dict[Key, Audited]:
    """What the books say of the requests, with the ledger's lines; keys that are nowhere have an empty answer."""
    requests: dict[Key, Request] = {}
    entered: dict[Key, dict[Place, dict[int, Amounts]]] = {key: {} for key in keys}
    ids = sorted({request_id for request_id, _ in keys})
    for start in range(0, len(ids), _IDS_PER_QUERY):
        some = ids[start : start + _IDS_PER_QUERY]
        for row in connection.execute(select(schema.requests).where(schema.requests.c.request_id.in_(some))).mappings():
            request = rows.request_of(row)
            requests[request.key] = request
        for row in connection.execute(select(schema.segments).where(schema.segments.c.request_id.in_(some))).mappings():
            if owner := requests.get((row["request_id"], row["tenant"])):
                segment = rows.segment_of(row)
                owner.segments[segment.place] = segment
        lines = schema.entries
        by = [lines.c[name] for name in ("request_id", "tenant", "worker", "pool", "accelerator", "minute")]
        query = select(*by, *(whole_sum(lines.c[name]).label(name) for name in _NAMES))
        for row in connection.execute(query.where(lines.c.request_id.in_(some)).group_by(*by)).mappings():
            if (dated := entered.get((row["request_id"], row["tenant"]))) is not None:
                place = Place(row["worker"], row["pool"], row["accelerator"])
                dated.setdefault(place, {})[row["minute"]] = rows.amounts_of(row)
    return {key: Audited(requests.get(key), entered[key]) for key in keys}


class Audits:
    """Reads the books in `database`. May be called from several threads."""

    def __init__(self, database: Database) -> None:
        self._engine = database.reader

    def of(self, keys: Collection[Key]) -> dict[Key, Audited]:
        with self._snapshot() as connection:
            return audited(connection, keys)

    def after(self, last: Key, limit: int) -> dict[Key, Audited]:
        """The next requests in the order of their keys, at most `limit`; fewer when the last was among them."""
        table = schema.requests
        keys = (table.c.request_id, table.c.tenant)
        query = select(*keys).where(tuple_(*keys) > last).order_by(*keys).limit(limit)
        with self._snapshot() as connection:
            found = [(row.request_id, row.tenant) for row in connection.execute(query)]
            return audited(connection, found)

    def entered_after(self, last_id: int, limit: int) -> tuple[int, dict[Key, Audited]]:
        """The requests of the ledger's lines behind `last_id`, of at most `limit` of these; the last one's id."""
        table = schema.entries
        query = (
            select(table.c.id, table.c.request_id, table.c.tenant)
            .where(table.c.id > last_id)
            .order_by(table.c.id)
            .limit(limit)
        )
        with self._snapshot() as connection:
            found = connection.execute(query).all()
            if not found:
                return last_id, {}
            return found[-1].id, audited(connection, {(row.request_id, row.tenant) for row in found})

    def last_line(self) -> int:
        """The id of the ledger's newest line; 0 when it has none."""
        with self._snapshot() as connection:
            return connection.execute(select(func.max(schema.entries.c.id))).scalar_one() or 0

    def add_up(self, summing: Summing, limit: int) -> dict[str, Sums] | None:
        """Adds the next `limit` lines; when they were the last ones, each tenant's totals."""
        lines, usage, tenants = schema.entries, schema.usage, schema.tenants
        with self._snapshot() as connection:
            gone = dropped_lines(connection)
            if gone != summing.dropped:  # lines that were added up already may be among them
                summing.through, summing.dropped, summing.lines = 0, gone, {}
            last = connection.execute(select(func.max(lines.c.id))).scalar_one() or 0
            through = min(last, summing.through + limit)
            within = (lines.c.id > summing.through) & (lines.c.id <= through)
            query = select(lines.c.tenant, *(whole_sum(lines.c[name]).label(name) for name in _NAMES))
            for row in connection.execute(query.where(within).group_by(lines.c.tenant)).mappings():
                before = summing.lines.get(row["tenant"], NOTHING)
                summing.lines[row["tenant"]] = before.plus(rows.amounts_of(row))
            summing.through = through
            if through < last:
                return None
            for tenant, amounts in dropped_by_tenant(connection).items():
                summing.lines[tenant] = summing.lines.get(tenant, NOTHING).plus(amounts)
            used_query = select(usage.c.tenant, *(whole_sum(usage.c[name]).label(name) for name in _NAMES))
            used = {
                row["tenant"]: rows.amounts_of(row)
                for row in connection.execute(used_query.group_by(usage.c.tenant)).mappings()
            }
            spent = {row.tenant: row.spent_nusd for row in connection.execute(select(tenants))}
        return {
            tenant: Sums(summing.lines.get(tenant, NOTHING), used.get(tenant, NOTHING), spent.get(tenant, 0))
            for tenant in summing.lines.keys() | used.keys() | spent.keys()
        }

    @contextmanager
    def _snapshot(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":  # SQLite's transactions are snapshots as they are
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                hold_months(connection)
                yield connection
