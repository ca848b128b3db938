"""The tables of what leaves the books: invoices as they were issued, and how far each receiver of events was told.

invoices     one row per tenant and month, written once; `document` is the whole invoice
told_events  the last line of the ledger that a receiver of CloudEvents has acknowledged
"""

from sqlalchemy import Column, Index, Table, Text

from services.meter.store.schema import integer, metadata, text

invoices = Table(
    "invoices",
    metadata,
    text("tenant", key=True),
    integer("from_minute", key=True),
    integer("to_minute"),
    text("number"),
    integer("sequence"),  # of all invoices, without gaps
    integer("last_line"),  # of the ledger, that it knows
    integer("last_posting"),
    integer("issued_unix_ms"),
    Column("document", Text, nullable=False),
    Index("invoices_by_sequence", "sequence", unique=True),
)

told_events = Table(
    "told_events",
    metadata,
    text("receiver", key=True),
    text("books"),  # made up once for a set of books: lines are numbered within it
    integer("line"),
)
