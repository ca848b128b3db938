"""The tables of the fleet's bill and of what is booked beside the ledger, in double entry.

worker_hours  what each start of a worker was paid for in each hour: time, warm-up, energy
bill_hours    which of the ledger's lines are about each hour, and up to which its bill is booked
postings      append-only; the amounts of one transaction sum to zero
"""

from sqlalchemy import BigInteger, Column, Index, Integer, Table

from services.meter.store.schema import integer, metadata, text

worker_hours = Table(
    "worker_hours",
    metadata,
    integer("hour", key=True),  # since 1970
    text("worker", key=True),
    text("epoch", key=True),
    text("pool"),
    text("accelerator"),
    integer("paid_ns"),
    integer("warm_up_ns"),
    integer("energy_uj"),
    # Of the whole start, as it was heard last: where the next heartbeat goes on from.
    integer("heard_unix_ms"),
    integer("heard_energy_uj"),
)

bill_hours = Table(
    "bill_hours",
    metadata,
    integer("hour", key=True),
    integer("first_line"),  # ids of the ledger's lines that are dated in it, inclusive; 0: none
    integer("last_line"),
    integer("settled_line"),  # the last one that its bill is booked with
    integer("settled_unix_ms"),  # 0: its bill is not booked
)

postings = Table(
    "postings",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    integer("recorded_unix_ms"),
    text("transaction_id"),
    text("kind"),
    integer("hour"),
    text("account"),
    text("request_id"),
    text("tenant"),
    text("workload"),
    text("model"),
    text("accelerator"),
    text("worker"),
    text("pool"),
    text("slo_class"),
    integer("amount_nusd"),  # debit; a credit is negative
    integer("carbon_ug"),  # micrograms that go with it; no money
    Index("postings_by_hour", "hour"),
    Index("postings_by_request", "request_id"),
)
