"""What the reconciler goes by: tokens by publisher, how far each stream is booked, the ledger by request."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("publishers", sa.Column("tokens", sa.BigInteger, nullable=False, server_default="-1"))
    op.create_table(
        "positions",
        sa.Column("durable", sa.String, primary_key=True, nullable=False),
        sa.Column("stream_sequence", sa.BigInteger, nullable=False),
    )
    op.create_index("entries_by_request", "entries", ["request_id"])
