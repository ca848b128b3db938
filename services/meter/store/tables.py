"""Every table of the books, whichever module describes it: what is made for new books, and what Alembic compares."""

from typing import Final

from sqlalchemy import MetaData

from services.meter.store import bill_tables, caller_tables, credit, dropped, hours, invoice_tables, schema, shards

metadata: Final[MetaData] = schema.metadata
assert bill_tables.postings.metadata is credit.budgets.metadata is metadata
assert caller_tables.rolled_hours.metadata is metadata
assert invoice_tables.invoices.metadata is metadata
assert hours.usage_hours.metadata is dropped.dropped.metadata is shards.shards.metadata is metadata
