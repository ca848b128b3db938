"""`python -m services.router`: one router as a process."""

import logging

from services.mesh.lifecycle import Lifecycle, run
from services.mesh.settings import load_settings
from services.router.wiring import wire

log = logging.getLogger(__name__)


async def start(life: Lifecycle) -> None:
    settings = load_settings()
    logging.getLogger().setLevel(settings.mesh.log_level.upper())
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
