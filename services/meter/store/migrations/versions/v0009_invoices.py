"""Invoices as they were issued, and how far receivers of events were told of the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "invoices",
        sa.Column("tenant", sa.String, primary_key=True, nullable=False),
        sa.Column("from_minute", sa.BigInteger, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("to_minute", sa.BigInteger, nullable=False),
        sa.Column("number", sa.String, nullable=False),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("sequence", "last_line", "last_posting", "issued_unix_ms")
        ),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("invoices_by_sequence", "invoices", ["sequence"], unique=True)
    op.create_table(
        "told_events",
        sa.Column("receiver", sa.String, primary_key=True, nullable=False),
        sa.Column("books", sa.String, nullable=False),
        sa.Column("line", sa.BigInteger, nullable=False),
    )
