"""`python -m services.router`: a router as a process, or as several that share its ports."""

import gc
import logging
from typing import Final

from services.mesh.lifecycle import Lifecycle, run
from services.mesh.settings import Settings
from services.router import processes
from services.router.wiring import wire

log = logging.getLogger(__name__)

# A full collection looks at every object of ten thousand decision records and of every stream, tens of milliseconds in
# which no token moves; nearly all of a request's objects go by their counts alone.
_COLLECT_AFTER: Final = (20_000, 50, 100)


async def start(life: Lifecycle, settings: Settings) -> None:
    if settings.router.processes > 1:
        await processes.start(life, settings)
        return
    router = await wire(life, settings)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
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
