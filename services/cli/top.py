"""`tokenworks top`: the fleet, live: workers, routers, tenants' spend, plans."""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli.options import JsonFlag, MeterOption, NatsOption
from services.cli.output import CommandFailed, Output, command

if TYPE_CHECKING:
    from services.cli.access import Access
    from services.cli.fleet_view import FleetView
    from services.cli.peers import Peers
    from services.mesh.bus import Bus

_REDRAW_S: Final = 0.5
_SPEND_EVERY_S: Final = 1.0
_FIRST_FRAME_S: Final = 2.5  # long enough for a rate between two heartbeats
_MOST_WAITED_S: Final = 5.0


def top(
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit; --json implies it.")] = False,
    nats: NatsOption = "",
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Watch the workers, what waits at routers and is refused, what tenants spend, and the plans, until Ctrl-C."""
    with command(as_json) as output:
        from services.cli.access import read_access

        access = read_access(nats=nats, meter=meter)
        try:
            asyncio.run(_top(output, access, once or as_json or not output.live))
        except KeyboardInterrupt:
            output.say()


async def _top(output: Output, access: "Access", once: bool) -> None:
    from rich.live import Live

    from services.cli.fleet_view import FleetView, picture
    from services.cli.peers import Peers
    from services.mesh.clock import SystemClock
    from services.mesh.nats.bus import NatsBus
    from services.mesh.settings import NatsSettings
    from services.mesh.telemetry import start_telemetry

    view = FleetView()
    settings = NatsSettings(url=access.nats, connect_timeout_s=_MOST_WAITED_S)
    telemetry = start_telemetry("client", "top")
    bus = NatsBus(settings, "client", "top", telemetry, SystemClock())
    await bus.connect()
    async with Peers(access) as peers:
        watching = [asyncio.create_task(each) for each in (_watch_fleet(bus, view), _watch_spend(peers, view))]
        try:
            await _first_frame(view, access)
            if once:
                document = view.document(time.monotonic())
                output.result(document, picture(document))
                return
            with Live(console=output.console, screen=True, auto_refresh=False) as live:
                while True:
                    live.update(picture(view.document(time.monotonic())), refresh=True)
                    await asyncio.sleep(_REDRAW_S)
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await bus.close()
            telemetry.shutdown()


async def _first_frame(view: "FleetView", access: "Access") -> None:
    """Waits for heartbeats, and then for rates between them."""
    started_s = time.monotonic()
    while not view.workers:
        if time.monotonic() - started_s > _MOST_WAITED_S:
            raise CommandFailed(
                f"no worker is heard on {access.nats}; start the mesh with `tokenworks up`", reason="NoWorker"
            )
        await asyncio.sleep(_REDRAW_S / 5)
    await asyncio.sleep(_FIRST_FRAME_S)


async def _watch_fleet(bus: "Bus", view: "FleetView") -> None:
    from services.mesh.bus import Delivered
    from services.mesh.events import PlacementsMade, RoutingPlan, WorkerHeartbeat
    from services.mesh.subjects import FLEET, PLAN, ROUTERS

    async def fold(delivered: Delivered) -> None:
        event = delivered.event
        if isinstance(event, WorkerHeartbeat):
            view.heartbeat(event, time.monotonic())
        elif isinstance(event, PlacementsMade):
            view.placed(event, time.monotonic())
        elif isinstance(event, RoutingPlan):
            view.plan(event)

    await bus.watch([FLEET, ROUTERS, PLAN], fold)


async def _watch_spend(peers: "Peers", view: "FleetView") -> None:
    from services.cli.fleet_view import TenantSpend
    from tokenworks.errors import CallError
    from tokenworks.v1 import metering_pb2 as metering

    while True:
        try:
            answer = await peers.usage(metering.GetUsageRequest(group_by=["tenant"]))
        except CallError as error:
            if not error.passing:
                raise
        else:
            view.lag_events, view.at_risk_nusd = answer.lag_events, answer.at_risk_nusd
            view.running_requests = answer.running_requests
            for row in answer.rows:
                cost_nusd = row.use_cost_nusd + row.energy_cost_nusd + row.idle_cost_nusd + row.house_cost_nusd
                view.spent(
                    row.key.tenant,
                    TenantSpend(
                        row.requests,
                        row.delivered_tokens,
                        row.price_nusd + row.adjustment_nusd,
                        cost_nusd,
                        row.credit_nusd,
                        row.margin_nusd,
                    ),
                )
        await asyncio.sleep(_SPEND_EVERY_S)
