"""Several router processes on one machine, as one service: they share its ports, the kernel deals connections out.

In: `router.processes` > 1. Out: that many processes, each a router of its own (`router-0.0`, `router-0.1`…), started
again when one dies, stopped together. Nothing else is shared: they see the same events, and tell each other what they
have just placed (`others.py`), as routers on different machines do. This process serves nothing itself.
"""

import asyncio
import logging
import os
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Mapping
from typing import Final

from services.mesh.child import tied
from services.mesh.lifecycle import Lifecycle
from services.mesh.settings import Settings

log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_SETTLED_S: Final = 30.0  # one that ran this long starts again without delay
_STOPPING_S: Final = 15.0  # beside the grace, for what a router does when it stops


class Processes:
    """Mutable; made by `start`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reserved: list[socket.socket] = []
        self._running: dict[int, Process] = {}
        self._stopping = False

    def reserve(self) -> tuple[int, int]:
        """The gRPC and the HTTP port, free ones for 0.

        Raises:
            OSError: one is taken.
        """
        router, host = self._settings.router, self._settings.mesh.host
        ports = []
        for setting, wanted in (("router.port", router.port), ("router.http_port", router.http_port)):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                # Without sharing first: with it, another mesh's routers on the port would go unnoticed.
                with socket.socket(family, socket.SOCK_STREAM) as alone:
                    alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    alone.bind((host, wanted))
                    port = alone.getsockname()[1]
                held = socket.socket(family, socket.SOCK_STREAM)
                self._reserved.append(held)  # bound and never listening: nobody is connected to it
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                held.bind((host, port))
            except OSError as error:
                raise OSError(f"{setting} = {wanted} can't be had on {host}: {error}; set another") from error
            ports.append(port)
        return ports[0], ports[1]

    async def keep(self, index: int, environment: Mapping[str, str]) -> None:
        """Runs until cancelled: one process, and another one whenever it has died."""
        pause_s, name = _FIRST_PAUSE_S, environment["TOKENWORKS_ROUTER_ID"]
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            process = await asyncio.create_subprocess_exec(
                *tied("-m", "services.router"), env={**os.environ, **environment}, start_new_session=True
            )
            self._running[index] = process
            status = await process.wait()
            del self._running[index]
            if self._stopping:
                return
            pause_s = _FIRST_PAUSE_S if loop.time() - started_s >= _SETTLED_S else min(_LONGEST_PAUSE_S, pause_s * 2)
            log.error("router %s ended with status %d; another starts in %.1f s", name, status, pause_s)
            await asyncio.sleep(pause_s)

    async def stop(self) -> None:
        """Lets all of them drain, waits for it, and kills what does not end."""
        self._stopping = True
        running = list(self._running.values())
        for process in running:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._settings.mesh.drain_grace_s + _STOPPING_S):
                for process in running:
                    await process.wait()
        except TimeoutError:
            for process in self._running.values():
                log.error("router process %d did not end; it is killed", process.pid)
                process.kill()

    async def release(self) -> None:
        """Gives the ports back."""
        for each in self._reserved:
            each.close()


def environments(settings: Settings, grpc_port: int, http_port: int) -> list[dict[str, str]]:
    """What is different for each process."""
    router = settings.router
    return [
        {
            "TOKENWORKS_ROUTER_ID": f"{router.id}.{index}",
            "TOKENWORKS_ROUTER_PROCESSES": "1",
            "TOKENWORKS_ROUTER_SHARED_PORTS": "true",
            "TOKENWORKS_ROUTER_PORT": str(grpc_port),
            "TOKENWORKS_ROUTER_HTTP_PORT": str(http_port),
            "TOKENWORKS_ROUTER_PROCESS_HTTP_PORT": str(router.process_http_port and router.process_http_port + index),
        }
        for index in range(router.processes)
    ]


async def start(life: Lifecycle, settings: Settings) -> None:
    """Starts them under `life`; they stop with it. Raises OSError: a port is taken."""
    processes = Processes(settings)
    life.on_stop("ports", processes.release)
    grpc_port, http_port = processes.reserve()
    life.on_stop("processes", processes.stop, settings.mesh.drain_grace_s + _STOPPING_S + 1.0)
    for index, environment in enumerate(environments(settings, grpc_port, http_port)):
        life.spawn(processes.keep(index, environment), f"router process {index}")
    host, count = settings.mesh.host, settings.router.processes
    log.info("%d routers share gRPC on %s:%d, HTTP on %s:%d", count, host, grpc_port, host, http_port)
