"""`tokenworks bill`: what the fleet cost, worker by worker and hour by hour, and what became of it."""

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import command

if TYPE_CHECKING:
    from rich.table import Table

    from services.cli.access import Access
    from tokenworks.v1 import pricing_pb2 as pricing


def bill(
    *,
    since: Annotated[str, typer.Option("--from", help="From when: a time, or an age like 2h.")] = "",
    until: Annotated[str, typer.Option("--to", help="Until when, likewise; default: now.")] = "",
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Show the fleet's bill: paid time and energy of each worker, and their allocation, which comes to it exactly."""
    from services.cli.usage import parse_time

    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    from_ms, to_ms = (parse_time(text, now_ms, option) for text, option in ((since, "--from"), (until, "--to")))
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.wire_document import document_of

        found = asyncio.run(_ask(read_access(meter=meter), from_ms, to_ms))
        total = found.total
        parts_nusd = total.use_nusd + total.energy_nusd + total.idle_nusd + sum(total.house_nusd.values())
        agrees = parts_nusd == total.bill_nusd
        line = (
            f"[green]use + energy + idle + house = the bill, {total.bill_nusd:,} nano-dollars[/]"
            if agrees
            else f"[yellow]{parts_nusd:,} of {total.bill_nusd:,} nano-dollars so far; the hour is under way[/]"
        )
        output.result({**document_of(found), "parts_nusd": parts_nusd, "agrees": agrees}, _table(found), line)


async def _ask(access: "Access", from_ms: int, to_ms: int) -> "pricing.FleetBill":
    from services.cli.peers import Peers
    from tokenworks.v1 import pricing_pb2 as pricing

    async with Peers(access) as peers:
        return await peers.fleet_bill(pricing.GetFleetBillRequest(from_unix_ms=from_ms, to_unix_ms=to_ms))


def _table(found: "pricing.FleetBill") -> "Table":
    from services.cli.report_view import accelerator_name, table

    made = table(
        f"The fleet's bill; idle is allocated {found.idle_rule}",
        "hour",
        "worker",
        "accelerator",
        ">paid",
        ">bill",
        ">use",
        ">energy",
        ">idle",
        "house",
        ">CO2e",
        "",
    )
    for each in found.workers:
        hour = datetime.fromtimestamp(each.hour_unix_ms / 1000, UTC).isoformat(" ", "minutes")
        name = accelerator_name(each.accelerator)
        made.add_row(hour, each.worker or "-", name, *_cells(each), "booked" if each.settled else "as it stands")
    made.add_section()
    made.add_row("total", "", "", *_cells(found.total), "", style="bold")
    return made


def _cells(row: "pricing.WorkerBill") -> list[str]:
    from services.mesh.money import format_usd

    house = ", ".join(f"{reason} {format_usd(nusd)}" for reason, nusd in sorted(row.house_nusd.items()) if nusd)
    return [
        f"{row.paid_ns / 1e9:,.1f} s",
        format_usd(row.bill_nusd),
        format_usd(row.use_nusd),
        format_usd(row.energy_nusd),
        format_usd(row.idle_nusd),
        house,
        f"{row.carbon_ug / 1e6:,.2f} g",
    ]
