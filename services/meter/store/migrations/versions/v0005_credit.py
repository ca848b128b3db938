"""Budgets, leases of credit, and what is held for requests."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budgets",
        *_integers("budget", key=True),
        *_texts("tenant", "scope", "subject", "unit", "period"),
        *_integers("most"),
        sa.Column("hard", sa.Boolean, nullable=False),
        *_texts("notify_percents"),
        *_integers("set_unix_ms", "lifted_unix_ms"),
    )
    op.create_table(
        "budget_accounts",
        *_integers("budget", key=True),
        *_texts("subject", key=True),
        *_integers("starts", key=True),
        *_integers("spent", "reached"),
    )
    op.create_table(
        "leases",
        *_integers("budget", key=True),
        *_texts("subject", key=True),
        *_integers("starts", key=True),
        *_texts("funder", key=True),
        *_integers("granted", "returned", "closed"),
    )
    op.create_table("closed_funders", *_texts("funder", key=True), *_integers("closed_unix_ms"))
    op.create_table(
        "funded_requests",
        *_texts("request_id", "tenant", key=True),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        *_integers("changed_unix_ms"),
    )
    op.create_index("funded_requests_open", "funded_requests", ["is_open"])


def _texts(*names: str, key: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String, primary_key=key, nullable=False) for name in names]


def _integers(*names: str, key: bool = False) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, primary_key=key, nullable=False, autoincrement=False) for name in names]
