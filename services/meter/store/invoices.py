"""Issued invoices on disk: written once, never changed.

In: an invoice and what the books held when it was made. Out: the same invoice, whenever it is asked for.
"""

import json
from typing import Final

from sqlalchemy import func, select

from services.meter.core.charges import Bounds, Issued
from services.meter.core.invoices import Invoice, InvoiceLine
from services.meter.store.books import Transaction
from services.meter.store.database import Database
from services.meter.store.invoice_tables import invoices

_DIGITS: Final = 6


class InvoiceReader:
    def __init__(self, database: Database) -> None:
        self._engine = database.reader

    def issued(self, tenants: tuple[str, ...] = ()) -> list[Issued]:
        """Those of some tenants, or all, by tenant and month."""
        table = invoices
        query = select(
            table.c.number,
            table.c.tenant,
            table.c.from_minute,
            table.c.to_minute,
            table.c.last_line,
            table.c.last_posting,
        ).order_by(table.c.tenant, table.c.from_minute)
        if tenants:
            query = query.where(table.c.tenant.in_(sorted(tenants)))
        with self._engine.begin() as connection:
            return [Issued(*row[:4], Bounds(*row[4:])) for row in connection.execute(query)]

    def find(self, tenant: str, from_minute: int) -> Invoice | None:
        """A tenant's invoice of the month that begins then; None where none was issued."""
        table = invoices
        query = select(table.c.document).where(table.c.tenant == tenant, table.c.from_minute == from_minute)
        with self._engine.begin() as connection:
            document = connection.execute(query).scalar_one_or_none()
        return None if document is None else _read(document)

    def all(self, tenant: str, limit: int) -> list[Invoice]:
        """The latest of a tenant, or of all tenants where `tenant` is empty, the newest first."""
        query = select(invoices.c.document).order_by(invoices.c.sequence.desc()).limit(limit)
        if tenant:
            query = query.where(invoices.c.tenant == tenant)
        with self._engine.begin() as connection:
            return [_read(document) for document in connection.execute(query).scalars()]


def issue(transaction: Transaction, draft: Invoice, cuts: Bounds, prefix: str, now_unix_ms: int) -> Invoice:
    """Gives a draft its number, the next of all, and stores it."""
    connection = transaction.connection
    sequence = (connection.execute(select(func.max(invoices.c.sequence))).scalar_one() or 0) + 1
    invoice = draft._replace(number=f"{prefix}{sequence:0{_DIGITS}d}", issued_unix_ms=now_unix_ms)
    row = {
        "tenant": invoice.tenant,
        "from_minute": invoice.from_minute,
        "to_minute": invoice.to_minute,
        "number": invoice.number,
        "sequence": sequence,
        "last_line": cuts.line,
        "last_posting": cuts.posting,
        "issued_unix_ms": now_unix_ms,
        "document": json.dumps({**invoice._asdict(), "lines": [each._asdict() for each in invoice.lines]}),
    }
    connection.execute(invoices.insert(), [row])
    return invoice


def _read(document: str) -> Invoice:
    fields = json.loads(document)
    return Invoice(**{**fields, "lines": tuple(InvoiceLine(**each) for each in fields["lines"])})
