"""Sums of what was dropped of the detail."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
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
    "measured_energy_uj",
)


def upgrade() -> None:
    op.create_table(
        "dropped",
        sa.Column("tenant", sa.String, primary_key=True, nullable=False),
        *(sa.Column(each, sa.BigInteger, nullable=False, autoincrement=False) for each in ("lines", *_AMOUNTS)),
    )
