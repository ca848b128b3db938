"""Workers as their heartbeats tell: who lives, where it is reached, how much it runs."""

import asyncio
from dataclasses import dataclass
from typing import Final, Self

from services.mesh.bus import Delivered
from services.mesh.clock import Clock
from services.mesh.events import ControlAnswered, Drain, WorkerHeartbeat, WorkerState
from services.mesh.nats.bus import NatsBus
from services.mesh.settings import NatsSettings
from services.mesh.subjects import FLEET
from services.mesh.telemetry import start_telemetry

_FRESH_S: Final = 1.0
_CONTROL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Heard:
    beat: WorkerHeartbeat
    at_s: float


class Beats:
    """The last heartbeat of each worker. Use `async with`."""

    def __init__(self, settings: NatsSettings, nats_url: str, clock: Clock) -> None:
        self._telemetry = start_telemetry("chaos", "chaos")
        settings = settings.model_copy(update={"url": nats_url})
        self._bus = NatsBus(settings, "chaos", "chaos", self._telemetry, clock)
        self._clock = clock
        self._heard: dict[str, _Heard] = {}
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Raises BusUnavailable: NATS does not answer."""
        await self._bus.connect()
        self._watching = asyncio.create_task(self._bus.watch((FLEET,), self._note), name="heartbeats")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._bus.close()
        await asyncio.to_thread(self._telemetry.shutdown)

    def live(self) -> dict[str, WorkerHeartbeat]:
        """Those that are ready and were heard within the last second."""
        now_s = self._clock.monotonic_s()
        return {
            name: heard.beat
            for name, heard in self._heard.items()
            if now_s - heard.at_s <= _FRESH_S and heard.beat.state == WorkerState.READY
        }

    def address(self, worker: str) -> str:
        """`host:port` of its gRPC, as it last told; empty when it was never heard."""
        heard = self._heard.get(worker)
        return heard.beat.address if heard else ""

    def epoch(self, worker: str) -> str:
        """Of its process, as it last told; empty when it was never heard."""
        heard = self._heard.get(worker)
        return heard.beat.epoch if heard else ""

    async def drain(self, worker: str, grace_s: float) -> ControlAnswered:
        """Tells a worker to drain and end, over the bus. Raises BusUnavailable: it does not answer."""
        return await self._bus.request_control(worker, Drain(grace_ms=round(grace_s * 1000)), _CONTROL_S)

    async def _note(self, delivered: Delivered) -> None:
        if isinstance(beat := delivered.event, WorkerHeartbeat):
            self._heard[beat.worker] = _Heard(beat, self._clock.monotonic_s())
