"""What `tokenworks up` starts, as data: each service's module, environment and ports.

In: the settings, and what the command line changed. Out: a `Layout` of `ServiceSpec`s and the `Access` that reaches
them. Pure but for the free ports, which come in as an argument.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from services.cli.access import Access
from services.cli.real_model import DETECTED, SIMULATING, RealModel
from services.mesh.accelerators import ModelShape, load_catalogue
from services.mesh.errors import SettingInvalid
from services.mesh.settings import FleetSettings, FleetWorker, Settings

_AS_SET: Final = RealModel()
_READY_S: Final = 90.0
_LEAST_CONTEXT: Final = 4096  # tokens that must fit beside the weights
_MOST_NODES: Final = 5
_MOST_METERS: Final = 5
_REAL_ENGINE_S: Final = 900.0  # until a worker is ready that may have weights to load, or to fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """One process.

    Attributes:
        kind: "router", "worker", "meter", "optimizer" or "traces".
        module: for `python -m`, with its arguments.
        ready_at: host:port of its HTTP, and `ready_path` what to ask there.
        shown: what the status says of it.
        python: the interpreter that runs it; empty: this one.
        ready_within_s: a start that takes longer has failed.
    """

    id: str
    kind: str
    module: tuple[str, ...]
    environment: Mapping[str, str]
    ready_at: str
    ready_path: str = "/readyz"
    shown: str = ""
    python: str = ""
    ready_within_s: float = _READY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class PortClaim:
    setting: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The whole mesh.

    Attributes:
        services: in the order they are shown.
        first: ids of those that make the first text: they start first, since processors are few.
        nats_nodes: ports of each NATS server to start, its clients' and, of several, the one among themselves.
    """

    services: tuple[ServiceSpec, ...]
    access: Access
    claims: tuple[PortClaim, ...]
    nats_nodes: tuple[tuple[int, int], ...]
    accelerators: frozenset[str]
    first: tuple[str, ...]

    def clashes(self) -> list[str]:
        """Ports that two of our own services would take, in words."""
        wanted = Counter(claim.port for claim in self.claims)
        return [
            f"port {port} is wanted by {' and '.join(claim.setting for claim in self.claims if claim.port == port)}"
            for port, count in wanted.items()
            if count > 1
        ]


def fleet_of(settings: Settings, real: RealModel = _AS_SET) -> tuple[FleetWorker, ...]:
    """The settings' workers; those on this machine's own hardware run the real model instead of theirs, simulated ones
    serve its name.
    """
    changed: dict[str, object] = {}
    if real.engine:
        changed |= {"engine": real.engine, "worker": dict(real.worker), "python": real.python}
    if real.accelerator:
        changed |= {"accelerator": real.accelerator}
    if real.model:
        changed |= {"models": (real.model,)}
    return tuple(
        worker.model_copy(update=changed) if is_local(worker) else _sharing(worker, real)
        for worker in settings.fleet.workers
    )


def is_local(worker: FleetWorker) -> bool:
    """Whether it runs on this machine's own hardware: its processor, or what it detects."""
    found = load_catalogue().find(worker.accelerator)
    return worker.accelerator == DETECTED or (found is not None and found.cpu)


def _sharing(worker: FleetWorker, real: RealModel) -> FleetWorker:
    """A simulated worker that serves the real model's name, if it has memory for it.

    Instead of its own models, not beside them: the context of a worker is that of its shortest model.
    """
    catalogue = load_catalogue()
    accelerator = catalogue.find(worker.accelerator)
    shape = ModelShape(key=real.model, **real.shape) if real.shape is not None else catalogue.models.get(real.model)
    if accelerator is None or shape is None or worker.engine not in SIMULATING:
        return worker
    if catalogue.kv_capacity_tokens(accelerator, shape) < min(shape.context_tokens, _LEAST_CONTEXT):
        return worker
    # Not "auto", which would run a small model for real on each of them.
    return worker.model_copy(update={"models": (real.model,), "engine": "simulated"})


def ports_needed(workers: int) -> int:
    """How many free ports `lay_out` takes at most."""
    return 7 + 2 * _MOST_NODES + 2 * (_MOST_METERS - 1) + 2 * workers


def lay_out(
    settings: Settings,
    *,
    data_dir: Path,
    secret: str,
    fleet: Sequence[FleetWorker],
    free_ports: Sequence[int],
    all_free: bool,
    extra_environment: Mapping[str, str],
) -> Layout:
    """The mesh of these settings.

    Args:
        data_dir: absolute.
        free_ports: `ports_needed` of them, for ports that the settings leave open (0).
        all_free: takes free ports whatever the settings say.
        extra_environment: for every service.
    """
    spare = iter(free_ports)
    host = settings.advertise_host
    claims: list[PortClaim] = []

    def port(setting: str, wanted: int) -> int:
        taken = next(spare) if all_free or wanted == 0 else wanted
        claims.append(PortClaim(setting=setting, port=taken))
        return taken

    nodes: list[tuple[int, int]] = []
    if not settings.nats.url:
        several = settings.nats.nodes > 1
        nodes.append((port("nats.port", settings.nats.port), next(spare) if several else 0))
        nodes += [(next(spare), next(spare)) for _ in range(settings.nats.nodes - 1)]
    nats_url = settings.nats.url or ",".join(f"nats://127.0.0.1:{each}" for each, _ in nodes)
    common = {
        "TOKENWORKS_MESH_DATA_DIR": str(data_dir),
        "TOKENWORKS_MESH_SECRET": secret,
        "TOKENWORKS_NATS_URL": nats_url,
        "TOKENWORKS_NATS_REPLICAS": str(max(settings.nats.replicas, len(nodes))),
        **extra_environment,
    }
    grpc: dict[str, list[str]] = {}

    def service(kind: str, name: str, grpc_port: int, http_port: int) -> ServiceSpec:
        grpc.setdefault(kind, []).append(f"{host}:{grpc_port}")
        own = {"ID": name, "PORT": str(grpc_port), "HTTP_PORT": str(http_port)}
        if kind == "meter" and settings.meter.database_url:
            own["DATABASE_URL"] = settings.meter.database_url
        return ServiceSpec(
            id=name,
            kind=kind,
            module=(f"services.{kind}",),
            environment=common | {f"TOKENWORKS_{kind.upper()}_{key}": value for key, value in own.items()},
            ready_at=f"{host}:{http_port}",
            shown=f"gRPC {host}:{grpc_port}",
        )

    services = [
        service(kind, section.id, port(f"{kind}.port", section.port), port(f"{kind}.http_port", section.http_port))
        for kind, section in (("router", settings.router), ("meter", settings.meter), ("optimizer", settings.optimizer))
    ]
    more_meters = [
        service("meter", _numbered(settings.meter.id, number), next(spare), next(spare))
        for number in range(1, settings.fleet.meters)
    ]
    workers = [
        _worker(
            worker,
            host,
            common,
            port(f"fleet.first_worker_port + {index}", _nth(settings.fleet.first_worker_port, index)),
            port(f"fleet.first_worker_http_port + {index}", _nth(settings.fleet.first_worker_http_port, index)),
        )
        for index, worker in enumerate(fleet)
    ]
    local = [worker.id for worker in fleet if is_local(worker)]
    router, meter, optimizer = services
    ordered = (router, meter, *more_meters, optimizer, *workers)
    return Layout(
        services=ordered,
        first=(router.id, *(local or [worker.id for worker in fleet])[:1]),
        access=Access(
            router=grpc["router"][0],
            meter=",".join(grpc["meter"]),
            optimizer=grpc["optimizer"][0],
            nats=nats_url,
            secret=secret,
            store=settings.meter.database_url,
            http={spec.id: spec.ready_at for spec in ordered},
        ),
        claims=tuple(claims),
        nats_nodes=tuple(nodes),
        accelerators=frozenset(worker.accelerator for worker in fleet) - {DETECTED},
    )


def with_meters(settings: Settings, meters: int, store: str) -> Settings:
    """The settings with so many meters on that database; 0 and empty: as they are.

    Raises:
        SettingInvalid: several meters on a SQLite file.
    """
    if meters:
        fleet = FleetSettings.model_validate(settings.fleet.model_dump() | {"meters": meters})
        settings = settings.model_copy(update={"fleet": fleet})
    if store:
        meter = settings.meter.model_copy(update={"database_url": store})
        settings = settings.model_copy(update={"meter": meter})
    if settings.fleet.meters > 1 and not settings.database_url.startswith("postgres"):
        raise SettingInvalid(
            f"fleet.meters = {settings.fleet.meters}: a SQLite file has one meter; keep the books in PostgreSQL, with"
            " --store postgresql://user:password@host/name or meter.database_url"
        )
    return settings


def with_keys(layout: Layout, keys: Mapping[str, str]) -> Layout:
    return replace(layout, access=replace(layout.access, keys=keys))


def _numbered(first: str, number: int) -> str:
    """meter-0 -> meter-1; a name without a number gets one."""
    stem, _, digits = first.rpartition("-")
    return f"{stem}-{int(digits) + number}" if stem and digits.isdecimal() else f"{first}-{number}"


def _nth(first: int, index: int) -> int:
    return first + index if first else 0


def _worker(worker: FleetWorker, host: str, common: Mapping[str, str], grpc_port: int, http_port: int) -> ServiceSpec:
    environment = {
        "TOKENWORKS_WORKER_ID": worker.id,
        "TOKENWORKS_WORKER_ACCELERATOR": worker.accelerator,
        "TOKENWORKS_WORKER_MODELS": json.dumps(worker.models),
        "TOKENWORKS_WORKER_ENGINE": worker.engine,
        "TOKENWORKS_WORKER_PORT": str(grpc_port),
        "TOKENWORKS_WORKER_HTTP_PORT": str(http_port),
    }
    more = {f"TOKENWORKS_WORKER_{name.upper()}": _text(value) for name, value in worker.worker.items()}
    engine = "" if worker.engine in SIMULATING else f" with {worker.engine}"
    return ServiceSpec(
        id=worker.id,
        kind="worker",
        module=("services.worker",),
        environment={**common, **more, **environment},
        ready_at=f"{host}:{http_port}",
        shown=f"{', '.join(worker.models)} on {worker.accelerator}{engine}",
        python=worker.python,
        ready_within_s=_REAL_ENGINE_S if engine else _READY_S,
    )


def _text(value: object) -> str:
    """A setting as its environment variable says it."""
    return value if isinstance(value, str) else json.dumps(value)
