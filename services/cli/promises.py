"""`tokenworks promises`: promises kept this month by SLO class, and the margin that the others put at risk."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import command

if TYPE_CHECKING:
    from rich.table import Table

    from services.cli.access import Access
    from tokenworks.v1 import insight_pb2 as insight


def promises(
    tenant: Annotated[str, typer.Argument(help="Of this tenant alone.")] = "",
    *,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Show what SLO promises cost this month: credits booked, and those to come at the present attainment."""
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.wire_document import document_of

        found = asyncio.run(_ask(read_access(meter=meter), tenant))
        output.result(document_of(found), _table(found))


async def _ask(access: "Access", tenant: str) -> "insight.Promises":
    from services.cli.peers import Peers

    async with Peers(access) as peers:
        return await peers.promises(tenant)


def _table(found: "insight.Promises") -> "Table":
    from rich.markup import escape

    from services.cli.report_view import table

    columns = (">ended", ">kept", ">kept lately", ">billed", ">credited", ">credits by month's end", ">if all missed")
    made = table("Promises this month, and the margin at risk", "SLO class", *columns)
    for each in found.classes:
        made.add_row(escape(each.slo_class), *_cells(each))
    made.add_section()
    made.add_row("all", *_cells(found.total), style="bold")
    return made


def _cells(each: "insight.PromiseOutlook") -> list[str]:
    from services.mesh.money import format_usd

    kept = f"{each.slo_met_requests / each.finished_requests:.1%}" if each.finished_requests else "-"
    amounts = (each.price_nusd, each.credited_nusd, each.expected_credit_nusd, each.most_credit_nusd)
    return [
        f"{each.finished_requests:,}",
        kept,
        f"{each.attainment:.1%}",
        *(format_usd(round(amount)) for amount in amounts),
    ]
