"""`python -m services.optimizer`: one optimizer as a process."""

import logging

from services.mesh.lifecycle import Lifecycle, run
from services.mesh.settings import load_settings
from services.optimizer.wiring import wire

log = logging.getLogger(__name__)


async def start(life: Lifecycle) -> None:
    settings = load_settings()
    logging.getLogger().setLevel(settings.mesh.log_level.upper())
    optimizer = await wire(life, settings)
    log.info(
        "optimizer %s serves gRPC on %s:%d, HTTP on %s:%d",
        settings.optimizer.id,
        optimizer.host,
        optimizer.grpc_port,
        optimizer.host,
        optimizer.http_port,
    )


def main() -> None:
    run("optimizer", start)


if __name__ == "__main__":
    main()
