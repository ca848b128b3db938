"""The tables of the books. Portable: integers of 64 bits, text, doubles and booleans; no engine's own types.
What is changed here is also written as a revision: docs/decisions/0032-alembic-and-shared-books.md says how. PostgreSQL
has `requests`, `segments` and `entries` parted by month, see months.py.

publishers   high-water mark per shard, publisher and epoch, written with the effect of what it counts
positions    how far each durable reader's stream is booked, written with the effect as well
requests     one row per request: who, what, admission, end
segments     one row per request and place: what was made there, what is booked
entries      the ledger, append-only
usage        entries added up per minute and dimension, so that questions are answered without reading the ledger
usage_hours, rolled  the same by the hour, and which hours are, see hours.py
dropped      sums of lines that are kept no longer, see dropped.py
tenants      what each tenant was billed in all, and its budget
price_books  every price book that is known, by label
reratings    that requests of some time are priced by the books as known later, and whether all were settled so
budgets, budget_accounts, leases, credit_holders, closed_funders, funded_requests  credit, see credit.py
holdings     which meters are there, and which one leads, until when they do without renewing, see holding.py
shards       who books which partitions of tenants, see shards.py
state        one row: which meter does what is nobody's partition; a version that programs from before Alembic refuse
"""

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, String, Table, Text

from services.meter.core.amounts import Amounts
from services.meter.core.usage import DIMENSIONS

metadata = MetaData()


def text(name: str, *, key: bool = False) -> Column[str]:
    """A text that is always there."""
    return Column(name, String, primary_key=key, nullable=False)


def integer(name: str, *, key: bool = False) -> Column[int]:
    """A 64-bit integer that is always there, and that no database numbers."""
    return Column(name, BigInteger, primary_key=key, nullable=False, autoincrement=False)


def _amounts() -> list[Column[int]]:
    return [integer(name) for name in Amounts._fields]


publishers = Table(
    "publishers",
    metadata,
    integer("shard", key=True),
    text("publisher", key=True),
    text("epoch", key=True),
    integer("high_water"),
    Column("missing", Text, nullable=False),  # ranges below the mark: "5-6,9-12"
    integer("changed_unix_ms"),
    integer("tokens"),  # in the events that were booked; -1: not known
)

positions = Table(
    "positions",
    metadata,
    text("durable", key=True),
    integer("stream_sequence"),
)

requests = Table(
    "requests",
    metadata,
    text("request_id", key=True),
    text("tenant", key=True),
    text("workload"),
    text("model"),
    text("slo_class"),
    # Admission: all empty or 0 until a router said.
    integer("admitted_unix_ms"),
    text("admitted_by"),
    text("admitted_price_book"),
    text("admitted_plan"),
    text("caller_key"),  # its name
    text("caller_team"),
    text("session_id"),
    # End: all empty, 0 or false until a deliverer said.
    Column("finished", Boolean, nullable=False),
    Column("delivered", Text, nullable=False),
    integer("delivered_end"),
    integer("finished_unix_ms"),
    text("finished_by"),
    text("outcome"),
    text("worker"),
    text("pool"),
    text("accelerator"),
    integer("prompt_tokens"),
    integer("cached_prompt_tokens"),
    Column("ttft_s", Double, nullable=False),
    Column("tpot_s", Double, nullable=False),
    Column("e2e_s", Double, nullable=False),
    Column("slo_met", Boolean, nullable=False),
    text("trace_id"),
    integer("finish_admitted_unix_ms"),
    text("price_book"),
    text("plan"),
)

segments = Table(
    "segments",
    metadata,
    text("request_id", key=True),
    text("tenant", key=True),
    text("worker", key=True),
    text("pool", key=True),
    text("accelerator", key=True),
    Column("generated", Text, nullable=False),
    integer("worker_prompt_tokens"),
    integer("worker_cached_prompt_tokens"),
    integer("rate_nusd_per_hour"),
    integer("tariff_nusd_per_kwh"),
    integer("minute"),
    Column("earlier", Text, nullable=False),  # JSON {minute: amounts}; empty when all is dated at `minute`
    *_amounts(),
    sqlite_with_rowid=False,
)

entries = Table(
    "entries",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    integer("booked_unix_ms"),
    text("request_id"),
    text("tenant"),
    text("worker"),
    text("pool"),
    text("accelerator"),
    integer("minute"),
    *_amounts(),
    Index("entries_by_request", "request_id"),
)

usage = Table(
    "usage",
    metadata,
    integer("minute", key=True),
    *(text(name, key=True) for name in DIMENSIONS),
    *_amounts(),
    sqlite_with_rowid=False,
)

tenants = Table(
    "tenants",
    metadata,
    text("tenant", key=True),
    integer("spent_nusd"),
    Column("limit_nusd", BigInteger, nullable=True),  # null: unlimited
    integer("budgeted_unix_ms"),  # when its budget was set last; 0: never
)

price_books = Table(
    "price_books",
    metadata,
    text("label", key=True),
    Column("body", Text, nullable=False),
    integer("first_unix_ms"),  # from when it is in force
    integer("recorded_unix_ms"),
)

reratings = Table(
    "reratings",
    metadata,
    text("rerating", key=True),
    integer("from_unix_ms"),
    integer("to_unix_ms"),  # 0: no end
    integer("recorded_unix_ms"),
    Column("finished", Boolean, nullable=False),
)

state = Table(
    "state",
    metadata,
    integer("id", key=True),
    integer("schema_version"),
    text("writer"),
)

holdings = Table(
    "holdings",
    metadata,
    text("what", key=True),
    text("writer"),
    integer("until_unix_ms"),  # by the server's clock; others may take over after it
)
