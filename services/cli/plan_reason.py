"""A `PoolReason` in words and a table: what `tokenworks plan MODEL --why POOL` shows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from services.cli.plan import bucket, limits_in_words
from services.cli.report_view import accelerator_name, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tokenworks.v1 import planning_pb2 as planning

_MOST_TRACES: Final = 4
_CANNOT: Final = {
    "context": "prompt and answer do not fit its context",
    "memory": "not one request fits its KV cache",
    "tpot": "it cannot keep the promised time per token",
    "ttft": "it cannot keep the promised time to the first token",
    "placement": "none of it is where these may be computed",
    "no demand": "nobody asks for it now",
}


def pictures(reason: "planning.PoolReason") -> Iterator["RenderableType"]:
    """What there is to say about one pool."""
    workers = "1 worker" if reason.workers == 1 else f"{reason.workers} workers"
    yield (
        f"[bold]{reason.pool}[/] · {accelerator_name(reason.accelerator)} · {workers} at"
        f" ${reason.rate_usd_per_hour:,.2f} an hour · {reason.utilisation:.1%} of its time planned · {reason.status}"
    )
    if reason.binding:
        yield (
            f"Its capacity binds: an hour more of it is worth ${reason.shadow_usd_per_device_s * 3600:,.4f} beside its"
            f" price, and one more worker would save ${reason.saving_usd_per_hour:,.4f} an hour."
        )
    else:
        yield "Its capacity does not bind: more of it would save nothing now."
    rows = table(
        "By workload class", "class", "prompt", "answer", ">requests/s", ">share", ">$ a request",
        ">with its capacity's price", "best", ">there", "why",
    )  # fmt: skip
    for each in reason.classes:
        named = each.workload_class
        rows.add_row(
            named.slo_class,
            bucket(named.prompt_tokens_from, named.prompt_tokens_to),
            bucket(named.completion_tokens_from, named.completion_tokens_to),
            f"{named.demand_rps:.2f}",
            f"{each.share:.0%}",
            f"{each.usd_per_request:.6f}",
            f"{each.told_usd_per_request:.6f}",
            each.best_pool or "-",
            f"{each.best_told_usd_per_request:.6f}" if each.best_pool else "-",
            _words(each),
        )
    yield ""
    yield rows if reason.classes else "No demand was seen yet, so there is no class to give it."
    yield from limits_in_words(reason.limits)
    evidence = reason.evidence
    yield (
        f"[dim]Rests on {evidence.latency_events:,} latency, {evidence.token_events:,} token and"
        f" {evidence.request_events:,} request events of the last {evidence.window_s:.0f} s.[/]"
    )
    if evidence.traceparents:
        traces = ", ".join(each.split("-")[1] for each in list(evidence.traceparents)[:_MOST_TRACES])
        yield f"[dim]The latest latencies are from the traces {traces}.[/]"


def _words(each: "planning.ClassReason") -> str:
    """Why the class goes there or not, and what would change it."""
    match each.because:
        case "cheapest":
            return "cheapest, all told"
        case "shared":
            return "as cheap as the best, all told"
        case "full":
            return "cheapest, but full: others make more of its capacity"
        case "dearer" if each.breakeven_usd_per_hour > 0:
            return f"dearer; as good at ${each.breakeven_usd_per_hour:,.2f} an hour"
        case "dearer":
            return "dearer, even at no hourly rate"
        case other:
            return _CANNOT.get(other, other)
