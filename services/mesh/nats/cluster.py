"""Several NATS servers on this machine as one cluster, for streams with copies: what one holds, the others hold.

In: a folder, a pair of ports for each node (0: a free one). Out: running servers, and the URL that names all of them.
A cluster goes on while more than half of its nodes are up; one that comes back catches up by itself. On one machine it
guards against a server that dies, not against a machine or a disk that does: for that, nodes run on machines of their
own, with the same options (`deploy/`).
"""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from services.mesh.nats.server import ClusterNode, NatsServer

CLUSTER_NAME: Final = "tokenworks"


class NatsCluster:
    """The servers `node-0`, `node-1`… on 127.0.0.1; each can be ended and started again, on its own ports.

    Args:
        folder: each node has a folder in it.
        ports: (clients', routes') of each node; 0: a free one.
    """

    def __init__(self, folder: Path, ports: Sequence[tuple[int, int]], *, sync_always: bool = True) -> None:
        routes = [route or _free_port() for _, route in ports]
        self.nodes = [
            NatsServer(
                folder / f"node-{number}",
                port=port,
                sync_always=sync_always,
                cluster=ClusterNode(f"node-{number}", CLUSTER_NAME, routes[number], tuple(routes)),
            )
            for number, (port, _) in enumerate(ports)
        ]

    @property
    def url(self) -> str:
        """Of all nodes, comma-separated."""
        return ",".join(node.url for node in self.nodes)

    async def start(self) -> str:
        """Starts every node; the URL. Raises SettingInvalid: one does not start, see `NatsServer.start`."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for node in self.nodes:
                    tasks.create_task(node.start())
        except BaseException as error:
            await self.stop()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from error
            raise
        return self.url

    async def stop(self) -> None:
        """Ends every node, see `NatsServer.stop`."""
        await asyncio.gather(*(node.stop() for node in self.nodes))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
