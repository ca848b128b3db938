"""What every service stands on when it is wired: a clock, telemetry, and a connected bus.

In: what a test (or another process's wiring) hands over, each optional. Out: all three; what was made here is stopped
with the service, what was handed over is left to whoever made it.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock, SystemClock
from services.mesh.lifecycle import Lifecycle
from services.mesh.nats.bus import NatsBus
from services.mesh.settings import Settings
from services.mesh.telemetry import Telemetry, start_telemetry

_TELEMETRY_S: Final = 6.0  # what its shutdown gives spans and metrics in all


@dataclass(frozen=True, slots=True)
class Footing:
    bus: Bus
    telemetry: Telemetry
    clock: Clock


async def find_footing(
    life: Lifecycle,
    settings: Settings,
    service: str,
    instance: str,
    *,
    bus: Bus | None,
    telemetry: Telemetry | None,
    clock: Clock | None,
) -> Footing:
    """The footing of `service` under the id `instance`; to be called first, so that it is stopped last.

    Args:
        bus: connected already; NATS as the settings say when None.
        telemetry, clock: the process's own when None.

    Raises:
        BusUnavailable: NATS does not answer.
    """
    clock = clock or SystemClock()
    if telemetry is None:
        telemetry = start_telemetry(service, instance)
        life.on_stop("telemetry", partial(asyncio.to_thread, telemetry.shutdown), _TELEMETRY_S)
    if bus is None:
        bus = NatsBus(settings.nats, service, instance, telemetry, clock, spools=settings.mesh.data_dir / "outbox")
        life.on_stop("bus", bus.close)
        await bus.connect()
    return Footing(bus, telemetry, clock)
