"""Who books which partitions of tenants, so that several meters share them out; marks are each shard's."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    shards = op.create_table(
        "shards",
        sa.Column("shard", sa.BigInteger, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("partitions", sa.Text, nullable=False),
        sa.Column("writer", sa.String, nullable=False),
        sa.Column("author", sa.String, nullable=False),
    )
    op.bulk_insert(shards, [{"shard": 0, "partitions": "0-15", "writer": "", "author": ""}])
    # SQLite cannot change a key.
    op.rename_table("publishers", "publishers_before")
    op.create_table(
        "publishers",
        sa.Column("shard", sa.BigInteger, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("publisher", sa.String, primary_key=True, nullable=False),
        sa.Column("epoch", sa.String, primary_key=True, nullable=False),
        sa.Column("high_water", sa.BigInteger, nullable=False),
        sa.Column("missing", sa.Text, nullable=False),
        sa.Column("changed_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO publishers (shard, publisher, epoch, high_water, missing, changed_unix_ms, tokens)"
        " SELECT 0, publisher, epoch, high_water, missing, changed_unix_ms, tokens FROM publishers_before"
    )
    op.drop_table("publishers_before")
