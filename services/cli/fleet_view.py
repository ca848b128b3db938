"""The fleet as `tokenworks top` shows it: what heartbeats, bookings and plans say, folded into one frame.

In: events as they come, and a reading of a monotonic clock. Out: a document, and the same as tables. Rates of workers
are between heartbeats at most `_RATE_SPAN_S` apart, those of routers of what they said within `_ROUTER_SPAN_S`; who
stops to speak is shown as lost.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.markup import escape

from services.cli.report_view import accelerator_name, table
from services.mesh.events import MODELLED, PlacementsMade, RoutingPlan, WorkerHeartbeat
from services.mesh.money import format_usd

LOST_AFTER_S: Final = 2.0
_RATE_SPAN_S: Final = 2.0
ROUTER_LOST_AFTER_S: Final = 5.0  # it speaks once a second at least
_ROUTER_SPAN_S: Final = 10.0
_HEARTBEATS_KEPT: Final = 16  # four seconds' worth
_STATE_COLOURS: Final = {"ready": "green", "draining": "yellow", "failed": "bold red", "lost": "bold red"}


@dataclass(slots=True)
class _Worker:
    heartbeats: deque[tuple[float, WorkerHeartbeat]] = field(default_factory=lambda: deque(maxlen=_HEARTBEATS_KEPT))

    def tokens_per_s(self) -> float:
        last_s, last = self.heartbeats[-1]
        for seen_s, heartbeat in self.heartbeats:
            if heartbeat.epoch == last.epoch and seen_s < last_s and last_s - seen_s <= _RATE_SPAN_S:
                return (last.generated_tokens - heartbeat.generated_tokens) / (last_s - seen_s)
        return 0.0


@dataclass(slots=True)
class _Router:
    """What a router said: since when it is heard, its last word, and (when, placed, refused) of the latest ones."""

    since_s: float
    heard_s: float = 0.0
    waiting: int = 0
    words: deque[tuple[float, int, int]] = field(default_factory=deque)

    def hear(self, said: PlacementsMade, now_s: float) -> None:
        self.heard_s, self.waiting = now_s, said.waiting
        self.words.append((now_s, sum(each.requests for each in said.placed), said.refused))
        self.drop_old(now_s)

    def drop_old(self, now_s: float) -> None:
        while self.words and self.words[0][0] <= now_s - _ROUTER_SPAN_S:
            self.words.popleft()

    def document(self, router: str, now_s: float) -> dict[str, Any]:
        self.drop_old(now_s)
        span_s = min(_ROUTER_SPAN_S, max(1.0, now_s - self.since_s))
        lost = now_s - self.heard_s > ROUTER_LOST_AFTER_S
        return {
            "router": router,
            "state": "lost" if lost else "ready",
            "waiting": 0 if lost else self.waiting,
            "placed_rps": sum(placed for _, placed, _ in self.words) / span_s,
            "refused_rps": sum(refused for _, _, refused in self.words) / span_s,
        }


@dataclass(slots=True)
class TenantSpend:
    requests: int = 0
    tokens: int = 0
    price_nusd: int = 0
    cost_nusd: int = 0
    credit_nusd: int = 0
    margin_nusd: int = 0


class FleetView:
    """Folds what is seen; `document` and `picture` give the frame at a moment."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._routers: dict[str, _Router] = {}
        self._plans: dict[str, RoutingPlan] = {}
        self._tenants: dict[str, TenantSpend] = {}
        self.lag_events = 0
        self.at_risk_nusd = 0
        self.running_requests = 0

    @property
    def workers(self) -> int:
        return len(self._workers)

    def heartbeat(self, heartbeat: WorkerHeartbeat, now_s: float) -> None:
        self._workers.setdefault(heartbeat.worker, _Worker()).heartbeats.append((now_s, heartbeat))

    def placed(self, said: PlacementsMade, now_s: float) -> None:
        """What a router has placed and refused since its last word, and what waits there."""
        self._routers.setdefault(said.router, _Router(now_s)).hear(said, now_s)

    def plan(self, plan: RoutingPlan) -> None:
        self._plans[plan.model] = plan

    def spent(self, tenant: str, spend: TenantSpend) -> None:
        """What a tenant has spent in all, replacing what was known."""
        self._tenants[tenant] = spend

    def document(self, now_s: float) -> dict[str, Any]:
        workers = []
        for name in sorted(self._workers):
            worker = self._workers[name]
            seen_s, last = worker.heartbeats[-1]
            lost = now_s - seen_s > LOST_AFTER_S
            workers.append(
                {
                    "worker": name,
                    "pool": last.pool,
                    "accelerator": last.accelerator,
                    "engine": last.engine,
                    "simulated": last.simulated,
                    "models": list(last.models),
                    "state": "lost" if lost else str(last.state),
                    "running": last.running,
                    "waiting": last.waiting,
                    "kv_cache_usage": last.kv_cache_usage,
                    "tokens_per_s": 0.0 if lost else worker.tokens_per_s(),
                    "power_w": last.power_w,
                    "power_source": last.power_source,
                    "utilisation": last.utilisation,
                    "slowdown": last.slowdown,
                    "generated_tokens": last.generated_tokens,
                    "rate_usd_per_hour": last.rate_nusd_per_hour / 1e9,
                    "failed_because": last.failed_because,
                }
            )
        return {
            "workers": workers,
            "routers": [router.document(name, now_s) for name, router in sorted(self._routers.items())],
            "tenants": [
                {
                    "tenant": tenant,
                    "requests": spend.requests,
                    "tokens": spend.tokens,
                    "price_nusd": spend.price_nusd,
                    "cost_nusd": spend.cost_nusd,
                    "credit_nusd": spend.credit_nusd,
                    "margin_nusd": spend.margin_nusd,
                }
                for tenant, spend in sorted(self._tenants.items())
            ],
            "plans": [
                {
                    "plan": plan.name,
                    "status": plan.status,
                    "classes": len(plan.classes),
                    "demand_rps": sum(each.demand_rps for each in plan.classes),
                    "unserved_rps": plan.prediction.unserved_rps,
                    "cost_usd_per_hour": plan.prediction.cost_usd_per_hour,
                    "baseline_cost_usd_per_hour": plan.prediction.baseline_cost_usd_per_hour,
                }
                for _, plan in sorted(self._plans.items())
            ],
            "lag_events": self.lag_events,
            "at_risk_nusd": self.at_risk_nusd,
            "running_requests": self.running_requests,
        }


def picture(document: dict[str, Any]) -> RenderableType:
    """One frame."""
    return Group(_workers(document), "", _routers(document), "", _tenants(document), "", _plans(document))


def _workers(document: dict[str, Any]) -> RenderableType:
    made = table(
        "Workers",
        "worker",
        "accelerator",
        "state",
        ">running",
        ">waiting",
        ">KV",
        ">tokens/s",
        ">busy",
        ">W",
        "told by",
        ">slowdown",
        ">$/h",
    )
    for row in document["workers"]:
        colour = _STATE_COLOURS.get(row["state"], "default")
        made.add_row(
            row["worker"],
            accelerator_name(row["accelerator"]) + ("" if row["simulated"] else " [bold](real)[/]"),
            f"[{colour}]{row['state']}[/]" + (f": {escape(row['failed_because'])}" if row["failed_because"] else ""),
            f"{row['running']:,}",
            f"{row['waiting']:,}",
            f"{row['kv_cache_usage']:.0%}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['utilisation']:.0%}",
            f"{row['power_w']:,.0f}",
            "catalogue" if row["power_source"] == MODELLED else f"measured {escape(row['power_source'])}",
            f"{row['slowdown']:.2f}",
            f"{row['rate_usd_per_hour']:,.2f}",
        )
    rate = sum(row["tokens_per_s"] for row in document["workers"])
    power = sum(row["power_w"] for row in document["workers"])
    made.add_row("all", "", "", "", "", "", f"{rate:,.0f}", "", f"{power:,.0f}", "", "", "", style="bold")
    return made


def _routers(document: dict[str, Any]) -> RenderableType:
    made = table("Routers", "router", "state", ">waiting", ">placed/s", ">refused/s")
    for row in document["routers"]:
        refused = f"{row['refused_rps']:,.1f}"
        made.add_row(
            escape(row["router"]),
            f"[{_STATE_COLOURS[row['state']]}]{row['state']}[/]",
            f"{row['waiting']:,}",
            f"{row['placed_rps']:,.1f}",
            f"[yellow]{refused}[/]" if row["refused_rps"] else refused,
        )
    return made


def _tenants(document: dict[str, Any]) -> RenderableType:
    risk = f"{document['running_requests']:,} under way, {format_usd(document['at_risk_nusd'])} of credits at risk"
    columns = ("tenant", ">requests", ">tokens", ">price", ">cost", ">credits", ">margin")
    made = table(f"Tenants, all time; {risk}", *columns)
    for row in document["tenants"]:
        made.add_row(
            escape(row["tenant"]) or "house",
            f"{row['requests']:,}",
            f"{row['tokens']:,}",
            format_usd(row["price_nusd"]),
            format_usd(row["cost_nusd"]),
            format_usd(row["credit_nusd"]),
            format_usd(row["margin_nusd"]),
        )
    return made


def _plans(document: dict[str, Any]) -> RenderableType:
    made = table(
        "Plans in force", "plan", "status", ">classes", ">requests/s", ">cannot serve", ">$/h", ">by capacity $/h"
    )
    for row in document["plans"]:
        made.add_row(
            row["plan"],
            row["status"],
            f"{row['classes']}",
            f"{row['demand_rps']:.2f}",
            f"{row['unserved_rps']:.2f}",
            f"{row['cost_usd_per_hour']:,.4f}",
            f"{row['baseline_cost_usd_per_hour']:,.4f}",
        )
    return made
