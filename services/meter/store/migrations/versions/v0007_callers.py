"""Who called: key, team and session of each request, and hours added up by them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_WHO = ("caller_team", "caller_key")
_DIMENSIONS = ("tenant", "workload", "model", "accelerator", "worker", "pool", "slo_class")
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
    "measured_energy_uj",
)


def upgrade() -> None:
    for name in ("caller_key", "caller_team", "session_id"):
        op.add_column("requests", sa.Column(name, sa.String, nullable=False, server_default=""))
    for sessions, prefix in (((), "caller"), (("session_id",), "session")):
        _rolled(f"{prefix}_hours", (*_WHO, *sessions, *_DIMENSIONS), _AMOUNTS)
        _rolled(f"{prefix}_postings", ("account", *_WHO, *sessions, *_DIMENSIONS), ("amount_nusd", "carbon_ug"))
    op.create_table(
        "rolled_hours",
        sa.Column("hour", sa.BigInteger, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("last_line", sa.BigInteger, nullable=False),
        sa.Column("last_posting", sa.BigInteger, nullable=False),
        sa.Column("stale", sa.Boolean, nullable=False),
        sa.Column("unknown", sa.Boolean, nullable=False),
        sa.Column("rolled_unix_ms", sa.BigInteger, nullable=False),
    )


def _rolled(name: str, texts: tuple[str, ...], sums: tuple[str, ...]) -> None:
    op.create_table(
        name,
        sa.Column("hour", sa.BigInteger, primary_key=True, nullable=False, autoincrement=False),
        *(sa.Column(each, sa.String, primary_key=True, nullable=False) for each in texts),
        *(sa.Column(each, sa.BigInteger, nullable=False, autoincrement=False) for each in sums),
        sqlite_with_rowid=False,
    )
