"""The fleet's bill in double entry, re-ratings, and when a price book was recorded."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("price_books", sa.Column("recorded_unix_ms", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "reratings",
        *_texts("rerating", key=True),
        *_integers("from_unix_ms", "to_unix_ms", "recorded_unix_ms"),
        sa.Column("finished", sa.Boolean, nullable=False),
    )
    op.create_table(
        "worker_hours",
        *_integers("hour", key=True),
        *_texts("worker", "epoch", key=True),
        *_texts("pool", "accelerator"),
        *_integers("paid_ns", "warm_up_ns", "energy_uj", "heard_unix_ms", "heard_energy_uj"),
    )
    op.create_table(
        "bill_hours",
        *_integers("hour", key=True),
        *_integers("first_line", "last_line", "settled_line", "settled_unix_ms"),
    )
    op.create_table(
        "postings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        *_integers("recorded_unix_ms"),
        *_texts("transaction_id", "kind"),
        *_integers("hour"),
        *_texts("account", "request_id", "tenant", "workload", "model", "accelerator", "worker", "pool", "slo_class"),
        *_integers("amount_nusd", "carbon_ug"),
    )
    op.create_index("postings_by_hour", "postings", ["hour"])
    op.create_index("postings_by_request", "postings", ["request_id"])


def _texts(*names: str, key: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String, primary_key=key, nullable=False) for name in names]


def _integers(*names: str, key: bool = False) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, primary_key=key, nullable=False, autoincrement=False) for name in names]
