"""What a plan asks of an engine reaches it, and the one that follows it."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from services.mesh.accelerators import load_catalogue
from services.mesh.bus import Delivered, EventId
from services.mesh.clock import FakeClock
from services.mesh.events import PoolPlan, RoutingPlan, TimingCoefficients
from services.mesh.settings import WorkerSettings
from services.mesh.subjects import Channel
from services.worker import tuning as core
from services.worker.engine_life import EngineLife
from services.worker.engines.simulated import SimulatedEngine
from services.worker.identity import Identity
from services.worker.tuning import Tuning

MODEL = "llama-3.1-8b"
IDENTITY = Identity(worker="w", pool="nvidia-l4", accelerator=load_catalogue().accelerator("nvidia-l4"), epoch="e1")
NO_TIMING = TimingCoefficients(
    prefill_overhead_s=0.0,
    prefill_s_per_token=0.0,
    decode_base_s=0.0,
    decode_s_per_sequence=0.0,
    decode_s_per_kv_token=0.0,
    prefill_s_per_attended_token=0.0,
)


def _plan(version: int, step_s: float, max_batch: int, pool: str = "nvidia-l4") -> RoutingPlan:
    asked = PoolPlan(
        pool=pool,
        accelerator="nvidia-l4",
        workers=1,
        shadow_usd_per_device_s=0.0,
        utilisation=0.0,
        timing=NO_TIMING,
        observations=0,
        mean_error=0.0,
        rate_usd_per_hour=0.0,
        step_s=step_s,
        max_batch=max_batch,
    )
    return RoutingPlan(model=MODEL, version=version, made_unix_ms=version, classes=(), shares=(), pools=(asked,))


class ToldBus:
    """A bus that has these plans, and then nothing."""

    def __init__(self, *plans: RoutingPlan) -> None:
        self.plans = plans

    async def watch(self, channels: list[Channel], handler: Any) -> None:
        for each in self.plans:
            await handler(Delivered(EventId("optimizer", "e", each.version), each, "tw.plan.m"))


async def _tuned(*plans: RoutingPlan) -> tuple[float, int]:
    settings = WorkerSettings(id="w", accelerator="nvidia-l4", models=(MODEL,))
    life = EngineLife(lambda: SimulatedEngine(settings, FakeClock()), settings, FakeClock())

    async def changed(_: object) -> None:
        tuning.engine_ready()

    tuning = Tuning(IDENTITY, life)
    await tuning.watch(cast("Any", ToldBus(*plans[:1])))
    await life.start(lambda steps: None, changed)
    await tuning.watch(cast("Any", ToldBus(*plans[1:])))
    stats = life.stats()
    await life.stop(0.0)
    return stats.step_s, stats.max_batch


def test_an_engine_that_becomes_ready_is_tuned_as_the_plan_in_force_says() -> None:
    assert asyncio.run(_tuned(_plan(1, 0.1, 20))) == (0.1, 20)


def test_a_later_plan_tunes_it_anew_and_an_older_one_or_another_pools_does_not() -> None:
    later = (_plan(2, 0.1, 20), _plan(3, 0.05, 10), _plan(1, 0.2, 40), _plan(4, 0.3, 1, pool="nvidia-h100-sxm"))
    assert asyncio.run(_tuned(*later)) == (0.05, 10)


def test_what_was_asked_is_remembered_of_the_models_of_the_latest_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_MOST_MODELS", 3)
    others = [replace(_plan(1, 0.3, 7), model=f"made-up-{each}") for each in range(20)]
    assert asyncio.run(_tuned(*others, _plan(1, 0.1, 20))) == (0.1, 20)
    assert asyncio.run(_tuned(_plan(1, 0.1, 20), *others, _plan(2, 0.05, 10))) == (0.05, 10)
