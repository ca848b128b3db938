"""What was dropped of the detail: the table that has its sums, and from which hour on detail is there.

In: nothing beyond the tables. Out: sums by tenant, hours since 1970. `dropping.py` writes them.
"""

from typing import Final, NamedTuple

from sqlalchemy import Connection, Table, func, select

from services.meter.core.amounts import NOTHING, Amounts
from services.meter.store.bulk import upsert
from services.meter.store.hours import rolled
from services.meter.store.schema import integer, metadata, text
from services.meter.store.sums import whole_sum

# In `rolled`: the hours below which detail is not kept, and below which requests and postings are gone.
DETAIL: Final = "detail"
REQUESTS: Final = "dropped_requests"
POSTINGS: Final = "merged_postings"

dropped = Table(
    "dropped",
    metadata,
    text("tenant", key=True),
    integer("lines"),  # of the ledger, and what these came to
    *(integer(name) for name in Amounts._fields),
)


class Dropped(NamedTuple):
    """All that was dropped: lines of the ledger, and what these came to."""

    lines: int
    amounts: Amounts


NOTHING_DROPPED: Final = Dropped(0, NOTHING)


def hour_of(connection: Connection, what: str) -> int:
    """0 where nothing was dropped yet."""
    return connection.execute(select(rolled.c.before_hour).where(rolled.c.what == what)).scalar() or 0


def put_hour(connection: Connection, what: str, hour: int) -> None:
    upsert(connection.dialect, rolled).write(connection, [(what, hour)])


def dropped_lines(connection: Connection) -> int:
    """How many in all."""
    return connection.execute(select(whole_sum(dropped.c.lines))).scalar() or 0


def dropped_by_tenant(connection: Connection) -> dict[str, Amounts]:
    query = select(dropped.c.tenant, *(dropped.c[name] for name in Amounts._fields))
    return {tenant: Amounts(*amounts) for tenant, *amounts in connection.execute(query)}


def all_dropped(connection: Connection) -> Dropped:
    lines, *amounts = connection.execute(
        select(*(func.coalesce(whole_sum(dropped.c[name]), 0) for name in ("lines", *Amounts._fields)))
    ).one()
    return Dropped(int(lines), Amounts(*map(int, amounts)))
