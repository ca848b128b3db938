"""`python -m services.router`: one router as a process."""

import logging

from services.mesh.lifecycle import Lifecycle, run
from services.mesh.settings import Settings
from services.router.wiring import wire

log = logging.getLogger(__name__)


async def start(life: Lifecycle, settings: Settings) -> None:
    router = await wire(life, settings)
    log.info(
        "router %s serves gRPC on %s:%d, HTTP on %s:%d",
        settings.router.id,
        router.host,
        router.grpc_port,
        router.host,
        router.http_port,
    )


if __name__ == "__main__":
    run("router", start)
