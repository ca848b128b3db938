"""`tokenworks rerate`: price requests again by the books as they are known now; what was booked stays."""

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


def rerate(
    *,
    since: Annotated[str, typer.Option("--from", help="Admitted from: a time, or an age like 2h.")],
    until: Annotated[str, typer.Option("--to", help="And before, likewise; default: no end.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would come to.")] = False,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Price what was admitted since a time by the books as they are known now, with new entries for the difference."""
    from services.cli.usage import parse_time

    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    from_ms, to_ms = (parse_time(text, now_ms, option) for text, option in ((since, "--from"), (until, "--to")))
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.wire_document import document_of

        done = asyncio.run(_ask(read_access(meter=meter), from_ms, to_ms, dry_run=dry_run))
        changed = sum(each.requests for each in done.tenants)
        if dry_run:
            line = f"{changed:,} of {done.looked_at:,} requests would change their price; nothing was booked"
        else:
            line = f"{changed:,} of {done.looked_at:,} requests changed their price, by {done.entries:,} new entries"
        output.result(document_of(done), *([_table(done)] if done.tenants else []), line)


async def _ask(access: "Access", from_ms: int, to_ms: int, *, dry_run: bool) -> "pricing.Rerated":
    from services.cli.peers import Peers
    from tokenworks.v1 import pricing_pb2 as pricing

    async with Peers(access) as peers:
        return await peers.rerate(pricing.RerateRequest(from_unix_ms=from_ms, to_unix_ms=to_ms, dry_run=dry_run))


def _table(done: "pricing.Rerated") -> "Table":
    from services.cli.report_view import table
    from services.mesh.money import format_usd

    made = table("Priced again", "tenant", ">requests", ">before", ">after", ">difference")
    for each in done.tenants:
        made.add_row(
            each.tenant,
            f"{each.requests:,}",
            format_usd(each.before_nusd),
            format_usd(each.after_nusd),
            format_usd(each.after_nusd - each.before_nusd),
        )
    return made
