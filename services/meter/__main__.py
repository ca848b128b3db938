"""`python -m services.meter`: the meter as a process."""

import logging

from services.mesh.lifecycle import Lifecycle, run
from services.mesh.settings import Settings
from services.meter.wiring import wire

log = logging.getLogger(__name__)


async def start(life: Lifecycle, settings: Settings) -> None:
    running = await wire(life, settings)
    host = settings.mesh.host
    if running.grpc_port:
        log.info("gRPC on %s:%d, HTTP on %s:%d", host, running.grpc_port, host, running.http_port)


if __name__ == "__main__":
    run("meter", start)
