"""One mesh on this machine, from its first process to its last: `tokenworks up` without what it shows.

In: settings, a data directory, a layout. Out: a running mesh with its `Access`, and an orderly end: the router stops
accepting, workers drain, the meter books everything, the bus goes last.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from services.cli.data_dir import DataDir
from services.cli.layout import Layout
from services.cli.output import CommandFailed
from services.cli.peers import Peers
from services.cli.readiness import is_free
from services.cli.supervisor import LONGEST_BACKOFF_S, ChildState, Supervisor
from services.mesh.errors import SettingInvalid
from services.mesh.nats.cluster import NatsCluster
from services.mesh.nats.server import NatsServer
from services.mesh.settings import Settings
from tokenworks.errors import CallError
from tokenworks.v1 import metering_pb2 as metering

_BOOKING_DEADLINE_S: Final = 15.0
_STOP_MARGIN_S: Final = 10.0  # beyond the grace in which a service drains by itself
_POLL_S: Final = 0.1
_BUS_BACKOFF_S: Final = 2.0


class MeshProcess:
    """The processes of one mesh. `start_first`, `start_rest`, and `stop` in any case.

    Args:
        longest_backoff_s: until a service that keeps ending starts again.

    Attributes:
        bus: the NATS servers that were started.
    """

    def __init__(
        self,
        settings: Settings,
        layout: Layout,
        data_dir: DataDir,
        on_event: Callable[[str], None],
        *,
        longest_backoff_s: float = LONGEST_BACKOFF_S,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._data_dir = data_dir
        self.bus: list[NatsServer] = []
        self._keeping_bus: list[asyncio.Task[None]] = []
        self._on_event = on_event
        self._grace_s = settings.mesh.drain_grace_s + _STOP_MARGIN_S
        self.supervisor = Supervisor(layout.services, data_dir.logs, on_event, longest_backoff_s=longest_backoff_s)

    def check_ports(self) -> None:
        """Raises CommandFailed: a port is taken, or wanted twice; says which settings to change."""
        problems = self._layout.clashes()
        for claim in self._layout.claims:
            if not is_free(self._settings.mesh.host, claim.port):
                variable = "TOKENWORKS_" + claim.setting.split(" ")[0].replace(".", "_").upper()
                problems.append(f"port {claim.port} is taken by another program ({claim.setting}; set {variable})")
        if problems:
            raise CommandFailed(
                f"{'; '.join(problems)}. If another mesh runs here, stop it; or start this one with --free-ports",
                reason="PortTaken",
            )

    async def start_first(self) -> None:
        """Starts the bus, the trace explorer, and what makes the first text: processors are few, the rest can wait.

        Raises:
            CommandFailed: one of these ended, or was not ready in time.
            SettingInvalid: the bus did not start.
        """
        if not self._settings.nats.url:
            self.bus = await self._start_bus()
            self._keeping_bus = [asyncio.create_task(self._keep_bus(each), name="keep the bus") for each in self.bus]
        await self._start(self._ids("traces"))
        await self._start(self._layout.first)

    async def start_rest(self) -> None:
        """Starts every other service, all at once. Raises CommandFailed: one ended, or was not ready in time."""
        await self._start([each for each in self._ids() if each not in (*self._layout.first, *self._ids("traces"))])

    async def stop(self) -> list[str]:
        """Stops everything in order; in words, what did not go cleanly."""
        complaints = await self.supervisor.stop(self._ids("router"), self._grace_s)
        complaints += await self.supervisor.stop(self._ids("worker"), self._grace_s)
        complaints += await self._until_booked()
        complaints += await self.supervisor.stop(self._ids("optimizer", "meter"), self._grace_s)
        complaints += await self.supervisor.stop(self._ids("traces"), self._grace_s)
        for keeping in self._keeping_bus:
            keeping.cancel()
        await asyncio.gather(*(each.stop() for each in self.bus))
        return complaints

    def kill(self) -> None:
        """Ends every service at once; the bus still has to be closed by `stop`."""
        self.supervisor.kill_all()

    async def _start(self, ids: Sequence[str]) -> None:
        await self.supervisor.start(ids)
        await self.supervisor.until_ready(ids)

    async def _start_bus(self) -> list[NatsServer]:
        ports, sync_always = self._layout.nats_nodes, self._settings.nats.sync_always
        if len(ports) == 1:
            server = NatsServer(self._data_dir.path / "nats", port=ports[0][0], sync_always=sync_always)
            await server.start()
            return [server]
        cluster = NatsCluster(self._data_dir.path / "nats-cluster", ports, sync_always=sync_always)
        await cluster.start()
        return cluster.nodes

    async def _keep_bus(self, bus: NatsServer) -> None:
        """Starts the bus again when it ends: it keeps its streams, and every service waits for it."""
        while True:
            status = await bus.ended()
            self._on_event(f"the NATS server ended unexpectedly (status {status}); it starts again")
            try:
                await bus.start()
            except SettingInvalid as error:
                self._on_event(f"the NATS server does not start: {error}")
                await asyncio.sleep(_BUS_BACKOFF_S)

    async def _until_booked(self) -> list[str]:
        meters = [self.supervisor.children[each] for each in self._ids("meter")]
        if not any(child.state is ChildState.READY for child in meters):
            return []
        ends_s = time.monotonic() + _BOOKING_DEADLINE_S
        async with Peers(self._layout.access) as peers:
            try:
                while (lag := (await peers.usage(metering.GetUsageRequest())).lag_events) > 0:
                    if time.monotonic() > ends_s:
                        return [f"{lag} events are not booked yet; the meter goes on with them at its next start"]
                    await asyncio.sleep(_POLL_S)
            except CallError as error:
                return [f"the meter could not be asked whether everything is booked: {error}"]
        return []

    def _ids(self, *kinds: str) -> list[str]:
        return [spec.id for spec in self._layout.services if not kinds or spec.kind in kinds]
