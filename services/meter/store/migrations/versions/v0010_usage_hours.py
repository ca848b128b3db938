"""Usage added up by the hour."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

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
    op.create_table(
        "usage_hours",
        sa.Column("hour", sa.BigInteger, primary_key=True, nullable=False, autoincrement=False),
        *(sa.Column(each, sa.String, primary_key=True, nullable=False) for each in _DIMENSIONS),
        *(sa.Column(each, sa.BigInteger, nullable=False, autoincrement=False) for each in _AMOUNTS),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rolled",
        sa.Column("what", sa.String, primary_key=True, nullable=False),
        sa.Column("before_hour", sa.BigInteger, nullable=False, autoincrement=False),
    )
