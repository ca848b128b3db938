"""`python -m services.optimizer`: one optimizer as a process."""

import logging

from services.mesh.lifecycle import Lifecycle, run
from services.mesh.settings import Settings
from services.optimizer.wiring import wire

log = logging.getLogger(__name__)


async def start(life: Lifecycle, settings: Settings) -> None:
    optimizer = await wire(life, settings)
    log.info(
        "optimizer %s serves gRPC on %s:%d, HTTP on %s:%d",
        settings.optimizer.id,
        optimizer.host,
        optimizer.grpc_port,
        optimizer.host,
        optimizer.http_port,
    )


if __name__ == "__main__":
    run("optimizer", start)
