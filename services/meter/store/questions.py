"""The reading side of the store: usage by any grouping, and one request's bill.

In: a `Grouping` and two times, or a request's id. Out: sums of `Amounts` by group, or the stored request. Each answer
is one snapshot of the books. May be called from several threads.
"""

from sqlalchemy import select

from services.meter.core.amounts import Amounts
from services.meter.core.requests import Request
from services.meter.core.usage import Group, Grouping
from services.meter.store import rows, schema
from services.meter.store.database import Database
from services.meter.store.grouped import amounts_by_group
from services.meter.store.hours import rolled_before, usage_between
from services.meter.store.months import months_there


class Questions:
    """Answers from the books in `database`."""

    def __init__(self, database: Database) -> None:
        self._engine = database.reader

    def usage(
        self, grouping: Grouping, from_minute: int | None, to_minute: int | None, max_rows: int
    ) -> list[tuple[Group, Amounts]]:
        """The sums of each group, ordered by group; at most `max_rows`, and as many tell that there may be more.

        Args:
            from_minute: since 1970, inclusive; None: the beginning.
            to_minute: exclusive; None: no end.
        """
        with self._engine.begin() as connection:
            before_hour = 0 if "minute" in grouping.names else rolled_before(connection)
            query = amounts_by_group(usage_between(from_minute, to_minute, before_hour), grouping)
            query = query.order_by(*(f"group_{name}" for name in grouping.names)).limit(max_rows)
            found = connection.execute(query).mappings().all()
        return [
            (tuple(row[f"group_{name}"] for name in grouping.names), rows.amounts_of(row))
            for row in found
            if row["requests"] is not None  # without groups there is always a row, of nulls where nothing was booked
        ]

    def spent_nusd(self, tenant: str) -> int:
        """What a tenant was billed in all."""
        tenants = schema.tenants
        with self._engine.begin() as connection:
            found = connection.execute(select(tenants.c.spent_nusd).where(tenants.c.tenant == tenant)).scalar()
        return int(found or 0)

    def months(self) -> list[str]:
        """Those that the database keeps detail apart by: "2026-11". None on SQLite."""
        with self._engine.begin() as connection:
            return [f"{month // 12:04}-{month % 12 + 1:02}" for month in months_there(connection)]

    def request(self, request_id: str) -> Request | None:
        """The request, the latest admitted where tenants chose the same id; None when nothing is booked under it."""
        requests, segments = schema.requests, schema.segments
        with self._engine.begin() as connection:
            found = (
                connection.execute(
                    select(requests)
                    .where(requests.c.request_id == request_id)
                    .order_by(requests.c.admitted_unix_ms.desc(), requests.c.tenant)
                    .limit(1)
                )
                .mappings()
                .one_or_none()
            )
            if found is None:
                return None
            request = rows.request_of(found)
            parts = connection.execute(
                select(segments).where(segments.c.request_id == request_id, segments.c.tenant == found["tenant"])
            ).mappings()
            request.segments = {segment.place: segment for segment in map(rows.segment_of, parts)}
        return request
