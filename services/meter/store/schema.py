"""The tables of the books. Portable: integers of 64 bits, text, doubles and booleans; no engine's own types.

publishers   high-water mark per publisher and epoch, written with the effect of what it counts
positions    how far each durable reader's stream is booked, written with the effect as well
requests     one row per request: who, what, admission, end
segments     one row per request and place: what was made there, what is booked
entries      the ledger, append-only
usage        entries added up per minute and dimension, so that questions are answered without reading the ledger
tenants      what each tenant was billed in all, and its budget
price_books  every price book that is known, by label
reratings    that requests of some time are priced by the books as known later, and whether all were settled so
budgets, budget_accounts, leases, credit_holders, closed_funders, funded_requests  credit, see credit.py
state        one row: schema version, and which meter writes these books
"""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, String, Table, Text

from services.meter.core.amounts import Amounts
from services.meter.core.usage import DIMENSIONS

SCHEMA_VERSION: Final = 5
# What brings the tables of a version to the next one, by the version they are at; tables that are new are made anyhow.
UPGRADES: Final = {
    1: tuple(
        f"ALTER TABLE {table} ADD COLUMN measured_energy_uj BIGINT NOT NULL DEFAULT 0"
        for table in ("segments", "entries", "usage")
    ),
    2: (
        "ALTER TABLE publishers ADD COLUMN tokens BIGINT NOT NULL DEFAULT -1",
        "CREATE TABLE positions (durable VARCHAR NOT NULL PRIMARY KEY, stream_sequence BIGINT NOT NULL)",
        "CREATE INDEX entries_by_request ON entries (request_id)",
    ),
    3: ("ALTER TABLE price_books ADD COLUMN recorded_unix_ms BIGINT NOT NULL DEFAULT 0",),
    4: (),
}

metadata = MetaData()


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, String, primary_key=key, nullable=False)


def _integer(name: str, *, key: bool = False) -> Column[int]:
    return Column(name, BigInteger, primary_key=key, nullable=False, autoincrement=False)


def _amounts() -> list[Column[int]]:
    return [_integer(name) for name in Amounts._fields]


publishers = Table(
    "publishers",
    metadata,
    _text("publisher", key=True),
    _text("epoch", key=True),
    _integer("high_water"),
    Column("missing", Text, nullable=False),  # ranges below the mark: "5-6,9-12"
    _integer("changed_unix_ms"),
    _integer("tokens"),  # in the events that were booked; -1: not known
)

positions = Table(
    "positions",
    metadata,
    _text("durable", key=True),
    _integer("stream_sequence"),
)

requests = Table(
    "requests",
    metadata,
    _text("request_id", key=True),
    _text("tenant", key=True),
    _text("workload"),
    _text("model"),
    _text("slo_class"),
    # Admission: all empty or 0 until a router said.
    _integer("admitted_unix_ms"),
    _text("admitted_by"),
    _text("admitted_price_book"),
    _text("admitted_plan"),
    # End: all empty, 0 or false until a deliverer said.
    Column("finished", Boolean, nullable=False),
    Column("delivered", Text, nullable=False),
    _integer("delivered_end"),
    _integer("finished_unix_ms"),
    _text("finished_by"),
    _text("outcome"),
    _text("worker"),
    _text("pool"),
    _text("accelerator"),
    _integer("prompt_tokens"),
    _integer("cached_prompt_tokens"),
    Column("ttft_s", Double, nullable=False),
    Column("tpot_s", Double, nullable=False),
    Column("e2e_s", Double, nullable=False),
    Column("slo_met", Boolean, nullable=False),
    _text("trace_id"),
    _integer("finish_admitted_unix_ms"),
    _text("price_book"),
    _text("plan"),
)

segments = Table(
    "segments",
    metadata,
    _text("request_id", key=True),
    _text("tenant", key=True),
    _text("worker", key=True),
    _text("pool", key=True),
    _text("accelerator", key=True),
    Column("generated", Text, nullable=False),
    _integer("worker_prompt_tokens"),
    _integer("worker_cached_prompt_tokens"),
    _integer("rate_nusd_per_hour"),
    _integer("tariff_nusd_per_kwh"),
    _integer("minute"),
    Column("earlier", Text, nullable=False),  # JSON {minute: amounts}; empty when all is dated at `minute`
    *_amounts(),
    sqlite_with_rowid=False,
)

entries = Table(
    "entries",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    _integer("booked_unix_ms"),
    _text("request_id"),
    _text("tenant"),
    _text("worker"),
    _text("pool"),
    _text("accelerator"),
    _integer("minute"),
    *_amounts(),
    Index("entries_by_request", "request_id"),
)

usage = Table(
    "usage",
    metadata,
    _integer("minute", key=True),
    *(_text(name, key=True) for name in DIMENSIONS),
    *_amounts(),
    sqlite_with_rowid=False,
)

tenants = Table(
    "tenants",
    metadata,
    _text("tenant", key=True),
    _integer("spent_nusd"),
    Column("limit_nusd", BigInteger, nullable=True),  # null: unlimited
    _integer("budgeted_unix_ms"),  # when its budget was set last; 0: never
)

price_books = Table(
    "price_books",
    metadata,
    _text("label", key=True),
    Column("body", Text, nullable=False),
    _integer("first_unix_ms"),  # from when it is in force
    _integer("recorded_unix_ms"),
)

reratings = Table(
    "reratings",
    metadata,
    _text("rerating", key=True),
    _integer("from_unix_ms"),
    _integer("to_unix_ms"),  # 0: no end
    _integer("recorded_unix_ms"),
    Column("finished", Boolean, nullable=False),
)

state = Table(
    "state",
    metadata,
    _integer("id", key=True),
    _integer("schema_version"),
    _text("writer"),
)
