"""`python -m services.meter`: the meter as a process."""

import logging

from services.mesh.lifecycle import Lifecycle, run
from services.mesh.settings import load_settings
from services.meter.wiring import wire

log = logging.getLogger(__name__)


async def _wire(life: Lifecycle) -> None:
    settings = load_settings()
    running = await wire(life, settings)
    host = settings.mesh.host
    log.info("gRPC on %s:%d, HTTP on %s:%d", host, running.grpc_port, host, running.http_port)


def main() -> None:
    run("meter", _wire)


if __name__ == "__main__":
    main()
