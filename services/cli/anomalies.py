"""`tokenworks anomalies`: hours in which a tenant or workload was billed far more than is usual for it."""

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import command

if TYPE_CHECKING:
    from services.cli.access import Access
    from tokenworks.v1 import insight_pb2 as insight


def anomalies(
    tenant: Annotated[str, typer.Argument(help="Of this tenant alone.")] = "",
    *,
    since: Annotated[str, typer.Option("--from", help="From when: a time, or an age like 2d; default: 7d.")] = "",
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """List hours of unusual spending, with the evidence."""
    from services.cli.usage import parse_time

    from_ms = parse_time(since, int(datetime.now(UTC).timestamp() * 1000), "--from")
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.wire_document import document_of

        found = asyncio.run(_ask(read_access(meter=meter), tenant, from_ms))
        output.result(document_of(found), _lines(found))


def _lines(found: "insight.ListAnomaliesResponse") -> str:
    from rich.markup import escape

    lines = [
        f"[bold]{each.spent_nusd / max(1, each.usual_nusd):,.1f}x[/]{' (under way)' if each.under_way else ''} "
        f" {escape(each.evidence)}"
        for each in found.found
    ]
    watched = f"{found.watched} tenants and workloads are watched, {found.learning} have too short a history yet."
    return "\n".join([*(lines or ["Nothing out of the ordinary."]), f"[dim]{watched}[/]"])


async def _ask(access: "Access", tenant: str, from_unix_ms: int) -> "insight.ListAnomaliesResponse":
    from services.cli.peers import Peers
    from tokenworks.v1 import insight_pb2 as insight

    async with Peers(access) as peers:
        return await peers.anomalies(insight.ListAnomaliesRequest(tenant=tenant, from_unix_ms=from_unix_ms))
