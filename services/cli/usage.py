"""`tokenworks usage`: who used what, on what, at what price and cost."""

import asyncio
import csv
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import command

if TYPE_CHECKING:
    from rich.table import Table

    from services.cli.access import Access
    from tokenworks.v1 import metering_pb2 as metering

LABELS: Final = ("tenant", "team", "key", "workload", "session", "model", "accelerator", "worker", "pool", "slo_class")
_OF_REQUESTS: Final = ("tenant", "workload", "slo_class")
SPANS: Final = ("minute", "hour", "day")
_UNIT_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def usage(
    *,
    by: Annotated[
        str, typer.Option(help=f"Group by any of: {', '.join((*LABELS, *SPANS))}.")
    ] = "tenant,workload,accelerator",
    where: Annotated[
        list[str] | None, typer.Option(help="Only where, like tenant=acme,globex; may be repeated.")
    ] = None,
    since: Annotated[
        str, typer.Option("--from", help="From when: a time like 2026-11-24T09:00, or an age like 2h.")
    ] = "",
    until: Annotated[str, typer.Option("--to", help="Until when, likewise; default: now.")] = "",
    meter: MeterOption = "",
    as_json: JsonFlag = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values on standard output.")] = False,
) -> None:
    """Show tokens, price, cost and energy, grouped and filtered."""
    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv", param_hint="--csv")
    group_by = [part.strip() for part in by.split(",") if part.strip()]
    for field in group_by:
        if field not in (*LABELS, *SPANS):
            raise typer.BadParameter(f"{field!r} is none of {', '.join((*LABELS, *SPANS))}", param_hint="--by")
    filters = dict(filter_of(text) for text in where or ())
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    from_ms, to_ms = (parse_time(text, now_ms, option) for text, option in ((since, "--from"), (until, "--to")))
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.wire_document import document_of

        answer = asyncio.run(_ask(read_access(meter=meter), group_by, filters, from_ms, to_ms))
        if as_csv:
            _write_csv(group_by, answer)
            return
        late = f"[yellow]{answer.lag_events:,} events are not booked yet.[/]" if answer.lag_events else ""
        output.result(document_of(answer), *_tables(group_by, answer), at_risk(answer), *([late] if late else []))


def _write_csv(group_by: list[str], answer: "metering.GetUsageResponse") -> None:
    """A line for each row: what it is grouped by, then all its figures as they are on the wire."""
    figures = [field.name for field in answer.total.DESCRIPTOR.fields if field.name != "key"]
    writer = csv.writer(sys.stdout)
    writer.writerow([*group_by, *figures])
    for row in answer.rows:
        labels = [_at(row) if field in SPANS else getattr(row.key, field) for field in group_by]
        absent = {each.name for each in row.DESCRIPTOR.fields if each.has_presence and not row.HasField(each.name)}
        writer.writerow([*labels, *("" if name in absent else getattr(row, name) for name in figures)])


def _at(row: "metering.UsageRow") -> str:
    return datetime.fromtimestamp(row.key.from_unix_ms / 1000, UTC).isoformat()


def at_risk(answer: "metering.GetUsageResponse") -> str:
    """In a line, what requests under way could lose, and who pays for idle time."""
    from services.mesh.money import format_usd

    return (
        f"{answer.running_requests:,} requests under way put {format_usd(answer.at_risk_nusd)} of credits at risk,"
        f" {format_usd(round(answer.expected_credit_nusd))} as their classes missed lately; idle time is allocated"
        f" {answer.idle_rule}; what the house bears has no tenant"
    )


def parse_time(text: str, now_unix_ms: int, option: str) -> int:
    """Milliseconds since 1970 of a time or an age; 0 for nothing.

    Raises:
        BadParameter: `text` is neither.
    """
    if not text:
        return 0
    if age := re.fullmatch(r"(\d+)([smhd])", text):
        return max(0, now_unix_ms - int(age[1]) * _UNIT_MS[age[2]])
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a time like 2026-11-24T09:00 nor an age like 90s, 15m, 2h or 7d", param_hint=option
        ) from None
    return int(at.timestamp() * 1000)


def filter_of(text: str) -> tuple[str, list[str]]:
    field, separator, values = text.partition("=")
    if not separator or field not in LABELS:
        raise typer.BadParameter(
            f"{text!r} is not a filter; write it like tenant=acme, with one of {', '.join(LABELS)}",
            param_hint="--where",
        )
    return field, [value.strip() for value in values.split(",")]


async def _ask(
    access: "Access", group_by: list[str], filters: dict[str, list[str]], from_ms: int, to_ms: int
) -> "metering.GetUsageResponse":
    from services.cli.peers import Peers
    from tokenworks.v1 import metering_pb2 as metering

    async with Peers(access) as peers:
        return await peers.usage(
            metering.GetUsageRequest(
                from_unix_ms=from_ms,
                to_unix_ms=to_ms,
                group_by=group_by,
                filters=[metering.UsageFilter(field=field, values=values) for field, values in filters.items()],
            )
        )


def _labels(group_by: list[str], row: "metering.UsageRow") -> list[str]:
    from services.cli.report_view import accelerator_name

    labels = []
    for field in group_by:
        if field in SPANS:
            labels.append(datetime.fromtimestamp(row.key.from_unix_ms / 1000, UTC).isoformat(" ", "minutes"))
        else:
            value = getattr(row.key, field) or ("house" if field in _OF_REQUESTS else "-")
            labels.append(accelerator_name(value) if field == "accelerator" else value)
    return labels


def _tables(group_by: list[str], answer: "metering.GetUsageResponse") -> "list[Table]":
    """What was used at what price, and what it cost and left."""
    from services.cli.report_view import table

    used = (">requests", ">prompt", ">cached", ">tokens", ">price", ">cost", ">energy", ">cost $/M", ">SLO met")
    cost = (">use", ">energy", ">idle", ">house", ">credits", ">margin", ">CO2e", ">tokens/J", ">used")
    made = []
    for title, columns, cells in (("Usage", used, _used), ("Costs", cost, _costs)):
        one = table(title, *group_by, *columns)
        for row in answer.rows:
            one.add_row(*_labels(group_by, row), *cells(row))
        if group_by:
            one.add_section()
            one.add_row("total", *[""] * (len(group_by) - 1), *cells(answer.total), style="bold")
        else:
            one.add_row(*cells(answer.total))
        made.append(one)
    return made


def _used(row: "metering.UsageRow") -> list[str]:
    from services.cli.report_view import dollars_per_mtok, joules
    from services.mesh.money import format_usd

    cost_nusd = row.use_cost_nusd + row.energy_cost_nusd + row.idle_cost_nusd + row.house_cost_nusd
    return [
        f"{row.requests:,}",
        f"{row.prompt_tokens:,}",
        f"{row.cached_prompt_tokens:,}",
        f"{row.delivered_tokens:,}",
        format_usd(row.price_nusd + row.adjustment_nusd),
        format_usd(cost_nusd),
        joules(row.energy_uj / 1e6, row.measured_energy_uj / 1e6),
        dollars_per_mtok(row.cost_usd_per_mtok if row.HasField("cost_usd_per_mtok") else None),
        f"{row.slo_attainment:.1%}" if row.HasField("slo_attainment") else "-",
    ]


def _costs(row: "metering.UsageRow") -> list[str]:
    from services.mesh.money import format_usd

    amounts = (
        row.use_cost_nusd,
        row.energy_cost_nusd,
        row.idle_cost_nusd,
        row.house_cost_nusd,
        row.credit_nusd,
        row.margin_nusd,
    )
    return [
        *(format_usd(each) for each in amounts),
        f"{row.carbon_ug / 1e6:,.2f} g",
        f"{row.tokens_per_joule:,.2f}" if row.HasField("tokens_per_joule") else "-",
        f"{row.utilisation:.1%}" if row.HasField("utilisation") else "-",
    ]
