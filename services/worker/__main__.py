"""`python -m services.worker`: one worker as a process."""

import logging

from services.mesh.lifecycle import Lifecycle, run
from services.mesh.settings import Settings
from services.worker.wiring import wire

log = logging.getLogger(__name__)


async def start(life: Lifecycle, settings: Settings) -> None:
    running = await wire(life, settings)
    host = settings.mesh.host
    log.info("%s: gRPC on %s:%d, HTTP on %s:%d", life.name, host, running.grpc_port, host, running.http_port)


if __name__ == "__main__":
    run("worker", start)
