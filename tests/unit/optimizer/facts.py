"""What the optimizer's tests say happened."""

import dataclasses
import math
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from services.mesh.accelerators import load_catalogue
from services.mesh.events import (
    LatencyObserved,
    RequestAdmitted,
    RequestFinished,
    StepSample,
    TokenEntry,
    TokensGenerated,
    WorkerHeartbeat,
)
from services.mesh.settings import SloSettings
from services.mesh.timing import StepLoad, Timing
from services.optimizer.core.beliefs import Assumptions
from services.optimizer.core.service_curve import Promise

MODEL: Final = "llama-3.1-8b"
SMALL_MODEL: Final = "smollm2-135m-instruct"
H100: Final = "nvidia-h100-sxm"
MI300X: Final = "amd-mi300x"
L4: Final = "nvidia-l4"
CATALOGUE: Final = load_catalogue()
PROMISES: Final = {
    name: Promise(each.ttft_s, each.ttft_s_per_prompt_token, each.tpot_s, float(each.miss_usd))
    for name, each in SloSettings().classes.items()
}
ASSUMPTIONS: Final = Assumptions(
    promises=PROMISES,
    target_utilisation=0.85,
    tariff_usd_per_kwh=float(Decimal("0.08")),
    forgetting=0.995,
    window_s=60.0,
    marked_change=0.25,
    heartbeat_timeout_s=2.0,
)


def timing(accelerator: str, model: str = MODEL) -> Timing:
    return CATALOGUE.timing(CATALOGUE.accelerator(accelerator), CATALOGUE.model(model))


def scaled(start: Timing, factors: Sequence[float]) -> Timing:
    """A timing whose coefficients are `start`'s times `factors` (6,)."""
    return Timing(*(value * factor for value, factor in zip(dataclasses.astuple(start), factors, strict=True)))


def mixed_load(rng: random.Random) -> StepLoad:
    """A step as a busy engine has it: any batch, half of them with a chunk of prefill."""
    sequences = rng.randint(0, 64)
    prefill_tokens = rng.choice((0, rng.randint(1, 2048)))
    if not sequences and not prefill_tokens:
        sequences = 1
    return StepLoad(prefill_tokens, prefill_tokens * rng.randint(1, 4000), sequences, sequences * rng.randint(50, 4000))


def noisy(step_s: float, rng: random.Random, spread: float = 0.03) -> float:
    return step_s * math.exp(rng.gauss(0, spread))


def sample(load: StepLoad, step_s: float) -> StepSample:
    return StepSample(
        prefill_tokens=load.prefill_tokens,
        attended_tokens=load.attended_tokens,
        decode_sequences=load.decode_sequences,
        kv_tokens=load.kv_tokens,
        step_s=step_s,
    )


def latency(
    worker: str, steps: Sequence[StepSample], accelerator: str = H100, model: str = MODEL, pool: str = ""
) -> LatencyObserved:
    return LatencyObserved(
        worker=worker,
        pool=pool or accelerator,
        accelerator=accelerator,
        model=model,
        requests=(),
        steps=tuple(steps),
        at_unix_ms=0,
    )


def steps(timing: Timing, count: int, seed: int = 0, factor: float = 1.0) -> list[StepSample]:
    """Steps of a device that is `factor` times as slow as `timing` says."""
    rng = random.Random(seed)
    loads = [mixed_load(rng) for _ in range(count)]
    return [sample(load, noisy(timing.step_s(load) * factor, rng)) for load in loads]


def heartbeat(worker: str, accelerator: str = H100, *, sequence: int = 1, **fields: Any) -> WorkerHeartbeat:
    """A ready worker of the accelerator's own pool; `fields` replace what is said here."""
    device = CATALOGUE.accelerators.get(accelerator)
    said: dict[str, Any] = {
        "worker": worker,
        "pool": accelerator,
        "accelerator": accelerator,
        "engine": "simulated",
        "models": (MODEL,),
        "address": "127.0.0.1:7610",
        "epoch": "e1",
        "sequence": sequence,
        "state": "ready",
        "running": 0,
        "waiting": 0,
        "waiting_prefill_tokens": 0,
        "kv_cache_usage": 0.0,
        "kv_capacity_tokens": CATALOGUE.kv_capacity_tokens(device, CATALOGUE.model(MODEL)) if device else 0,
        "context_tokens": 131_072,
        "max_batch": 256,
        "max_waiting": 1024,
        "slowdown": 1.0,
        "power_w": device.idle_w if device else 0.0,
        "busy_ns": 0,
        "generated_tokens": 0,
        "energy_uj": 0,
        "simulated": True,
        "rate_nusd_per_hour": device.rate_nusd_per_hour if device else 0,
        "failed_because": "",
        "at_unix_ms": sequence * 250,
        "steps": 0,
        "prefill_chunk_tokens": 2048,
    }
    return WorkerHeartbeat(**(said | fields))


def admitted(
    slo_class: str = "standard", prompt_tokens: int = 500, max_tokens: int = 512, model: str = MODEL
) -> RequestAdmitted:
    return RequestAdmitted(
        request_id="r",
        router="router-0",
        tenant="local",
        workload="",
        model=model,
        slo_class=slo_class,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        worker="w",
        pool=H100,
        plan="",
        at_unix_ms=0,
        price_book="list@1",
    )


def finished(
    completion_tokens: int,
    slo_class: str = "standard",
    prompt_tokens: int = 500,
    *,
    model: str = MODEL,
    outcome: str = "stop",
    cached_prompt_tokens: int = 0,
) -> RequestFinished:
    return RequestFinished(
        request_id="r",
        router="router-0",
        tenant="local",
        workload="",
        model=model,
        slo_class=slo_class,
        worker="w",
        pool=H100,
        accelerator=H100,
        delivered_from=0,
        delivered_count=completion_tokens,
        prompt_tokens=prompt_tokens,
        cached_prompt_tokens=cached_prompt_tokens,
        outcome=outcome,
        ttft_s=0.1,
        tpot_s=0.01,
        e2e_s=1.0,
        slo_met=True,
        trace_id="",
        at_unix_ms=0,
        admitted_unix_ms=0,
        price_book="list@1",
        plan="",
    )


def generated(worker: str, device_ns: int, energy_uj: int, count: int = 1, accelerator: str = H100) -> TokensGenerated:
    entry = TokenEntry(
        request_id="r",
        tenant="local",
        workload="",
        model=MODEL,
        slo_class="standard",
        from_index=0,
        count=count,
        prompt_tokens=10,
        cached_prompt_tokens=0,
        device_ns=device_ns,
        energy_uj=energy_uj,
    )
    return TokensGenerated(worker=worker, pool=accelerator, accelerator=accelerator, entries=(entry,), at_unix_ms=0)
