"""From here on Alembic numbers the tables; programs that went by numbers of their own find one that they refuse.

Books of version 5 were made with and without `credit_holders`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "credit_holders",
        sa.Column("funder", sa.String, primary_key=True, nullable=False),
        sa.Column("linger_ms", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
    op.execute("UPDATE state SET schema_version = 6")
