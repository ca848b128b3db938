"""`tokenworks runaway`: what runs away, the evidence, and what is done about it."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import command

if TYPE_CHECKING:
    from services.cli.access import Access
    from tokenworks.v1 import metering_pb2 as metering


def runaway(
    tenant: Annotated[str, typer.Argument(help="Of this tenant alone.")] = "",
    *,
    lift: Annotated[
        str,
        typer.Option(
            help="Say that this is as it should be: tenant, workload:NAME, caller:WORKLOAD/KEY or session:NAME."
        ),
    ] = "",
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """List what runs away (workloads, sessions, tenants, answers in circles), or lift what is in force for one."""
    scope, _, name = lift.partition(":")
    if lift and not tenant:
        raise typer.BadParameter(
            "name the tenant that it is of: tokenworks runaway TENANT --lift …", param_hint="--lift"
        )
    if lift and scope not in {"tenant", "workload", "caller", "session"}:
        raise typer.BadParameter(
            f"{lift!r} is none of tenant, workload:NAME, caller:WORKLOAD/KEY, session:NAME", param_hint="--lift"
        )
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.wire_document import document_of

        found = asyncio.run(_ask(read_access(meter=meter), tenant, scope, name))
        output.result(document_of(found), _lines(found))


def _lines(found: "metering.ListRunawaysResponse") -> str:
    if not found.found:
        return "Nothing runs away."
    return "\n".join(
        f"[bold]{each.grade}[/]{' (dry run)' if each.dry_run else ''}  {each.kind}  {each.evidence}"
        for each in found.found
    )


async def _ask(access: "Access", tenant: str, scope: str, name: str) -> "metering.ListRunawaysResponse":
    from services.cli.peers import Peers
    from tokenworks.v1 import metering_pb2 as metering

    async with Peers(access) as peers:
        if not scope:
            return await peers.runaways(tenant)
        return await peers.lift_runaway(metering.LiftRunawayRequest(tenant=tenant, scope=scope, name=name))
