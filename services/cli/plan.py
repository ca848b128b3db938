"""`tokenworks plan`: where the optimizer wants the work, and why."""

import asyncio
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import JsonFlag, OptimizerOption
from services.cli.output import command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from services.cli.access import Access
    from tokenworks.v1 import planning_pb2 as planning


def plan(
    model: Annotated[str, typer.Argument(help="Whose plan.")] = "llama-3.1-8b",
    *,
    why: Annotated[str, typer.Option(help="Why this pool is used as it is, and what would change that.")] = "",
    history: Annotated[
        int, typer.Option(min=0, max=3600, help="The latest so many decisions, and what came true.")
    ] = 0,
    optimizer: OptimizerOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Show the plan in force: pools, shadow prices, shares of each workload class, and what it rests on."""
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.wire_document import document_of

        access = read_access(optimizer=optimizer)
        if why:
            from services.cli.plan_reason import pictures

            reason = asyncio.run(_ask_why(access, model, why))
            output.result(document_of(reason), *pictures(reason))
            return
        if history:
            decisions = asyncio.run(_ask_history(access, model, history))
            output.result(document_of(decisions), _history(decisions), *_rolled_back(decisions))
            return
        found = asyncio.run(_ask(access, model))
        output.result(document_of(found), *_pictures(found))


async def _ask(access: "Access", model: str) -> "planning.RoutingPlan":
    from services.cli.peers import Peers

    async with Peers(access) as peers:
        return await peers.plan(model)


async def _ask_why(access: "Access", model: str, pool: str) -> "planning.PoolReason":
    from services.cli.peers import Peers

    async with Peers(access) as peers:
        return await peers.why(model, pool)


async def _ask_history(access: "Access", model: str, most: int) -> "planning.ListDecisionsResponse":
    from services.cli.peers import Peers

    async with Peers(access) as peers:
        return await peers.decisions(model, most)


def _history(found: "planning.ListDecisionsResponse") -> "RenderableType":
    from services.cli.report_view import table

    rows = table(
        "Decisions, newest first", "plan", "made", "because of", ">requests/s", ">predicted $ a request", ">realised",
        ">requests", ">promises kept", "tried",
    )  # fmt: skip
    for each in found.decisions:
        rows.add_row(
            each.plan,
            datetime.fromtimestamp(each.made_unix_ms / 1000, UTC).isoformat(" ", "seconds"),
            each.trigger,
            f"{each.demand_rps:.2f}",
            f"{each.predicted_usd_per_request:.7f}",
            f"{each.realised_usd_per_request:.7f}" if each.requests else "-",
            f"{each.requests:,}",
            f"{each.slo_met_requests / each.finished_requests:.1%}" if each.finished_requests else "-",
            _fate(each),
        )
    return rows


def _fate(decision: "planning.Decision") -> str:
    """Whether it was tried first, and what came of it."""
    if not decision.fate:
        return "-"
    return f"{decision.fate} ({decision.canary_share:.0%})"


def _rolled_back(found: "planning.ListDecisionsResponse") -> Iterator[str]:
    """A line for each plan that went back."""
    for each in found.decisions:
        if each.because:
            yield f"[bold]{each.plan}[/] was rolled back: {each.because}."


def bucket(start: int, end: int) -> str:
    """`256-1,023`, or `1,024 up` where there is no end."""
    return f"{start:,} up" if not end else f"{start:,}-{end - 1:,}"


def limits_in_words(limits: "Iterable[planning.PlanLimit]") -> Iterator[str]:
    """A line for each bound that binds or was passed."""
    for each in limits:
        what = f"{each.name} of {each.of}" if each.of else each.name
        if not each.most and each.exceeded and not each.usd_per_unit:
            yield f"[bold]{what}[/]: {each.used:,.2f} {each.unit} cannot be served: no pool keeps it."
        else:
            passed = "cannot be kept" if each.exceeded else "binds"
            yield (
                f"[bold]{what}[/] {passed}: {each.used:,.4g} of {each.most:,.4g} {each.unit}; one more is worth"
                f" ${each.usd_per_unit:,.3g}."
            )


def _pictures(found: "planning.RoutingPlan") -> Iterator["RenderableType"]:
    from services.cli.report_view import accelerator_name, table

    made = datetime.fromtimestamp(found.made_unix_ms / 1000, UTC).isoformat(" ", "seconds")
    took = f"{found.solve_s * 1000:.1f} ms"
    yield (
        f"[bold]{found.model}:{found.version}[/] · {found.status} · made {made} in {took}, because of"
        f" {found.evidence.trigger}"
    )
    if found.advisory:
        yield "[bold]Advice only[/] (optimizer.mode = advise): routers go on without it."
    if found.canary_share:
        yield f"[bold]Tried[/] on {found.canary_share:.0%} of the requests; the others follow the plan before it."
    if found.rolled_back:
        yield f"[bold]{found.rolled_back} was rolled back[/]: {found.because}."
    prediction = found.prediction
    yield (
        f"predicted ${prediction.cost_usd_per_hour:,.4f} per hour, against"
        f" ${prediction.baseline_cost_usd_per_hour:,.4f} by capacity; {prediction.unserved_rps:.2f} requests/s"
        " cannot be served"
    )
    yield from limits_in_words(found.limits)
    pools = table(
        "Pools", "pool", "accelerator", ">workers", ">planned use", ">shadow $/h", ">rate $/h", ">steps seen", ">error"
    )
    for pool in found.pools:
        pools.add_row(
            pool.pool,
            accelerator_name(pool.accelerator),
            f"{pool.workers}",
            f"{pool.utilisation:.1%}",
            f"{pool.shadow_usd_per_device_s * 3600:,.4f}",
            f"{pool.rate_usd_per_hour:,.2f}",
            f"{pool.observations:,}",
            f"{pool.mean_error:.1%}" if pool.observations else "-",
        )
    yield ""
    yield pools
    names = [pool.pool for pool in found.pools]
    shares = table(
        "Shares of each workload class", "class", "prompt", "answer", ">requests/s", *(f">{name}" for name in names)
    )
    by_class: dict[int, dict[str, str]] = {}
    for share in found.shares:
        cell = f"{share.share:.0%}" if share.feasible else "too slow"
        by_class.setdefault(share.workload_class, {})[share.pool] = cell
    for index, each in enumerate(found.classes):
        cells = by_class.get(index, {})
        shares.add_row(
            f"{each.slo_class} {each.within}".rstrip(),
            bucket(each.prompt_tokens_from, each.prompt_tokens_to),
            bucket(each.completion_tokens_from, each.completion_tokens_to),
            f"{each.demand_rps:.2f}",
            *(cells.get(name, "-") for name in names),
        )
    yield ""
    yield shares if found.classes else "No demand was seen yet, so no class has shares."
    if found.targets:
        targets = table("Replicas", "pool", ">ready", ">wanted", ">cold start s", "because of")
        for target in found.targets:
            counts = f"{target.ready}", f"{target.replicas}"
            targets.add_row(target.pool, *counts, f"{target.cold_start_s:.0f}", target.because)
        yield ""
        yield targets
    evidence = found.evidence
    yield (
        f"[dim]Rests on {evidence.latency_events:,} latency, {evidence.token_events:,} token and"
        f" {evidence.request_events:,} request events of the last {evidence.window_s:.0f} s.[/]"
    )
