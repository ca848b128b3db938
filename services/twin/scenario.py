"""What is simulated: the fleet, its engines' settings, the classes of traffic, and what befalls the fleet.

In: words from the command line or a file. Out: frozen values that a run takes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from services.mesh.accelerators import Accelerator, Catalogue
from services.mesh.errors import SettingInvalid
from services.mesh.settings import ElasticPool, ElasticSettings, SloClass
from services.mesh.timing import Timing
from services.router.core.request import Promise
from services.twin.traces import TraceRequest

_COUNTED: Final = re.compile(r"(?:(\d+)\s*[x*]\s*|(\d+)\s+)?([a-z0-9][a-z0-9.-]*)")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engines run.

    Attributes:
        prefill_chunk_tokens: prompt tokens per step.
        prefill_chunk_s: where above 0, each device's chunk is what it computes in so many seconds instead, between 128
            and 8,192 tokens.
    """

    max_batch: int = 256
    max_waiting: int = 4096
    prefill_chunk_tokens: int = 2048
    prefill_chunk_s: float = 0.0

    def chunk_tokens(self, timing: Timing) -> int:
        """The chunk of a device with this timing, in whole blocks of 16 tokens."""
        if self.prefill_chunk_s <= 0:
            return self.prefill_chunk_tokens
        tokens = (self.prefill_chunk_s - timing.prefill_overhead_s) / max(timing.prefill_s_per_token, 1e-12)
        return int(min(8192, max(128, tokens))) // 16 * 16


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """A part of the traffic: its promise, and how much of the trace's requests it gets."""

    promise: Promise
    part: float


@dataclass(frozen=True, slots=True)
class Event:
    """What befalls workers at a second.

    They are `slow` by `amount` times; `fail`, as a spot instance does that is taken away; are `ready` again; `start`,
    which takes `amount` seconds that are paid for; cost `amount` times as much as before (`price`), or their energy
    does (`tariff`: what is paid for it; a router goes on expecting what it was set up with).
    """

    at_s: float
    kind: str
    workers: tuple[str, ...]
    amount: float = 1.0


EVENTS: Final = ("fail", "ready", "start", "slow", "price", "tariff")


@dataclass(frozen=True, slots=True)
class Fleet:
    """Workers by name, each with its accelerator, in order."""

    workers: tuple[tuple[str, Accelerator], ...]

    @classmethod
    def parse(cls, words: str, catalogue: Catalogue) -> "Fleet":
        """A fleet from words like "2 nvidia-h100-sxm, 3 nvidia-l4" or "2xnvidia-h100-sxm,google-tpu-v6e".

        Raises:
            SettingInvalid: a part is not a number and an accelerator of the catalogue.
        """
        workers: list[tuple[str, Accelerator]] = []
        for part in words.split(","):
            found = _COUNTED.fullmatch(part.strip().lower())
            if found is None:
                raise SettingInvalid(f"fleet {words!r}: {part.strip()!r} is not like '2 nvidia-h100-sxm'")
            device = catalogue.accelerator(found[3])
            taken = sum(1 for _, each in workers if each.key == device.key)
            numbers = range(taken, taken + int(found[1] or found[2] or 1))
            workers += [(f"{device.key}-{number}", device) for number in numbers]
        return cls(tuple(workers))


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything but the policy.

    Attributes:
        speed: arrivals come so many times as fast as in the trace.
        hop_s: one way between client, router and worker.
        tariff_usd_per_kwh: of energy.
        drain_s: how long after the last arrival the run goes on, at most.
        elastic: pools, named by accelerator, whose workers come and go as the plan's targets say: up to `most` of each,
            those of the fleet being there from the start. A new one is paid for from the beginning of its cold start.
        headroom: of the forecast demand, that targets keep free.
        steps_ahead: engine steps that are worked out in one go at most, where only the same requests decode; what comes
            of a run does not depend on it.
        tenant_weights: as `router.tenant_weights`, > 0; 1 for those that are not named.
    """

    fleet: Fleet
    model: str
    classes: tuple[TrafficClass, ...]
    engine: EngineSettings = EngineSettings()
    speed: float = 1.0
    seed: int = 1
    hop_s: float = 0.0005
    tariff_usd_per_kwh: float = 0.08
    heartbeat_s: float = 0.25
    plan_every_s: float = 1.0
    drain_s: float = 120.0
    elastic: tuple[ElasticPool, ...] = ()
    headroom: float = ElasticSettings().headroom
    steps_ahead: int = 32
    events: tuple[Event, ...] = field(default=())
    tenant_weights: Mapping[str, float] = field(default_factory=dict)

    def not_yet_there(self, catalogue: Catalogue) -> list[tuple[str, Accelerator]]:
        """Workers that elastic pools may have beside the fleet's.

        Raises:
            SettingInvalid: a pool's accelerator is not in the catalogue.
        """
        found = []
        for pool in self.elastic:
            device = catalogue.accelerator(pool.accelerator)
            there = sum(1 for _, each in self.fleet.workers if each.key == device.key)
            found += [(f"{device.key}-{number}", device) for number in range(there, pool.most)]
        return found

    def at_speed(self, speed: float) -> "Scenario":
        return replace(self, speed=speed)

    def class_names(self, requests: Sequence[TraceRequest]) -> list[str]:
        """Each request's class: the trace's own where it names one of ours, else drawn by the classes' parts."""
        known = {each.promise.name for each in self.classes}
        names = [each.promise.name for each in self.classes]
        rng = Random(f"{self.seed}/classes")
        drawn = rng.choices(names, [each.part for each in self.classes], k=len(requests))
        return [
            request.slo_class if request.slo_class in known else name
            for request, name in zip(requests, drawn, strict=True)
        ]


def usual_classes(*, interactive: float = 0.5, standard: float = 0.3, batch: float = 0.2) -> tuple[TrafficClass, ...]:
    """The mesh's three classes with their default promises, in these parts."""
    per_prompt_token_s = 1 / 8000
    return (
        TrafficClass(Promise("interactive", 0.5, per_prompt_token_s, 0.030, 0.002, 0), interactive),
        TrafficClass(Promise("standard", 2.0, per_prompt_token_s, 0.100, 0.001, 1), standard),
        TrafficClass(Promise("batch", 60.0, per_prompt_token_s, 0.500, 0.0001, 2), batch),
    )


def classes_of(settings: Mapping[str, SloClass]) -> tuple[TrafficClass, ...]:
    """Classes as they are set, each with an equal part of what a trace leaves open."""
    return tuple(
        TrafficClass(
            Promise(name, each.ttft_s, each.ttft_s_per_prompt_token, each.tpot_s, float(each.miss_usd), each.priority),
            1.0,
        )
        for name, each in settings.items()
    )


def by_name(classes: Sequence[TrafficClass]) -> Mapping[str, Promise]:
    return {each.promise.name: each.promise for each in classes}
