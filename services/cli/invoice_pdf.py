"""An invoice as a PDF: the only file that imports fpdf2, from the extra `reports`.

In: an invoice. Out: the same bytes for the same invoice, whenever they are made.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.cli.invoice import described, dollars
from services.cli.output import CommandFailed
from services.mesh.money import format_usd

if TYPE_CHECKING:
    from tokenworks.v1 import exports_pb2 as exports

_NOTES: Final = (
    "Amounts are in US dollars. Each request's price is rounded half up to the nano-dollar, once per kind of token.",
    "What the lines differ by from that is the line of the rounding.",
    "The payable amount is the total rounded half up to the cent. Nothing else is rounded.",
    "Taxes are not included.",
    "An issued invoice does not change: what comes to light of its month later is a correction on a later one.",
)
_WIDTHS: Final = (100, 28, 27, 35)  # millimetres
_LINE_MM: Final = 6.0


def write_pdf(invoice: "exports.Invoice", path: Path) -> None:
    """Raises CommandFailed: fpdf2 is not installed."""
    try:
        from fpdf import FPDF
    except ImportError as error:
        raise CommandFailed(
            "invoices are made PDF by the package fpdf2: pip install 'tokenworks[reports]'; or write --csv",
            reason="PackageMissing",
        ) from error
    logging.getLogger("fpdf").setLevel(logging.WARNING)
    at_ms = invoice.issued_unix_ms or invoice.to_unix_ms
    page = FPDF(format="A4")
    page.set_creation_date(datetime.fromtimestamp(at_ms / 1000, UTC))
    page.set_title(f"Invoice {invoice.number or 'draft'}")
    page.set_author(_latin(invoice.issuer))
    page.set_auto_page_break(True, margin=20)
    page.add_page()

    def line(text: str, *, size: int = 10, bold: bool = False) -> None:
        page.set_font("Helvetica", "B" if bold else "", size)
        page.multi_cell(0, _LINE_MM, _latin(text), new_x="LMARGIN", new_y="NEXT")

    line(f"Invoice {invoice.number}" if invoice.number else "Invoice (draft, not issued)", size=16, bold=True)
    page.ln(2)
    line(invoice.issuer, bold=True)
    for address_line in invoice.issuer_address.splitlines():
        line(address_line)
    page.ln(2)
    line(f"To: {invoice.tenant}")
    line(f"Period: {_day(invoice.from_unix_ms)} to {_day(invoice.to_unix_ms - 1)} (UTC), {invoice.requests:,} requests")
    if invoice.issued_unix_ms:
        line(f"Issued: {_day(invoice.issued_unix_ms)}")
    page.ln(4)
    page.set_font("Helvetica", "", 8)
    with page.table(col_widths=_WIDTHS, text_align=("LEFT", "RIGHT", "RIGHT", "RIGHT"), line_height=5) as table:
        table.row(["", "Tokens", "$ per million", "Amount"])
        for each in invoice.lines:
            of_tokens = each.what == "tokens"
            table.row(
                [
                    _latin(described(each)),
                    f"{each.tokens:,}" if of_tokens else "",
                    format_usd(each.rate_nusd_per_mtok) if of_tokens else "",
                    format_usd(each.amount_nusd, 9),
                ]
            )
        table.row(["Total, without taxes", "", "", format_usd(invoice.total_nusd, 9)])
    page.ln(4)
    line(f"Payable: ${dollars(invoice.payable_cents)}", size=12, bold=True)
    page.ln(4)
    for note in _NOTES:
        line(note, size=8)
    path.write_bytes(bytes(page.output()))


def _day(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d")


def _latin(text: str) -> str:
    """What the PDF's own fonts can show; the rest as question marks."""
    return text.encode("latin-1", "replace").decode("latin-1")
