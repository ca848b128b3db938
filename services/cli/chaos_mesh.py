"""A mesh of its own for `tokenworks chaos`: processes of this machine, with links before them that can be cut.

In: how many of what. Out: a `Ground` whose processes are started again when they end. Nothing of this machine's
settings reaches it but what is given: it must not write into books that count.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from services.chaos.cables import Cable, CableUnavailable
from services.chaos.core.faults import OF_ENGINES, OF_LINKS, OF_PROCESSES, FaultKind, Role, Target
from services.chaos.links import Link
from services.chaos.nats_operator import NatsOperator
from services.cli.access import Access
from services.cli.data_dir import DataDir
from services.cli.demo import served
from services.cli.layout import Layout, ServiceSpec, lay_out, ports_needed
from services.cli.mesh_process import MeshProcess
from services.cli.readiness import free_ports, probe
from services.mesh.clock import SystemClock
from services.mesh.errors import BusUnavailable
from services.mesh.keys import KeyStore
from services.mesh.settings import FleetSettings, FleetWorker, MeterSettings, NatsSettings, Settings
from tokenworks import Client

TENANT: Final = "chaos"
CAPPED: Final = "chaos-capped"
_MODEL: Final = "llama-3.1-8b"
_ACCELERATOR: Final = "nvidia-h100-sxm"  # of all: alike, they share the streams and none is spared
_DRAIN_GRACE_S: Final = 3.0
_BACKOFF_S: Final = 0.5
_STARTED_WITHIN_S: Final = 60.0
_NATS: Final = "nats-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many of what; `speed`: of the simulated engines, 1 is that of the hardware."""

    routers: int = 2
    workers: int = 3
    nats_nodes: int = 1
    speed: float = 0.3


class OwnMesh:
    """Use `async with`; then it is a `Ground`.

    Args:
        data_dir: of its own; a mesh's books are begun in it.
        on_event: called with words when a process ends or is back.
        cable: the last worker runs on a host of its own, at its far end; or why there is none.
    """

    def __init__(
        self, size: Size, data_dir: DataDir, on_event: Callable[[str], None], cable: Cable | CableUnavailable
    ) -> None:
        self.settings = _settings(size, data_dir)
        keys = data_dir.tenant_keys(KeyStore(self.settings.keys_file), (TENANT, CAPPED), SystemClock())
        several = size.nats_nodes > 1
        if several:
            cable = CableUnavailable("servers of a cluster listen on one host alone")
        self._cables: Mapping[str, Cable] = {}
        laid = _laid_out(self.settings, data_dir, size.routers)
        if isinstance(cable, Cable):
            self._cables = {f"worker-{size.workers - 1}": cable}
            laid = replace(laid, services=tuple(_at_far_end(spec, self._cables.get(spec.id)) for spec in laid.services))
        self.keys: Mapping[str, str] = keys.keys
        self.model = _MODEL
        self.secret = laid.access.secret
        self.nats = laid.access.nats
        self.routers: Sequence[str] = tuple(_address(spec, "ROUTER") for spec in laid.services if spec.kind == "router")
        self.http: Mapping[str, str] = {spec.id: spec.ready_at for spec in laid.services}
        self.access: Access = laid.access
        self._size = size
        self._data_dir = data_dir
        self._on_event = on_event
        self._laid = laid
        self._links = _links(laid, self._cables)
        self._stack = AsyncExitStack()
        self._bus_urls = {f"{_NATS}{number}": url for number, url in enumerate(self.nats.split(","))}
        self.targets: Sequence[Target] = self._targets()
        self.skipped: Sequence[str] = [
            *(["links to the bus: servers of a cluster tell clients of each other, past any link"] if several else []),
            *([f"a cable between two hosts: {cable}"] if isinstance(cable, CableUnavailable) else []),
        ]

    async def __aenter__(self) -> Self:
        """Raises CommandFailed, SettingInvalid: a service does not start."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def pid(self, service: str) -> int | None:
        if service in self._bus_urls:
            node = self._mesh.bus[int(service.removeprefix(_NATS))]
            return node.pid if node.runs else None
        return self._mesh.supervisor.children[service].pid

    def link(self, role: Role, service: str) -> Link:
        return self._links[role, service]

    def cable(self, service: str) -> Cable:
        return self._cables[service]

    async def ready(self, service: str) -> bool:
        if (url := self._bus_urls.get(service)) is None:
            return await probe(self.http[service]) == "ready"
        try:
            async with NatsOperator(url) as nats:
                await nats.ask("INFO")
        except BusUnavailable:
            return False
        return True

    async def _start(self) -> None:
        for link in self._links.values():
            await link.open()
            self._stack.push_async_callback(link.close)
        services = tuple(_behind_links(spec, self._links) for spec in self._laid.services)
        self._mesh = MeshProcess(
            self.settings,
            replace(self._laid, services=services),
            self._data_dir,
            self._on_event,
            longest_backoff_s=_BACKOFF_S,
        )
        self._stack.push_async_callback(self._mesh.stop)
        await self._mesh.start_first()
        await self._mesh.start_rest()
        for router in self.routers:
            async with Client(router, self.keys[TENANT]) as client:
                await served(client, self.model, self._size.workers, _STARTED_WITHIN_S)
        self._mesh.supervisor.keep_running()

    def _targets(self) -> list[Target]:
        roles = {"router": Role.ROUTER, "worker": Role.WORKER, "meter": Role.METER, "optimizer": Role.OPTIMIZER}
        more = {Role.WORKER: OF_ENGINES, Role.METER: (FaultKind.DISK_FULL,)}
        services = [(spec.id, roles[spec.kind]) for spec in self._laid.services]
        found = [Target(name, role, OF_PROCESSES + more.get(role, ())) for name, role in services]
        found += [Target(name, Role.BUS, (*OF_PROCESSES, FaultKind.REPEAT)) for name in self._bus_urls]
        found += [Target(name, Role.CABLE, (FaultKind.UNPLUG,)) for name in self._cables]
        return found + [Target(name, role, OF_LINKS) for role, name in self._links]


def _settings(size: Size, data_dir: DataDir) -> Settings:
    fleet = tuple(
        FleetWorker(
            id=f"worker-{number}",
            accelerator=_ACCELERATOR,
            models=(_MODEL,),
            engine="simulated",
            worker={"faults": True, "speed": size.speed},
        )
        for number in range(size.workers)
    )
    settings = Settings(
        nats=NatsSettings.model_validate({"nodes": size.nats_nodes}),
        meter=MeterSettings(audit_every_s=1.0, audit_patience_s=10.0),
        fleet=FleetSettings(workers=fleet),
    )
    mesh = settings.mesh.model_copy(update={"data_dir": data_dir.path, "drain_grace_s": _DRAIN_GRACE_S})
    return settings.model_copy(update={"mesh": mesh})


def _laid_out(settings: Settings, data_dir: DataDir, routers: int) -> Layout:
    """The layout of `tokenworks up` on free ports, with more routers."""
    fleet, host = settings.fleet.workers, settings.mesh.host
    spare = free_ports(host, ports_needed(len(fleet)) + 2 * routers)
    laid = lay_out(
        settings,
        data_dir=data_dir.path,
        secret=data_dir.secret(),
        fleet=fleet,
        free_ports=spare,
        all_free=True,
        extra_environment={
            "TOKENWORKS_CONFIG": str(data_dir.path / "none.toml"),
            "TOKENWORKS_MESH_DRAIN_GRACE_S": str(settings.mesh.drain_grace_s),
            "TOKENWORKS_METER_AUDIT_EVERY_S": str(settings.meter.audit_every_s),
            "TOKENWORKS_METER_AUDIT_PATIENCE_S": str(settings.meter.audit_patience_s),
        },
    )
    first = next(spec for spec in laid.services if spec.kind == "router")
    more = [_another_router(first, host, f"router-{number}", *spare[-2 * number :][:2]) for number in range(1, routers)]
    return replace(laid, services=(*laid.services, *more))


def _another_router(first: ServiceSpec, host: str, name: str, port: int, http_port: int) -> ServiceSpec:
    environment = {
        "TOKENWORKS_ROUTER_ID": name,
        "TOKENWORKS_ROUTER_PORT": str(port),
        "TOKENWORKS_ROUTER_HTTP_PORT": str(http_port),
    }
    return replace(
        first,
        id=name,
        environment={**first.environment, **environment},
        ready_at=f"{host}:{http_port}",
        shown=f"gRPC {host}:{port}",
    )


def _address(spec: ServiceSpec, kind: str) -> str:
    host = spec.ready_at.rpartition(":")[0]
    return f"{host}:{spec.environment[f'TOKENWORKS_{kind}_PORT']}"


def _at_far_end(spec: ServiceSpec, cable: Cable | None) -> ServiceSpec:
    """The service on the host that the cable leads to."""
    if cable is None:
        return spec
    return replace(
        spec,
        module=("services.chaos.within", cable.namespace, *spec.module),
        environment={**spec.environment, "TOKENWORKS_MESH_HOST": cable.far},
        ready_at=f"{cable.far}:{spec.ready_at.rpartition(':')[2]}",
    )


def _links(laid: Layout, cables: Mapping[str, Cable]) -> dict[tuple[Role, str], Link]:
    """One before each worker to which no cable leads; and one between each service and the bus, where that is a single
    server."""
    found: dict[tuple[Role, str], Link] = {}
    alone = len(laid.nats_nodes) == 1
    host = next(spec.ready_at.rpartition(":")[0] for spec in laid.services if spec.id not in cables)
    for spec in laid.services:
        cable = cables.get(spec.id)
        if spec.kind == "worker" and cable is None:
            found[Role.WORKER_LINK, spec.id] = Link(host, (host, int(spec.environment["TOKENWORKS_WORKER_PORT"])))
        if alone:
            found[Role.BUS_LINK, spec.id] = Link(cable.near if cable else host, (host, laid.nats_nodes[0][0]))
    return found


def _behind_links(spec: ServiceSpec, links: Mapping[tuple[Role, str], Link]) -> ServiceSpec:
    environment = dict(spec.environment)
    if (link := links.get((Role.WORKER_LINK, spec.id))) is not None:
        environment["TOKENWORKS_WORKER_ADVERTISE_PORT"] = str(link.port)
    if (link := links.get((Role.BUS_LINK, spec.id))) is not None:
        environment["TOKENWORKS_NATS_URL"] = f"nats://{link.host}:{link.port}"
    return replace(spec, environment=environment)
