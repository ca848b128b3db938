"""`tokenworks budget`: what may be spent, by whom, how often; what is spent, held and left."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import CommandFailed, command

if TYPE_CHECKING:
    from services.cli.access import Access
    from tokenworks.v1 import metering_pb2 as metering

_SCOPES = ("team", "key", "workload", "session")


def budget(
    tenant: Annotated[str, typer.Argument(help="Whose budgets.")] = "local",
    *,
    limit: Annotated[str, typer.Option(help='Set the most that may be billed, in dollars, like "5" or "0.25".')] = "",
    tokens: Annotated[int, typer.Option(help="Set the most tokens that may be billed, prompt and answer.")] = -1,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="No limit of the tenant any more.")] = False,
    per: Annotated[str, typer.Option(help="How often it refills: once, minute, hour, day, month.")] = "once",
    team: Annotated[str, typer.Option(help='Of one team of the tenant; "*": each has its own.')] = "",
    key: Annotated[str, typer.Option(help="Of one key, by name; or *.")] = "",
    workload: Annotated[str, typer.Option(help="Of one workload; or *.")] = "",
    session: Annotated[str, typer.Option(help="Of one session; or *.")] = "",
    soft: Annotated[bool, typer.Option("--soft", help="Only tell, stop nothing.")] = False,
    notify: Annotated[str, typer.Option(help='Percentages to tell of, like "50,80,100".')] = "",
    lift: Annotated[bool, typer.Option("--lift", help="Lift the budget that the other options name.")] = False,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Show a tenant's budgets, or set one with --limit or --tokens."""
    if bool(limit) + unlimited + (tokens >= 0) > 1:
        raise typer.BadParameter("--limit, --tokens and --unlimited exclude each other; give one", param_hint="--limit")
    named = {name: value for name, value in zip(_SCOPES, (team, key, workload, session), strict=True) if value}
    if len(named) > 1:
        raise typer.BadParameter(
            f"a budget has one scope, not {' and '.join(named)}", param_hint=f"--{next(iter(named))}"
        )
    scope, subject = next(iter(named.items()), ("tenant", ""))
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.money import format_usd
        from services.mesh.wire_document import document_of
        from tokenworks.v1 import metering_pb2 as metering

        asked: metering.SetBudgetRequest | None = None
        if unlimited:
            asked = metering.SetBudgetRequest(tenant=tenant, unlimited=True)
        elif limit or tokens >= 0 or lift:
            unit = "tokens" if tokens >= 0 else "nusd"
            asked = metering.SetBudgetRequest(
                tenant=tenant,
                unit=unit,
                scope=scope,
                subject=subject,
                period=per,
                limit=tokens if tokens >= 0 else _nusd(limit),
                soft=soft,
                notify_percents=_percents(notify),
                lift=lift,
            )
        found, budgets = asyncio.run(_ask(read_access(meter=meter), tenant, asked))
        spent = f"tenant [bold]{tenant}[/] has spent {format_usd(found.spent_nusd)}"
        if found.unlimited:
            line = f"{spent}; its budget is unlimited"
        else:
            state = "[bold red]exhausted[/]" if found.exhausted else f"{format_usd(found.remaining_nusd)} left"
            line = f"{spent} of {format_usd(found.limit_nusd)}; {state}"
        found.ClearField("state")
        document = {**document_of(found), "budgets": [document_of(each) for each in budgets]}
        output.result(document, line, *([_table(budgets)] if budgets else []))


def _nusd(limit: str) -> int:
    from services.mesh.money import usd_to_nusd

    try:
        limit_nusd = usd_to_nusd(limit) if limit else 0
    except ValueError as error:
        raise CommandFailed(f"--limit: {error}", reason="InvalidRequest") from error
    if limit_nusd < 0:
        raise CommandFailed(f"--limit {limit} is below 0; the most that may be billed is 0 or more")
    return limit_nusd


def _percents(notify: str) -> list[int]:
    try:
        return [int(each) for each in notify.split(",") if each.strip()]
    except ValueError as error:
        raise CommandFailed(f'--notify {notify}: give whole percentages, like "50,80,100"') from error


def _table(budgets: "list[metering.BudgetState]") -> Any:
    from datetime import UTC, datetime

    from services.cli.report_view import table
    from services.mesh.money import format_usd

    made = table("Budgets", "who", "per", "limit", "spent", "held", "left", "refills")
    for each in budgets:

        def shown(amount: int, unit: str = each.unit) -> str:
            return f"{amount:,} tokens" if unit == "tokens" else format_usd(amount)

        who = each.scope if each.scope == "tenant" else f"{each.scope} {each.subject}"
        kind = f"{each.period}{', soft' if each.soft else ''}"
        if not each.accounts:
            made.add_row(who, kind, shown(each.limit), *["-"] * 4)
        for account in each.accounts:
            refills = datetime.fromtimestamp(account.to_unix_ms / 1000, UTC) if account.to_unix_ms else None
            made.add_row(
                who if account.subject in ("", each.subject) else f"{each.scope} {account.subject}",
                kind,
                shown(each.limit),
                shown(account.spent),
                shown(account.held),
                shown(account.remaining),
                f"{refills:%Y-%m-%d %H:%M}Z" if refills else "never",
            )
    return made


async def _ask(
    access: "Access", tenant: str, asked: "metering.SetBudgetRequest | None"
) -> "tuple[metering.Budget, list[metering.BudgetState]]":
    from services.cli.peers import Peers

    async with Peers(access) as peers:
        found = await (peers.budget(tenant) if asked is None else peers.set_budget(asked))
        return found, list((await peers.budgets(tenant)).budgets)
