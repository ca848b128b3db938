"""Who writes the books for how long, so that another meter may stand by."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    holdings = op.create_table(
        "holdings",
        sa.Column("what", sa.String, primary_key=True, nullable=False),
        sa.Column("writer", sa.String, nullable=False),
        sa.Column("until_unix_ms", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(holdings, [{"what": "books", "writer": "", "until_unix_ms": 0}])
