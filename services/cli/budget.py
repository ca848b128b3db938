"""`tokenworks budget`: what a tenant may spend, and what is left."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import CommandFailed, command

if TYPE_CHECKING:
    from services.cli.access import Access
    from tokenworks.v1 import metering_pb2 as metering


def budget(
    tenant: Annotated[str, typer.Argument(help="Whose budget.")] = "local",
    *,
    limit: Annotated[str, typer.Option(help='The most it may ever be billed, in dollars, like "5" or "0.25".')] = "",
    unlimited: Annotated[bool, typer.Option("--unlimited", help="No limit any more.")] = False,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Show a tenant's budget, or set it with --limit or --unlimited."""
    if limit and unlimited:
        raise typer.BadParameter("--limit and --unlimited exclude each other; give one", param_hint="--limit")
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.cli.wire_document import document_of
        from services.mesh.money import format_usd

        found = asyncio.run(_ask(read_access(meter=meter), tenant, limit, unlimited))
        spent = f"tenant [bold]{tenant}[/] has spent {format_usd(found.spent_nusd)}"
        if found.unlimited:
            line = f"{spent}; its budget is unlimited"
        else:
            state = "[bold red]exhausted[/]" if found.exhausted else f"{format_usd(found.remaining_nusd)} left"
            line = f"{spent} of {format_usd(found.limit_nusd)}; {state}"
        output.result(document_of(found), line)


async def _ask(access: "Access", tenant: str, limit: str, unlimited: bool) -> "metering.Budget":
    from services.cli.peers import Peers
    from services.mesh.money import usd_to_nusd
    from tokenworks.v1 import metering_pb2 as metering

    async with Peers(access) as peers:
        if not limit and not unlimited:
            return await peers.budget(tenant)
        try:
            limit_nusd = usd_to_nusd(limit) if limit else 0
        except ValueError as error:
            raise CommandFailed(f"--limit: {error}", reason="InvalidRequest") from error
        if limit_nusd < 0:
            raise CommandFailed(f"--limit {limit} is below 0; the most a tenant may be billed is 0 or more")
        return await peers.set_budget(
            metering.SetBudgetRequest(tenant=tenant, limit_nusd=limit_nusd, unlimited=unlimited)
        )
