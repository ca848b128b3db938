"""`python -m services.worker`: one worker as a process."""

import logging

from services.mesh.lifecycle import Lifecycle, run
from services.mesh.settings import load_settings
from services.worker.wiring import wire

log = logging.getLogger(__name__)


async def _wire(life: Lifecycle) -> None:
    settings = load_settings()
    running = await wire(life, settings)
    host, worker = settings.mesh.host, settings.worker
    log.info(
        "%s serves %s with %s on %s: gRPC on %s:%d, HTTP on %s:%d",
        worker.id,
        ", ".join(running.info.models),
        running.info.engine,
        worker.accelerator,
        host,
        running.grpc_port,
        host,
        running.http_port,
    )


def main() -> None:
    run("worker", _wire)


if __name__ == "__main__":
    main()
