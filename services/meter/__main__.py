"""`python -m services.meter`: the meter as a process."""

import gc
import logging
from typing import Final

from services.mesh.lifecycle import Lifecycle, run
from services.mesh.settings import Settings
from services.meter.wiring import wire

log = logging.getLogger(__name__)

# A full collection looks at every request under way; what a batch makes goes by its counts alone.
_COLLECT_AFTER: Final = (20_000, 50, 100)


async def start(life: Lifecycle, settings: Settings) -> None:
    running = await wire(life, settings)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    host = settings.mesh.host
    if running.grpc_port:
        log.info("gRPC on %s:%d, HTTP on %s:%d", host, running.grpc_port, host, running.http_port)


if __name__ == "__main__":
    run("meter", start)
