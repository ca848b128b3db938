"""A worker's state, four times a second, from the moment it starts: `WorkerHeartbeat` on the bus.

In: how the engine stands, and that the worker drains. Out: heartbeats, at each change at once.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.events import WorkerHeartbeat, WorkerState
from services.mesh.settings import WorkerSettings
from services.worker.engine_life import EngineLife
from services.worker.hardware.power_meter import PowerMeter
from services.worker.identity import Identity

INTERVAL_S: Final = 0.25


class Heartbeat:
    """The state of one worker."""

    def __init__(
        self,
        identity: Identity,
        settings: WorkerSettings,
        bus: Bus,
        clock: Clock,
        *,
        address: str,
        http_url: str,
        engine: EngineLife,
        power: PowerMeter,
        generated_tokens: Callable[[], int],
    ) -> None:
        """`address`: host:port by which others reach its gRPC. `http_url`: of its OpenAI endpoint; empty: none."""
        self._engine = engine
        self._power = power
        self._draining = False
        self._identity = identity
        self._settings = settings
        self._bus = bus
        self._clock = clock
        self._address = address
        self._http_url = http_url
        self._generated_tokens = generated_tokens
        self._sequence = 0
        self._changed = asyncio.Event()

    @property
    def state(self) -> WorkerState:
        """A worker that drains says so, however its engine is."""
        return WorkerState.DRAINING if self._draining else self._engine.state

    def drain(self) -> None:
        """The worker drains from now on."""
        self._draining = True
        self.changed()

    def changed(self) -> None:
        """Something of the state is different: a heartbeat is due."""
        self._changed.set()

    async def run(self) -> None:
        """Beats until cancelled."""
        while True:
            self.beat()
            self._changed.clear()
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def beat(self) -> None:
        """Says how it stands."""
        self._sequence += 1
        who, info, stats, figures = self._identity, self._engine.info, self._engine.stats(), self._power.figures()
        self._bus.publish(
            WorkerHeartbeat(
                worker=who.worker,
                pool=who.pool,
                accelerator=who.accelerator.key,
                engine=info.engine if info else self._settings.engine,
                models=info.models if info else self._settings.models,
                address=self._address,
                http_url=self._http_url,
                epoch=who.epoch,
                sequence=self._sequence,
                state=self.state,
                running=stats.running,
                waiting=stats.waiting,
                waiting_prefill_tokens=stats.waiting_prefill_tokens,
                waiting_by_priority=stats.waiting_by_priority,
                prefill_tokens_by_priority=stats.prefill_tokens_by_priority,
                kv_cache_usage=stats.kv_cache_usage,
                kv_capacity_tokens=info.kv_capacity_tokens if info else 0,
                context_tokens=info.context_tokens if info else 0,
                step_s=stats.step_s,
                max_batch=stats.max_batch or (info.max_batch if info else 0),
                max_waiting=info.max_waiting if info else 0,
                prefill_chunk_tokens=info.prefill_chunk_tokens if info else 0,
                slowdown=stats.slowdown,
                power_w=figures.power_w,
                power_source=figures.power_source,
                utilisation=figures.utilisation,
                utilisation_source=figures.utilisation_source,
                busy_ns=stats.busy_ns,
                generated_tokens=self._generated_tokens(),
                energy_uj=figures.energy_uj,
                steps=stats.steps,
                simulated=info.simulated if info else False,
                rate_nusd_per_hour=who.accelerator.rate_nusd_per_hour,
                failed_because=self._engine.failed_because,
                at_unix_ms=self._clock.unix_ms(),
                features=info.features if info else (),
                restarts=self._engine.restarts,
                tokenizer=info.tokenizer if info else "",
                region=who.site.region,
                vendor=who.site.vendor,
                data_classes=who.site.data_classes,
                spot=who.spot,
            )
        )
