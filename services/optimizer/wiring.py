"""The optimizer, put together: once, top to bottom."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Final

from services.mesh.accelerators import load_catalogue
from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.footing import find_footing
from services.mesh.httpd import HttpServer
from services.mesh.lifecycle import Lifecycle, cancel_all
from services.mesh.settings import OptimizerSettings, Settings
from services.mesh.telemetry import Telemetry
from services.optimizer.board import PlanBoard
from services.optimizer.core.beliefs import Assumptions, Beliefs
from services.optimizer.core.canary import Canary, Terms
from services.optimizer.core.caps import Caps
from services.optimizer.core.elastic import Elastic
from services.optimizer.core.planner import Planner
from services.optimizer.core.service_curve import Promise
from services.optimizer.feed import Feed
from services.optimizer.loop import PlanningLoop
from services.optimizer.measures import Measures
from services.optimizer.service import SERVICE_NAME, OptimizerService
from services.optimizer.targets import TargetRoutes
from tokenworks.v1 import planning_pb2_grpc

log = logging.getLogger(__name__)

_STOPPING_S: Final = 3.0  # for what a stop step does beside waiting


@dataclass(frozen=True, slots=True)
class RunningOptimizer:
    """An optimizer that serves, with the parts that a test looks into."""

    host: str
    grpc_port: int
    http_port: int
    http: HttpServer
    beliefs: Beliefs
    board: PlanBoard


def assumptions_of(settings: Settings) -> Assumptions:
    """What the core takes from the settings."""
    optimizer = settings.optimizer
    return Assumptions(
        promises={
            name: Promise(each.ttft_s, each.ttft_s_per_prompt_token, each.tpot_s, float(each.miss_usd))
            for name, each in settings.slo.classes.items()
        },
        target_utilisation=optimizer.target_utilisation,
        tariff_usd_per_kwh=float(settings.energy.tariff_usd_per_kwh),
        forgetting=optimizer.forgetting,
        window_s=optimizer.window_s,
        marked_change=optimizer.marked_change,
        heartbeat_timeout_s=settings.router.heartbeat_timeout_s,
        caps=Caps(optimizer.carbon_cap_g_per_hour, optimizer.carbon_cap_g_per_mtoken, optimizer.spot_share),
        grid_g_per_kwh=settings.energy.grid_g_per_kwh,
        tariffs=settings.energy.tariffs,
        elastic=settings.elastic.pools,
    )


def canary_terms(optimizer: OptimizerSettings) -> Terms:
    """How plans are tried."""
    return Terms(
        optimizer.canary_share,
        optimizer.canary_s,
        optimizer.canary_requests,
        optimizer.canary_worse,
        optimizer.canary_rest_s,
    )


async def wire(
    life: Lifecycle,
    settings: Settings,
    *,
    bus: Bus | None = None,
    telemetry: Telemetry | None = None,
    clock: Clock | None = None,
) -> RunningOptimizer:
    """Starts an optimizer under `life`; it stops with it.

    Args:
        bus: connected already; NATS as the settings say when None.
        telemetry, clock: the process's own when None.

    Raises:
        OSError: an address is taken. BusUnavailable: NATS does not answer.
        SettingInvalid: a pool of `elastic.pools` has an accelerator or a model that the catalogue does not know.
    """
    optimizer, mesh = settings.optimizer, settings.mesh
    footing = await find_footing(life, settings, "optimizer", optimizer.id, bus=bus, telemetry=telemetry, clock=clock)
    bus, telemetry, clock = footing.bus, footing.telemetry, footing.clock

    catalogue = load_catalogue()
    for each in settings.elastic.pools:  # one that is not known stops the process here, not every plan
        for model in each.models:
            catalogue.timing(catalogue.accelerator(each.accelerator), catalogue.model(model))
    beliefs = Beliefs(catalogue, assumptions_of(settings), clock.monotonic_s())
    planner = Planner()
    board = PlanBoard()
    elastic = Elastic(settings.elastic.headroom)
    loop = PlanningLoop(
        beliefs=beliefs,
        planner=planner,
        board=board,
        bus=bus,
        measures=Measures(telemetry.meter, clock),
        telemetry=telemetry,
        clock=clock,
        interval_s=optimizer.interval_s,
        elastic=elastic,
        canary=Canary(canary_terms(settings.optimizer), beliefs.decisions),
        advisory=optimizer.mode == "advise",
    )
    tasks = [
        life.spawn(Feed(bus, beliefs, planner, loop, clock).watch(), "feed"),
        life.spawn(loop.run(), "planning"),
    ]

    grpc = FastGrpcServer(telemetry, life, max_message_bytes=mesh.max_message_bytes)
    service = OptimizerService(board, beliefs, clock, settings.secrets)
    grpc.add(planning_pb2_grpc.add_OptimizerServicer_to_server, service, SERVICE_NAME)
    http = HttpServer(telemetry, life, routes=TargetRoutes(elastic, clock).routes())
    grpc_port = await grpc.start(mesh.host, optimizer.port)
    http_port = await http.start(mesh.host, optimizer.http_port)

    async def stop_planning() -> None:
        await cancel_all(tasks)
        if left := await bus.flush(_STOPPING_S):
            log.warning("%d plans were not acknowledged by the bus; the ones before stay in force", left)

    # Last in, first out: watchers end, then calls, then what they ask.
    life.on_stop("planning", stop_planning, _STOPPING_S * 2)
    life.on_stop("http server", http.stop, _STOPPING_S)
    life.on_stop("grpc server", partial(grpc.drain, 1.0), _STOPPING_S)
    life.on_stop("watchers", board.stop)
    return RunningOptimizer(mesh.host, grpc_port, http_port, http, beliefs, board)
