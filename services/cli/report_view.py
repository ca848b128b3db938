"""A report's document (`report.Run.document`) as tables for a person."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from services.cli.report import Document
from services.mesh.accelerators import load_catalogue
from services.mesh.money import format_usd


def table(title: str | None, *columns: str) -> Table:
    """A plain table: columns whose names start with `>` are right-aligned."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return made


def accelerator_name(key: str) -> str:
    """How the catalogue calls it; the key itself where the catalogue does not know it."""
    known = load_catalogue().find(key)
    return known.name if known else key


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:,.0f} ms" if value < 1 else f"{value:,.2f} s"


def dollars_per_mtok(value: float | None) -> str:
    return "-" if value is None else f"${value:,.4f}"


def joules(energy_j: float, measured_j: float) -> str:
    """Energy, and what it rests on: a meter, the catalogue's model, or how much of it on a meter."""
    if not energy_j or not measured_j:
        return f"{energy_j:,.0f} J" + (" catalogue" if energy_j else "")
    if measured_j >= energy_j:
        return f"{energy_j:,.0f} J measured"
    return f"{energy_j:,.0f} J, {measured_j / energy_j:.0%} measured"


def pictures(document: Document) -> Iterator[RenderableType]:
    """The report, part by part."""
    yield _headline(document)
    yield ""
    yield _accelerators(document)
    yield ""
    yield _tenants(document)
    yield ""
    yield _promises(document)
    yield ""
    yield from _lines(document)


def served(document: Document) -> int:
    """Kinds of accelerator that made at least one token."""
    return sum(1 for row in document["by_accelerator"] if row["completion_tokens"])


def _headline(document: Document) -> str:
    requests, tokens = document["requests"], document["tokens"]
    count = served(document)
    parts = [
        f"[bold]{count} accelerator{'' if count == 1 else 's'} served[/]",
        f"{requests['sent']:,} requests",
        f"[bold {'red' if requests['failed'] else 'green'}]{requests['failed']:,} failed requests[/]",
    ]
    if requests["refused"]:
        parts.append(f"[yellow]{requests['refused']:,} refused[/]")
    parts.append(f"{tokens['completion']:,} tokens made from {tokens['prompt']:,} prompt tokens")
    parts.append(f"{document['tokens_per_s']:,.0f} tokens/s over {document['duration_s']:.1f} s")
    return " · ".join(parts)


def _accelerators(document: Document) -> Table:
    made = table(
        "By accelerator", "accelerator", ">requests", ">tokens", ">busy", ">energy", ">cost", ">cost $/M", ">price $/M"
    )
    for row in document["by_accelerator"]:
        made.add_row(
            accelerator_name(row["accelerator"]),
            f"{row['requests']:,}",
            f"{row['completion_tokens']:,}",
            seconds(row["device_s"]),
            joules(row["energy_j"], row["measured_energy_j"]),
            format_usd(row["use_cost_nusd"] + row["energy_cost_nusd"]),
            dollars_per_mtok(row["cost_usd_per_mtok"]),
            dollars_per_mtok(row["price_usd_per_mtok"]),
        )
    return made


def _tenants(document: Document) -> Table:
    made = table("By tenant and workload", "tenant", "workload", ">requests", ">prompt", ">tokens", ">price", ">margin")
    for row in document["by_tenant_workload"]:
        made.add_row(
            escape(row["tenant"]),
            escape(row["workload"]),
            f"{row['requests']:,}",
            f"{row['prompt_tokens']:,}",
            f"{row['completion_tokens']:,}",
            format_usd(row["price_nusd"]),
            format_usd(row["margin_nusd"]),
        )
    return made


def _promises(document: Document) -> Table:
    columns = (
        "SLO class",
        ">requests",
        ">met",
        *(f">{what} {q}" for what in ("TTFT", "TPOT") for q in ("p50", "p90", "p99")),
    )
    made = table("Promises kept, as the client felt them", *columns)
    rows: list[tuple[str, int, float, Any, Any]] = [
        (row["slo_class"], row["requests"], row["attainment"], row["ttft_s"], row["tpot_s"]) for row in document["slo"]
    ]
    if len(rows) > 1:
        requests = sum(row["requests"] for row in document["slo"])
        met = sum(row["met"] for row in document["slo"])
        rows.append(("all", requests, met / requests, document["latency"]["ttft_s"], document["latency"]["tpot_s"]))
    for name, requests, attainment, ttft_s, tpot_s in rows:
        made.add_row(name, f"{requests:,}", f"{attainment:.1%}", *_three(ttft_s), *_three(tpot_s))
    return made


def _three(values: Mapping[str, float] | None) -> tuple[str, ...]:
    return tuple(seconds(values[q] if values else None) for q in ("p50", "p90", "p99"))


def _lines(document: Document) -> Iterator[str]:
    if money := document["money"]:
        price, use, energy, margin = (
            format_usd(money[f"{name}_nusd"]) for name in ("price", "use_cost", "energy_cost", "margin")
        )
        yield (
            f"Money: price {price} ({dollars_per_mtok(money['price_usd_per_mtok'])} per million tokens) · use {use} +"
            f" energy {energy} ({dollars_per_mtok(money['cost_usd_per_mtok'])} per million) · margin {margin}"
        )
    if meter := document["meter"]:
        yield _agreement(meter)
    client = document["client"]
    if client["cpu_us_per_token"] is not None:
        late = client["sent_late_s"]["p99"]
        yield f"Client: {client['cpu_us_per_token']:.0f} µs of CPU per token · sent late p99 {seconds(late)}"
    reasons = {
        name: count for name, count in document["requests"]["by_reason"].items() if name not in ("stop", "length")
    }
    if reasons:
        yield "Ended otherwise: " + ", ".join(f"{escape(name)} {count:,}" for name, count in reasons.items())
    for failure in document["failures"]:
        yield f"  [red]{escape(failure['reason'])}[/] {failure['request_id']}: {escape(failure['message'])}"
    for trace in document["traces"]:
        yield f"Trace {trace['trace_id']} · request {trace['request_id']} · {escape(trace['model'])}"
    if document["synthesised"]:
        yield f"[dim]Not in the trace, made up from the seed: {', '.join(document['synthesised'])}.[/]"


def _agreement(meter: Document) -> str:
    told = f"clients received {meter['client_tokens']:,} tokens, the meter booked {meter['meter_tokens']:,}"
    if meter["equal"]:
        waste = f"{meter['waste_tokens']:,} tokens of waste"
        return f"Meter: [green]equal[/], to the token and the nano-dollar: {told}; {waste}"
    prices = f"{format_usd(meter['client_price_nusd'], 9)} told, {format_usd(meter['meter_price_nusd'], 9)} booked"
    return (
        f"Meter: [bold red]differs[/]: {told}; {prices}; {meter['lag_events']:,} events were still to book after"
        f" {meter['waited_s']:.0f} s"
    )
