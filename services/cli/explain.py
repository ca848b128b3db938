"""`tokenworks explain REQUEST_ID`: why a request went where it went, in dollars."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from services.cli.options import JsonFlag, KeyOption, RouterOption, TenantOption
from services.cli.output import command

if TYPE_CHECKING:
    from rich.table import Table

    from tokenworks.v1 import inference_pb2 as wire


def explain(
    request_id: Annotated[str, typer.Argument(help="As `generate` and the reports print it.")],
    *,
    router: RouterOption = "",
    key: KeyOption = "",
    tenant: TenantOption = "local",
    as_json: JsonFlag = False,
) -> None:
    """Show the candidates of one request, best first, and what each would have cost."""
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.cli.wire_document import document_of

        access = read_access(router=router)
        found = asyncio.run(_ask(access.router, access.key(key, tenant), request_id))
        plan = f"plan {found.plan}, {found.plan_age_s:.1f} s old" if found.plan else "no plan had arrived"
        head = (
            f"[bold]{found.request_id}[/] · {escape(found.tenant)} · {escape(found.workload) or '-'}"
            f" · {found.model} · {found.slo_class}\n"
            f"about {found.prompt_tokens:,} prompt tokens and {found.expected_completion_tokens:,} to make; went to"
            f" [bold]{found.picked_worker}[/] in {found.decision_us:.0f} µs; {plan}; outcome: {found.outcome}\n"
            f"trace {found.trace_id}"
        )
        output.result(document_of(found), head, "", _table(found))


async def _ask(router: str, key: str, request_id: str) -> "wire.Explanation":
    from tokenworks import Client

    async with Client(router, key) as client:
        return await client.explain(request_id)


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
