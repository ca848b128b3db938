"""How `tokenworks up` looks: the services while they start, the first text, the addresses that are open."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from rich.console import Group
from rich.live import Live
from rich.markup import escape

from services.cli.demo import FirstText
from services.cli.layout import Layout
from services.cli.output import Output
from services.cli.report_view import seconds, table
from services.cli.supervisor import Child, ChildState, Supervisor

_REDRAW_S: Final = 0.2
_COLOURS: Final = {
    ChildState.READY: "green",
    ChildState.FAILED: "bold red",
    ChildState.RESTARTING: "yellow",
    ChildState.STOPPED: "dim",
}


@asynccontextmanager
async def showing(output: Output, supervisor: Supervisor, started_s: float) -> AsyncIterator[None]:
    """Shows every child's state until the context ends; the last picture stays."""
    if output.live:
        with Live(console=output.console, auto_refresh=False) as live:
            redrawing = asyncio.create_task(_redraw(live, supervisor, started_s))
            try:
                yield
            finally:
                redrawing.cancel()
                live.update(picture(supervisor, started_s), refresh=True)
    else:
        telling = asyncio.create_task(_tell(output, supervisor))
        try:
            yield
        finally:
            telling.cancel()


def first_text_lines(first: FirstText) -> list[str]:
    how = "simulated, so not real words" if first.simulated else "a real model, on this machine's CPU"
    after_s = first.asked_after_s + first.ttft_s
    timed = f"{after_s:.1f} s after the start (first token {seconds(first.ttft_s)} after the question)"
    return [
        "",
        f"The first text, from {first.model} ({how}), {timed}:",
        f"  [italic]{escape(first.text)}[/]",
        "",
    ]


def addresses(layout: Layout) -> dict[str, str]:
    """What is open: gRPC as host:port, HTTP as URLs."""
    access = layout.access
    urls = {spec.kind: f"http://{spec.ready_at}" for spec in layout.services if spec.kind in ("router", "traces")}
    found = {
        "router": access.router,
        "meter": access.meter,
        "optimizer": access.optimizer,
        "nats": access.nats,
        "http": urls["router"],
    }
    return found | ({"traces": urls["traces"]} if "traces" in urls else {})


def address_lines(layout: Layout, client_file: Path) -> list[str]:
    at = addresses(layout)
    return [
        "[bold]Open[/]",
        f"  gRPC     router {at['router']} · meter {at['meter']} · optimizer {at['optimizer']}",
        f"  HTTP     {at['http']}/v1 (OpenAI's API) · {at['http']}/metrics",
        f"  NATS     {at['nats']}",
        *([f"  Traces   {at['traces']}"] if "traces" in at else []),
        f"  Keys     {client_file} (the commands below find them there)",
        "[bold]Try[/]",
        '  tokenworks generate "Tell me a joke"       text, then its bill and trace',
        "  tokenworks usage --by tenant,accelerator   who used what, on what, at what cost",
        "  tokenworks top                             the fleet, live",
        "  tokenworks plan                            where the optimizer wants the work",
    ]


def picture(supervisor: Supervisor, started_s: float) -> Group:
    made = table(None, "service", "state", ">ready after", "what")
    for child in supervisor.children.values():
        colour = _COLOURS.get(child.state, "default")
        made.add_row(child.spec.id, f"[{colour}]{child.state}[/]", _ready_after(child), escape(child.spec.shown))
    return Group(made, f"[dim]{time.monotonic() - started_s:.1f} s since the start[/]")


def _ready_after(child: Child) -> str:
    return "" if child.ready_after_s is None else f"{child.ready_after_s:.1f} s"


async def _redraw(live: Live, supervisor: Supervisor, started_s: float) -> None:
    while True:
        live.update(picture(supervisor, started_s), refresh=True)
        await asyncio.sleep(_REDRAW_S)


async def _tell(output: Output, supervisor: Supervisor) -> None:
    told: dict[str, ChildState] = {}
    while True:
        for name, child in supervisor.children.items():
            if child.state is not told.get(name) and child.state in (ChildState.READY, ChildState.FAILED):
                output.say(f"{name} is {child.state} after {_ready_after(child) or '-'} · {escape(child.spec.shown)}")
            told[name] = child.state
        await asyncio.sleep(_REDRAW_S)
