"""The tables of the fleet's bill and of what is booked beside the ledger, in double entry.

worker_hours  what each start of a worker was paid for in each hour: time, warm-up, energy
bill_hours    which of the ledger's lines are about each hour, and up to which its bill is booked
postings      append-only; the amounts of one transaction sum to zero
"""

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table

from services.meter.store.schema import metadata


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, String, primary_key=key, nullable=False)


def _integer(name: str, *, key: bool = False) -> Column[int]:
    return Column(name, BigInteger, primary_key=key, nullable=False, autoincrement=False)


worker_hours = Table(
    "worker_hours",
    metadata,
    _integer("hour", key=True),  # since 1970
    _text("worker", key=True),
    _text("epoch", key=True),
    _text("pool"),
    _text("accelerator"),
    _integer("paid_ns"),
    _integer("warm_up_ns"),
    _integer("energy_uj"),
    # Of the whole start, as it was heard last: where the next heartbeat goes on from.
    _integer("heard_unix_ms"),
    _integer("heard_energy_uj"),
)

bill_hours = Table(
    "bill_hours",
    metadata,
    _integer("hour", key=True),
    _integer("first_line"),  # ids of the ledger's lines that are dated in it, inclusive; 0: none
    _integer("last_line"),
    _integer("settled_line"),  # the last one that its bill is booked with
    _integer("settled_unix_ms"),  # 0: its bill is not booked
)

postings = Table(
    "postings",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    _integer("recorded_unix_ms"),
    _text("transaction_id"),
    _text("kind"),
    _integer("hour"),
    _text("account"),
    _text("request_id"),
    _text("tenant"),
    _text("workload"),
    _text("model"),
    _text("accelerator"),
    _text("worker"),
    _text("pool"),
    _text("slo_class"),
    _integer("amount_nusd"),  # debit; a credit is negative
    _integer("carbon_ug"),  # micrograms that go with it; no money
    Index("postings_by_hour", "hour"),
    Index("postings_by_request", "request_id"),
)
