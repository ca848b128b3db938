"""The books: events that were booked, requests, the ledger, usage, tenants, prices."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_AMOUNTS = (
    "requests",
    "finished_requests",
    "slo_met_requests",
    "prompt_tokens",
    "cached_prompt_tokens",
    "generated_tokens",
    "delivered_tokens",
    "price_nusd",
    "use_cost_nusd",
    "energy_cost_nusd",
    "device_ns",
    "energy_uj",
)


def upgrade() -> None:
    op.create_table(
        "publishers",
        *_texts("publisher", "epoch", key=True),
        *_integers("high_water"),
        sa.Column("missing", sa.Text, nullable=False),
        *_integers("changed_unix_ms"),
    )
    op.create_table(
        "requests",
        *_texts("request_id", "tenant", key=True),
        *_texts("workload", "model", "slo_class"),
        *_integers("admitted_unix_ms"),
        *_texts("admitted_by", "admitted_price_book", "admitted_plan"),
        sa.Column("finished", sa.Boolean, nullable=False),
        sa.Column("delivered", sa.Text, nullable=False),
        *_integers("delivered_end", "finished_unix_ms"),
        *_texts("finished_by", "outcome", "worker", "pool", "accelerator"),
        *_integers("prompt_tokens", "cached_prompt_tokens"),
        *(sa.Column(name, sa.Double, nullable=False) for name in ("ttft_s", "tpot_s", "e2e_s")),
        sa.Column("slo_met", sa.Boolean, nullable=False),
        *_texts("trace_id"),
        *_integers("finish_admitted_unix_ms"),
        *_texts("price_book", "plan"),
    )
    op.create_table(
        "segments",
        *_texts("request_id", "tenant", "worker", "pool", "accelerator", key=True),
        sa.Column("generated", sa.Text, nullable=False),
        *_integers("worker_prompt_tokens", "worker_cached_prompt_tokens"),
        *_integers("rate_nusd_per_hour", "tariff_nusd_per_kwh", "minute"),
        sa.Column("earlier", sa.Text, nullable=False),
        *_integers(*_AMOUNTS),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "entries",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        *_integers("booked_unix_ms"),
        *_texts("request_id", "tenant", "worker", "pool", "accelerator"),
        *_integers("minute", *_AMOUNTS),
    )
    op.create_table(
        "usage",
        *_integers("minute", key=True),
        *_texts("tenant", "workload", "model", "accelerator", "worker", "pool", "slo_class", key=True),
        *_integers(*_AMOUNTS),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tenants",
        *_texts("tenant", key=True),
        *_integers("spent_nusd"),
        sa.Column("limit_nusd", sa.BigInteger, nullable=True),
        *_integers("budgeted_unix_ms"),
    )
    op.create_table(
        "price_books",
        *_texts("label", key=True),
        sa.Column("body", sa.Text, nullable=False),
        *_integers("first_unix_ms"),
    )
    state = op.create_table("state", *_integers("id", key=True), *_integers("schema_version"), *_texts("writer"))
    op.bulk_insert(state, [{"id": 1, "schema_version": 1, "writer": ""}])


def _texts(*names: str, key: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String, primary_key=key, nullable=False) for name in names]


def _integers(*names: str, key: bool = False) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, primary_key=key, nullable=False, autoincrement=False) for name in names]
