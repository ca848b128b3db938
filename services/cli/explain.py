"""`tokenworks explain REQUEST_ID`: why a request went where it went, in dollars; and what it cost in the end."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from services.cli.options import JsonFlag, KeyOption, MeterOption, RouterOption, TenantOption
from services.cli.output import command

if TYPE_CHECKING:
    from rich.table import Table

    from services.cli.access import Access
    from tokenworks.v1 import inference_pb2 as wire
    from tokenworks.v1 import metering_pb2 as metering


def explain(
    request_id: Annotated[str, typer.Argument(help="As `generate` and the reports print it.")],
    *,
    router: RouterOption = "",
    key: KeyOption = "",
    tenant: TenantOption = "local",
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Show the candidates of one request with what each would have cost, and its whole bill as it is booked."""
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.wire_document import document_of

        access = read_access(router=router, meter=meter)
        found, bill = asyncio.run(_ask(access, access.key(key, tenant), request_id))
        plan = f"plan {found.plan}, {found.plan_age_s:.1f} s old" if found.plan else "no plan had arrived"
        waited = f" after waiting {found.waited_s:.2f} s for capacity" if found.waited_s else ""
        head = (
            f"[bold]{found.request_id}[/] · {escape(found.tenant)} · {escape(found.workload) or '-'}"
            f" · {found.model} · {found.slo_class}\n"
            f"about {found.prompt_tokens:,} prompt tokens and {found.expected_completion_tokens:,} to make; went to"
            f" [bold]{found.picked_worker}[/] in {found.decision_us:.0f} µs{waited}; {plan}; outcome: {found.outcome}\n"
            f"{_lengths(found)}trace {found.trace_id}"
        )
        document = {**document_of(found), "bill": document_of(bill) if bill else None}
        pictures = [_bill(bill)] if bill else ["[yellow]The meter has booked nothing of it yet, or does not answer.[/]"]
        output.result(document, head, "", _table(found), "", *pictures)


async def _ask(access: "Access", key: str, request_id: str) -> "tuple[wire.Explanation, metering.RequestBill | None]":
    """The router's word and, where the meter has one, its bill."""
    from services.cli.peers import Peers
    from tokenworks import Client
    from tokenworks.errors import CallError

    async with Client(access.router, key) as client, Peers(access) as peers:
        found = await client.explain(request_id)
        try:
            bill = await peers.bill(found.request_id)
        except CallError:
            return found, None
        return found, bill


def _lengths(found: "wire.Explanation") -> str:
    """What was known of answers like its."""
    if not found.HasField("median_completion"):
        return ""
    words = (
        f"{name} {each.tokens:,.0f} ({each.least:,.0f} to {each.most:,.0f})"
        for name, each in (("half within", found.median_completion), ("nine of ten within", found.p90_completion))
    )
    rests = f"by {found.known_answers:,.0f} answers" if found.known_answers else "a guess: none has ended yet"
    return f"answers like its: {', '.join(words)} tokens, {rests}\n"


def _bill(bill: "metering.RequestBill") -> "Table":
    """What it was billed, what it cost by account and worker, and what is left."""
    from services.cli.report_view import accelerator_name, table
    from services.mesh.money import format_usd

    state = "booked" if bill.settled else "as it stands: its hour's bill is not booked yet"
    made = table(f"Its bill by {bill.price_book}; costs {state}", "what", "where", ">amount")
    made.add_row("price", "", format_usd(bill.price_nusd, 9))
    if bill.price_book != bill.admitted_price_book:
        made.add_row(f"  its router named {escape(bill.admitted_price_book)}", "", "")
    if bill.credit_nusd:
        made.add_row("credit: its promise was not kept", "", format_usd(-bill.credit_nusd, 9))
    by_worker = {each.worker: each for each in bill.segments}
    made.add_row("use", "", format_usd(-bill.use_cost_nusd, 9))
    made.add_row("energy", "", format_usd(-bill.energy_cost_nusd, 9))
    for worker, each in by_worker.items():
        where = f"{worker}, {accelerator_name(each.accelerator)}"
        work = f"  {each.count:,} tokens, {each.device_ns / 1e6:,.1f} ms of it, {each.energy_uj / 1e6:,.2f} J"
        made.add_row(work, where, "")
    made.add_row("idle: its part of time that nobody used", "", format_usd(-bill.idle_cost_nusd, 9))
    if bill.house_cost_nusd:
        made.add_row("borne by the house: waste, replays", "", format_usd(-bill.house_cost_nusd, 9))
    made.add_section()
    made.add_row("margin", f"{bill.carbon_ug / 1e3:,.2f} mg CO2e", format_usd(bill.margin_nusd, 9), style="bold")
    return made


def _table(found: "wire.Explanation") -> "Table":
    from services.cli.report_view import accelerator_name, seconds, table

    money = (">score", ">use", ">energy", ">shadow", ">SLO risk", ">prefix saves")
    made = table(
        "Candidates, best first, in micro-dollars",
        "worker",
        "accelerator",
        *money,
        ">queue",
        ">TTFT",
        ">TPOT",
        ">miss",
        "why not",
    )
    for each in found.candidates:
        dollars = (
            each.score_usd,
            each.use_usd,
            each.energy_usd,
            each.shadow_usd,
            each.slo_risk_usd,
            each.prefix_saving_usd,
        )
        made.add_row(
            each.worker,
            accelerator_name(each.accelerator),
            *(f"{value * 1e6:,.2f}" if each.feasible else "-" for value in dollars),
            *(
                seconds(value) if each.feasible else "-"
                for value in (each.predicted_queue_s, each.predicted_ttft_s, each.predicted_tpot_s)
            ),
            f"{each.miss_probability:.1%}" if each.feasible else "-",
            each.rejected_because,
            style="bold" if each.worker == found.picked_worker else None,
        )
    return made
