"""One worker, wired top to bottom: telemetry, bus, engine, what serves it and what it reports; and how it drains.

A worker drains on SIGTERM, and when `Drain` arrives on `tw.control.<worker>`: no new work; what runs has the grace
period to finish; the rest is handed back to the routers, which go on elsewhere; sessions end; the last events go out;
the process exits with 0. There too a router says which direct streams had better go on elsewhere (`MoveStreams`).
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock, SystemClock
from services.mesh.events import Control, ControlAnswered, MoveStreams, WorkerState
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.footing import find_footing
from services.mesh.httpd import HttpServer
from services.mesh.lessee import Lessees
from services.mesh.lifecycle import Lifecycle, cancel_all
from services.mesh.placement import PlacementVerifier
from services.mesh.settings import Settings
from services.mesh.telemetry import Telemetry
from services.worker.credit import DirectCredit
from services.worker.deliveries import Deliveries
from services.worker.engine import Engine
from services.worker.engine_life import EngineLife
from services.worker.engines import choose_engine
from services.worker.fault_control import FaultControl
from services.worker.gateway import Gateway
from services.worker.hardware.machine import find_machine
from services.worker.hardware.power_meter import PowerMeter
from services.worker.heartbeat import Heartbeat
from services.worker.identity import identity_of
from services.worker.instruments import Instruments
from services.worker.prefixes import Prefixes
from services.worker.reporter import Reporter
from services.worker.runaways import Runaways
from services.worker.service import SESSION_METHOD, WorkerService
from services.worker.streams import Streams
from services.worker.tuning import Tuning
from tokenworks.v1 import inference_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

_STEP_S: Final = 5.0  # for each part of stopping that is not given a grace period
_LINGER_MS: Final = 2000  # from this process's death until its last reports are at the meter
_FLUSH_S: Final = 10.0  # for the last events to be acknowledged


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """A worker that serves; ports are the bound ones."""

    grpc_port: int
    http_port: int
    http: HttpServer
    engine: EngineLife
    streams: Streams
    heartbeat: Heartbeat


async def wire(
    life: Lifecycle,
    settings: Settings,
    *,
    bus: Bus | None = None,
    telemetry: Telemetry | None = None,
    clock: Clock | None = None,
    make_engine: Callable[[], Engine] | None = None,
) -> RunningWorker:
    """Starts a worker; `life.stop` drains and stops it.

    Args:
        bus: connected; instead of a connection to `nats.url`. Whoever gives it closes it.
        telemetry, clock, make_engine: instead of those that the settings and the environment name.

    Raises:
        SettingInvalid: a setting names what is not there, or the accelerator is to be detected and cannot be.
        BusUnavailable, OSError: it cannot start; the message says what would do. An engine that cannot is tried again,
            see `engine_life.py`.
    """
    machine = await find_machine(settings.worker)
    life.on_stop("devices", machine.close, _STEP_S)
    worker = settings.worker.model_copy(update={"accelerator": machine.accelerator.key})
    identity = identity_of(worker, machine, secrets.token_hex(8))
    clock = clock or SystemClock()
    prefixes = Prefixes(identity, clock)
    make_engine = make_engine or partial(choose_engine, worker, clock)
    engine = EngineLife(partial(_watched, prefixes, make_engine), worker, clock)
    footing = await find_footing(life, settings, "worker", worker.id, bus=bus, telemetry=telemetry, clock=clock)
    bus, telemetry = footing.bus, footing.telemetry
    reporter = Reporter(identity, bus, clock, telemetry)
    instruments = Instruments(identity, telemetry)
    runaways = Runaways(settings.runaway, identity, bus, clock)
    streams = Streams(
        identity,
        engine,
        clock=clock,
        reporter=reporter,
        instruments=instruments,
        bus=bus,
        prefixes=prefixes,
        runaways=runaways,
    )
    verifier = PlacementVerifier(worker.id, identity.epoch, settings.secrets)
    lessees = Lessees(f"worker:{worker.id}", bus, clock, linger_ms=_LINGER_MS)
    credit = DirectCredit(streams, lessees, clock, life.spawn)
    deliveries = Deliveries(identity, streams, verifier, bus, clock, credit=credit)
    life.on_stop("last events", partial(_flush, reporter, deliveries, bus), _FLUSH_S + _STEP_S)
    talking: list[asyncio.Task[None]] = []
    life.on_stop("background", partial(cancel_all, talking), _STEP_S)
    power = PowerMeter(machine, engine.stats, clock, reporter.shares)
    life.on_stop("power meter", power.stop, _STEP_S)
    reading: list[asyncio.Task[None]] = []
    life.on_stop("readings", partial(cancel_all, reading), _STEP_S)

    gateway = Gateway(identity, deliveries, telemetry)
    http = HttpServer(telemetry, life, routes=gateway.routes(), max_body_bytes=settings.mesh.max_message_bytes)
    http_port = await http.start(settings.mesh.host, worker.http_port)
    life.on_stop("http", http.stop, _STEP_S)

    service = WorkerService(identity, engine, streams, deliveries, power=power, secrets=settings.secrets)
    grpc = FastGrpcServer(
        telemetry, life, max_message_bytes=settings.mesh.max_message_bytes, untraced_methods=(SESSION_METHOD,)
    )
    grpc.add(pb_grpc.add_WorkerServicer_to_server, service, "tokenworks.v1.Worker")
    if worker.faults:
        control = FaultControl(engine, settings.secrets)
        grpc.add(pb_grpc.add_FaultControlServicer_to_server, control, "tokenworks.v1.FaultControl")
    grpc_port = await grpc.start(settings.mesh.host, worker.port)
    life.on_stop("grpc", partial(grpc.drain, 1.0), _STEP_S)
    life.on_stop("sessions", service.close_sessions, _STEP_S)

    heartbeat = Heartbeat(
        identity,
        worker,
        bus,
        clock,
        address=f"{settings.advertise_host}:{worker.advertise_port or grpc_port}",
        http_url=_http_url(settings, http_port),
        engine=engine,
        power=power,
        generated_tokens=lambda: streams.generated_tokens,
    )
    talking.append(life.spawn(heartbeat.run(), "heartbeats"))
    talking.append(life.spawn(reporter.run(), "reports"))
    talking.append(life.spawn(prefixes.run(bus), "prefixes"))
    tuning = Tuning(identity, engine)
    talking.append(life.spawn(tuning.watch(bus), "tuning"))
    talking.append(life.spawn(runaways.watch(streams.end_runaways), "runaways"))
    talking.append(life.spawn(deliveries.run(), "placements used"))
    talking.append(life.spawn(deliveries.move_from_stillness(engine.stats), "direct streams of a still engine"))
    talking.append(life.spawn(lessees.run(), "credit"))
    talking.append(life.spawn(lessees.listen(), "recalls of credit"))

    draining = asyncio.Event()

    async def engine_changed(state: WorkerState) -> None:
        heartbeat.changed()
        match state:
            case WorkerState.READY:
                info = engine.info
                assert info is not None, "a ready engine says what it is"
                served, on = ", ".join(info.models), worker.accelerator
                log.info("%s serves %s with %s on %s", worker.id, served, info.engine, on)
                if info.note:
                    log.warning("%s", info.note)
                streams.begin(info)
                tuning.engine_ready()
                if not reading:
                    reading.append(life.spawn(power.run(info, worker.telemetry_interval_s), "power meter"))
                if not draining.is_set():
                    await life.release()
            case WorkerState.FAILED:
                streams.fail(engine.failed_because)
                await life.hold(f"failed: {engine.failed_because}")
            case _:
                await life.hold("starting")

    instruments.watch_hardware(power)
    instruments.watch_honesty(engine.stats)
    life.on_stop("engine", partial(engine.stop, 0.0), _STEP_S)
    await engine.start(streams.on_step, engine_changed)
    keeping = life.spawn(engine.keep(), "engine")
    life.on_stop("engine's keeper", partial(cancel_all, [keeping]), 2 * _STEP_S)

    async def drain(grace_s: float) -> None:
        draining.set()
        await life.hold("draining")
        heartbeat.drain()
        if left := await streams.drained(grace_s):
            log.warning("%d streams had not ended after %g s; their routers go on elsewhere", left, grace_s)

    async def drain_and_end(grace_s: float) -> None:
        await drain(grace_s)
        life.end()

    async def controlled(asked: Control) -> ControlAnswered:
        if isinstance(asked, MoveStreams):
            return deliveries.move(asked)
        life.spawn(drain_and_end(asked.grace_ms / 1000), "drain")
        return ControlAnswered(accepted=True, message=f"{len(streams)} streams have {asked.grace_ms} ms to end")

    talking.append(life.spawn(bus.serve_control(worker.id, controlled), "control"))
    life.on_stop("streams", partial(drain, settings.mesh.drain_grace_s), settings.mesh.drain_grace_s + _STEP_S)
    return RunningWorker(grpc_port, http_port, http, engine, streams, heartbeat)


def _watched(prefixes: Prefixes, make_engine: Callable[[], Engine]) -> Engine:
    return prefixes.watch(make_engine())


def _http_url(settings: Settings, http_port: int) -> str:
    """Where HTTP clients with a placement are sent; empty where none is taken."""
    if not settings.secrets:
        return ""
    return settings.worker.http_url.rstrip("/") or f"http://{settings.advertise_host}:{http_port}"


async def _flush(reporter: Reporter, deliveries: Deliveries, bus: Bus) -> None:
    """Everything that was made is reported and acknowledged, or the log says how much is not."""
    deadline_s = asyncio.get_running_loop().time() + _FLUSH_S
    left, untold = reporter.flush(), deliveries.flush()
    while (left or untold) and (remaining_s := deadline_s - asyncio.get_running_loop().time()) > 0:
        await bus.flush(remaining_s)
        left, untold = reporter.flush(), deliveries.flush()
    unacknowledged = await bus.flush(max(0.1, deadline_s - asyncio.get_running_loop().time()))
    if left or untold or unacknowledged:
        log.error(
            "the work of %d requests was not reported, %d events were not sent, %d were not acknowledged",
            left,
            untold,
            unacknowledged,
        )
