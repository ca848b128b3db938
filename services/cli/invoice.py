"""`tokenworks invoice`: a tenant's invoice of a month, shown, issued, and written as PDF or CSV."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import CommandFailed, command

if TYPE_CHECKING:
    from rich.table import Table

    from services.cli.access import Access
    from tokenworks.v1 import exports_pb2 as exports

_WHAT = {
    "tokens": "",
    "correction": "Correction",
    "credit": "Credit, promises not kept",
    "adjustment": "Tiers and commitments",
    "rounding": "Rounding of each request to the nano-dollar",
}
_KINDS = {"input": "input tokens", "cached_input": "cached input tokens", "output": "output tokens"}


def invoice(
    tenant: Annotated[str, typer.Argument(help="Whose; without it, all that were issued are listed.")] = "",
    *,
    month: Annotated[str, typer.Option(help="Of which month, like 2026-11, in UTC; default: this one.")] = "",
    issue: Annotated[bool, typer.Option("--issue", help="Issue it: it gets a number and never changes again.")] = False,
    pdf: Annotated[Path | None, typer.Option(help="Write it as PDF (needs the extra `reports`).")] = None,
    into_csv: Annotated[Path | None, typer.Option("--csv", help="Write its lines as CSV.")] = None,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Show, issue or write a tenant's invoice of a month; what is not issued is a draft of what is booked so far."""
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.money import format_usd
        from services.mesh.wire_document import document_of

        access = read_access(meter=meter)
        if not tenant:
            if issue or pdf or into_csv or month:
                raise CommandFailed("name the tenant whose invoice it is: `tokenworks invoice TENANT --month 2026-11`")
            listed = asyncio.run(_list(access))
            output.result(document_of(listed), _listed(listed))
            return
        found = asyncio.run(_ask(access, tenant, month or datetime.now(UTC).strftime("%Y-%m"), issue=issue))
        written = []
        if into_csv is not None:
            write_csv(found, into_csv)
            written.append(f"its lines are in [bold]{into_csv}[/]")
        if pdf is not None:
            from services.cli.invoice_pdf import write_pdf

            write_pdf(found, pdf)
            written.append(f"it is in [bold]{pdf}[/]")
        state = f"invoice {found.number}" if found.number else "a draft: not issued, and may still change"
        line = (
            f"{state}; total {format_usd(found.total_nusd, 9)}, payable ${dollars(found.payable_cents)}, without taxes"
        )
        output.result(document_of(found), _table(found), line, *written)


def described(line: "exports.InvoiceLine") -> str:
    """A line in words."""
    about = ", ".join(filter(None, (line.model, f"class {line.slo_class}" if line.slo_class else "")))
    what = _KINDS.get(line.kind, line.kind) if line.what == "tokens" else _WHAT.get(line.what, line.what)
    of_month = f" of {line.month}" if line.month else ""
    return f"{about}: {what}{of_month}" if about else f"{what}{of_month}"


def dollars(cents: int) -> str:
    """Cents as dollars, like 12.05."""
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02d}"


def write_csv(found: "exports.Invoice", path: Path) -> None:
    """Its lines, one a row; amounts in dollars to the nano-dollar. What it is to be paid by is the last row."""
    from decimal import Decimal

    from services.cli.table_files import Column, Kind, check_path, table_file

    if path.suffix != ".csv":
        raise CommandFailed(f"{path} does not end in .csv")
    check_path(path)
    texts = ("invoice", "tenant", "month", "line", "model", "slo_class", "token_kind", "corrected_month", "description")
    columns = [
        *(Column(name, Kind.TEXT) for name in texts),
        Column("tokens", Kind.WHOLE),
        Column("usd_per_mtok", Kind.DECIMAL),
        Column("amount_usd", Kind.DECIMAL),
    ]
    number = found.number or "draft"
    with table_file(path, columns) as file:
        for line in found.lines:
            rate = Decimal(line.rate_nusd_per_mtok).scaleb(-9) if line.what == "tokens" else None
            label = [line.what, line.model, line.slo_class, line.kind, line.month, described(line)]
            count = line.tokens if line.what == "tokens" else None
            row = [number, found.tenant, found.month, *label, count, rate, Decimal(line.amount_nusd).scaleb(-9)]
            file.write(row)
        for what, amount in (
            ("total", Decimal(found.total_nusd).scaleb(-9)),
            ("payable", Decimal(found.payable_cents).scaleb(-2)),
        ):
            words = "Total, without taxes" if what == "total" else "Payable: the total rounded half up to the cent"
            file.write([number, found.tenant, found.month, what, "", "", "", "", words, None, None, amount])


async def _ask(access: "Access", tenant: str, month: str, *, issue: bool) -> "exports.Invoice":
    from services.cli.peers import Peers

    async with Peers(access) as peers:
        return await peers.invoice(tenant, month, issue=issue)


async def _list(access: "Access") -> "exports.ListInvoicesResponse":
    from services.cli.peers import Peers

    async with Peers(access) as peers:
        return await peers.invoices("")


def _table(found: "exports.Invoice") -> "Table":
    from services.cli.report_view import table
    from services.mesh.money import format_usd

    made = table(f"{found.tenant}, {found.month}", "", ">tokens", ">$ per million", ">amount")
    for line in found.lines:
        of_tokens = line.what == "tokens"
        made.add_row(
            described(line),
            f"{line.tokens:,}" if of_tokens else "",
            format_usd(line.rate_nusd_per_mtok) if of_tokens else "",
            format_usd(line.amount_nusd, 9),
        )
    made.add_section()
    made.add_row("total", "", "", format_usd(found.total_nusd, 9), style="bold")
    return made


def _listed(found: "exports.ListInvoicesResponse") -> "Table":
    from services.cli.report_view import table
    from services.mesh.money import format_usd

    made = table("Issued invoices", "number", "tenant", "month", "issued", ">total", ">payable")
    for each in found.invoices:
        issued = datetime.fromtimestamp(each.issued_unix_ms / 1000, UTC).isoformat(" ", "minutes")
        made.add_row(
            each.number,
            each.tenant,
            each.month,
            issued,
            format_usd(each.total_nusd, 9),
            f"${dollars(each.payable_cents)}",
        )
    return made
