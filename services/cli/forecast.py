"""`tokenworks forecast`: what is going to be billed, with an interval, and when budgets run out."""

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import command

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from services.cli.access import Access
    from tokenworks.v1 import insight_pb2 as insight


def forecast(
    *,
    tenant: Annotated[str, typer.Option(help="Of this tenant, with its budgets; default: all together.")] = "",
    workload: Annotated[str, typer.Option(help="Of this workload alone.")] = "",
    where: Annotated[
        list[str] | None, typer.Option(help="Only where, like model=llama-3.1-8b; may be repeated.")
    ] = None,
    budget: Annotated[bool, typer.Option("--budget", help="Only when the tenant's budgets run out.")] = False,
    days: Annotated[int, typer.Option(help="Ahead, 1 to 92; default: to the end of the month.", min=0, max=92)] = 0,
    level: Annotated[float, typer.Option(help="Of the interval.", min=0.5, max=0.99)] = 0.9,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Forecast what is billed, and the days until budgets run out."""
    from services.cli.usage import filter_of

    if budget and not tenant:
        raise typer.BadParameter("name the tenant whose budgets they are: --tenant NAME", param_hint="--budget")
    filters = dict(filter_of(text) for text in where or ())
    if workload:
        filters["workload"] = [workload]
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.wire_document import document_of

        found = asyncio.run(_ask(read_access(meter=meter), tenant, filters, days, level))
        pictures: list[RenderableType] = [] if budget else [_table(found), _method(found)]
        if tenant:
            pictures.append(_budgets(found))
        output.result(document_of(found), *pictures)


async def _ask(
    access: "Access", tenant: str, filters: dict[str, list[str]], days: int, level: float
) -> "insight.Forecast":
    from services.cli.peers import Peers
    from tokenworks.v1 import insight_pb2 as insight
    from tokenworks.v1 import metering_pb2 as metering

    wanted = [metering.UsageFilter(field=field, values=values) for field, values in filters.items()]
    async with Peers(access) as peers:
        return await peers.forecast(insight.GetForecastRequest(tenant=tenant, filters=wanted, days=days, level=level))


def _method(found: "insight.Forecast") -> str:
    named = {
        "ets": "exponential smoothing with trend and season",
        "seasonal": "the average of that time of the day or week",
        "none": "no history",
    }[found.method]
    unit = "hours" if found.step_hours == 1 else "days"
    why = f"; {found.because}" if found.because else ""
    return f"By {named}, from {found.history_steps} {unit}{why}. Intervals hold {found.level:.0%}."


def _table(found: "insight.Forecast") -> "Table":
    from services.cli.report_view import table
    from services.mesh.money import format_usd

    made = table("Forecast", "", "from", "to", ">billed so far", ">expected", ">low", ">high")
    for name, total in (("month", found.month), ("ahead", found.horizon)):
        if total.to_unix_ms:
            amounts = (total.billed_nusd, total.expected_nusd, total.low_nusd, total.high_nusd)
            at = (_at(total.from_unix_ms), _at(total.to_unix_ms))
            made.add_row(name, *at, *(format_usd(round(each)) for each in amounts))
    made.add_section()
    shown: dict[str, list[float]] = {}
    for point in found.points:
        day = shown.setdefault(_at(point.from_unix_ms)[:10], [0.0, 0.0, 0.0])
        for index, each in enumerate((point.expected_nusd, point.low_nusd, point.high_nusd)):
            day[index] += each
    for name, (expected, *_) in list(shown.items())[:14]:
        made.add_row("", name, "", "", format_usd(round(expected)), "", "")
    return made


def _budgets(found: "insight.Forecast") -> "Table":
    from rich.markup import escape

    from services.cli.report_view import table
    from services.mesh.money import format_usd

    made = table("Budgets", "of", "per", ">limit", ">spent", ">lasts", ">at the soonest", ">at the latest")
    for each in found.budgets:
        of = each.scope if not each.subject else f"{each.scope} {each.subject}"
        limit, spent = (
            format_usd(amount) if each.unit == "nusd" else f"{amount:,} tokens" for amount in (each.limit, each.spent)
        )
        end = "until it refills" if each.to_unix_ms else "over a year"
        lasts = [
            f"{getattr(each, name):,.1f} days" if each.HasField(name) else end
            for name in ("days", "soonest_days", "latest_days")
        ]
        made.add_row(escape(of), each.period, limit, spent, *lasts)
    return made


def _at(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(" ", "minutes")[:16]
