"""Measured energy is told from modelled; what was booked before counts as modelled."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("segments", "entries", "usage"):
        op.add_column(table, sa.Column("measured_energy_uj", sa.BigInteger, nullable=False, server_default="0"))
