"""The router, put together: once, top to bottom."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

from services.mesh.accelerators import load_catalogue
from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.events import BudgetsSet
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.fast_http import FastHttpServer
from services.mesh.footing import find_footing
from services.mesh.keys import KeyStore
from services.mesh.lessee import Lessees
from services.mesh.lifecycle import Lifecycle
from services.mesh.placement import PlacementSigner
from services.mesh.price_calendar import PriceCalendar
from services.mesh.settings import Settings, SloSettings
from services.mesh.subjects import BUDGETS
from services.mesh.telemetry import Telemetry
from services.router.announcer import Announcer
from services.router.answers import Answers
from services.router.core.exploration import Exploration
from services.router.core.fleet import Fleet
from services.router.core.policy import make_ready
from services.router.core.promises import Promises
from services.router.core.request import Promise
from services.router.direct import Direct
from services.router.dispatch import Dispatcher
from services.router.entrance import Entrance
from services.router.feed import Feed
from services.router.funds import LINGER_MS, Funds
from services.router.gateway import Gateway
from services.router.measures import Measures
from services.router.moves import Moves
from services.router.others import Others
from services.router.placing import Placing
from services.router.reception import Reception
from services.router.room import Room
from services.router.service import RouterService
from services.router.sessions import Sessions

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 0.25
_STOPPING_S: Final = 3.0  # for what a stop step does beside waiting


@dataclass(frozen=True, slots=True)
class RunningRouter:
    """A router that serves, with the parts that a test looks into."""

    host: str
    grpc_port: int
    http_port: int
    http: FastHttpServer
    dispatcher: Dispatcher
    direct: Direct
    fleet: Fleet
    bus: Bus
    funds: Funds
    moves: Moves


def promises_of(slo: SloSettings) -> Promises:
    """The SLO classes of the settings."""
    return Promises(
        {
            name: Promise(
                name=name,
                ttft_s=each.ttft_s,
                ttft_s_per_prompt_token=each.ttft_s_per_prompt_token,
                tpot_s=each.tpot_s,
                miss_usd=float(each.miss_usd),
                priority=each.priority,
            )
            for name, each in slo.classes.items()
        }
    )


async def wire(
    life: Lifecycle,
    settings: Settings,
    *,
    bus: Bus | None = None,
    telemetry: Telemetry | None = None,
    clock: Clock | None = None,
) -> RunningRouter:
    """Starts a router under `life`; it stops with it.

    Args:
        bus: connected already; NATS as the settings say when None.
        telemetry, clock: the process's own when None.

    Raises:
        OSError: an address is taken. BusUnavailable: NATS does not answer.
    """
    router, mesh = settings.router, settings.mesh
    footing = await find_footing(life, settings, "router", router.id, bus=bus, telemetry=telemetry, clock=clock)
    bus, telemetry, clock = footing.bus, footing.telemetry, footing.clock

    fleet = Fleet(
        load_catalogue(),
        promises_of(settings.slo),
        heartbeat_timeout_s=router.heartbeat_timeout_s,
        tariff_usd_per_kwh=float(settings.energy.tariff_usd_per_kwh),
        exploration=Exploration(),
    )
    make_ready(fleet.promises)
    rng = Random()
    measures = Measures(telemetry)
    sessions = Sessions(life, fleet, clock, router.id, mesh.secret)
    placing = Placing(
        fleet, max_queue_s=router.max_queue_s, clock=clock, rng=rng, telemetry=telemetry, measures=measures
    )
    prices = PriceCalendar(settings.prices)
    announcer = Announcer(bus, clock, router.id, outbox_events=settings.nats.outbox_events, prices=prices)
    lessees = Lessees(router.id, bus, clock, linger_ms=LINGER_MS)
    funds = Funds(router, lessees=lessees, prices=prices, clock=clock, spawn=life.spawn)
    room = Room(router, placing, fleet, clock)
    confines = {tenant: each.confines for tenant, each in settings.placement.tenants.items()}
    reception = Reception(settings.slo.default, confines, clock=clock, rng=rng)
    entrance = Entrance(room, funds, measures=measures, announcer=announcer)
    dispatcher = Dispatcher(
        router,
        fleet=fleet,
        placing=placing,
        sessions=sessions,
        announcer=announcer,
        measures=measures,
        clock=clock,
        rng=rng,
        prices=prices,
        funds=funds,
        room=room,
        reception=reception,
        entrance=entrance,
    )
    direct = Direct(
        router,
        signer=PlacementSigner(settings.secrets) if settings.secrets else None,
        dispatcher=dispatcher,
        fleet=fleet,
        placing=placing,
        bus=bus,
        clock=clock,
        rng=rng,
        prices=prices,
        funds=funds,
        reception=reception,
        entrance=entrance,
    )
    measures.watch_in_flight(dispatcher.__len__)
    measures.watch_direct(direct.__len__)
    measures.watch_waiting(room.__len__)
    life.spawn(direct.watch(), "placements used")
    life.spawn(direct.look_after(), "look after placements")
    await _learn_budgets(bus, funds)
    feed = Feed(
        bus,
        fleet,
        sessions,
        dispatcher,
        reception,
        clock=clock,
        prices=prices,
        funds=funds,
        telemetry=telemetry,
        measures=measures,
    )
    life.spawn(feed.watch(), "feed")
    life.spawn(lessees.run(), "credit")
    life.spawn(lessees.listen(), "recalls of credit")
    moves = Moves(dispatcher, direct, fleet=fleet, placing=placing, bus=bus, clock=clock, rng=rng, spawn=life.spawn)
    life.spawn(_look_after(fleet, sessions, moves, clock), "look after workers")

    gather_s = router.gather_ms / 1000
    grpc = FastGrpcServer(telemetry, life, max_message_bytes=mesh.max_message_bytes, gather_s=gather_s)
    keys = KeyStore(settings.keys_file)
    others = Others(router.id, placing.tally, fleet, room=room, bus=bus, clock=clock)
    RouterService(dispatcher, direct, others, fleet=fleet, keys=keys, clock=clock).register(grpc)
    gateway = Gateway(
        dispatcher,
        direct,
        fleet=fleet,
        keys=keys,
        clock=clock,
        telemetry=telemetry,
        max_body_bytes=mesh.max_message_bytes,
    )
    http = FastHttpServer(
        telemetry, life, routes=gateway.routes(), max_body_bytes=mesh.max_message_bytes, gather_s=gather_s
    )
    grpc_port = await grpc.start(mesh.host, router.port, shared=router.shared_ports)
    http_port = await http.start(mesh.host, router.http_port, shared=router.shared_ports)
    own_port = grpc_port
    if router.shared_ports:
        own_port = await grpc.listen(mesh.host, 0)
        if router.process_http_port:
            await http.listen(mesh.host, router.process_http_port)
    life.spawn(others.listen(), "other routers")
    answers = Answers(router.id, dispatcher.records, bus, clock)
    life.spawn(answers.listen(), "others' answers")
    life.spawn(answers.speak(), "word of answers")
    life.spawn(others.speak(f"{settings.advertise_host}:{own_port}"), "word to other routers")

    # Last in, first out: first the requests, then what carries them.
    life.on_stop("credit", lessees.give_back, _STOPPING_S)
    life.on_stop("last events", partial(_flush, bus), _STOPPING_S)
    life.on_stop("http server", http.stop, _STOPPING_S)
    life.on_stop("grpc server", partial(grpc.drain, 1.0), _STOPPING_S)
    life.on_stop("requests", partial(_drain, dispatcher, mesh.drain_grace_s), mesh.drain_grace_s + _STOPPING_S)
    return RunningRouter(mesh.host, grpc_port, http_port, http, dispatcher, direct, fleet, bus, funds, moves)


async def _learn_budgets(bus: Bus, funds: Funds) -> None:
    """Before the first request: one that is let in unaware of a budget is not bounded by it."""

    async def note(messages: Sequence[Delivered]) -> None:
        for message in messages:
            if isinstance(message.event, BudgetsSet):
                funds.budgets.set(message.event)

    await bus.replay([BUDGETS], note)


async def _drain(dispatcher: Dispatcher, grace_s: float) -> None:
    if cut := await dispatcher.drain(grace_s):
        log.warning("%d requests were cut off after a grace of %g s", cut, grace_s)


async def _flush(bus: Bus) -> None:
    if left := await bus.flush(_STOPPING_S):
        log.error("%d events were not acknowledged by the bus and are lost with this process", left)


async def _look_after(fleet: Fleet, sessions: Sessions, moves: Moves, clock: Clock) -> None:
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        moves.look()
        for worker in fleet.forget(clock.monotonic_s()):
            sessions.close(worker)
