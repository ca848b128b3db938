"""A router's decision with everything around it that it rests on, for `bench.pick`: the workers, the plan, the prefix
caches, the tenants and what they ask.

In: a number of workers. Out: CPU seconds of each call.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from time import thread_time
from typing import Final

from bench.made_up import idle_beat
from services.mesh.accelerators import load_catalogue
from services.mesh.clock import SystemClock
from services.mesh.codec import decode, encode
from services.mesh.events import (
    PoolPlan,
    PrefixesChanged,
    RoutingPlan,
    Share,
    TimingCoefficients,
    WorkerHeartbeat,
    WorkloadClass,
)
from services.mesh.settings import SloSettings
from services.mesh.telemetry import start_telemetry
from services.router.core.exploration import Exploration
from services.router.core.fleet import Fleet
from services.router.core.known_worker import Placed
from services.router.core.records import DecisionRecord, DecisionRecords
from services.router.core.request import Asked
from services.router.measures import Measures
from services.router.placing import Placing
from services.router.requests import asked_of
from services.router.wiring import promises_of
from tokenworks.v1 import inference_pb2 as wire

MODEL: Final = "llama-3.1-8b"
POOLS: Final = 40
CLASSES: Final = 100
TENANTS: Final = 10_000
LINKS_TOLD: Final = 1_000  # by each worker
TRAFFIC: Final = 500  # requests that are made at a time
IN_FLIGHT: Final = 2_000
BEATS: Final = 4  # heartbeats between two requests
WORDS: Final = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "wizards",
    "brew",
    "elixir",
)


@dataclass(slots=True)
class Samples:
    """CPU seconds of every call, by what was called."""

    pick: list[float] = field(default_factory=list)
    expect: list[float] = field(default_factory=list)
    chain: list[float] = field(default_factory=list)
    carry_out: list[float] = field(default_factory=list)
    fold: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    cached: int = 0


class Scene:
    """One router's decision, with `workers` workers around it."""

    def __init__(self, workers: int) -> None:
        self.rng = Random(workers)
        self.catalogue = load_catalogue()
        self.clock = SystemClock()
        slo = SloSettings()
        self.fleet = Fleet(
            self.catalogue,
            promises_of(slo),
            heartbeat_timeout_s=1e9,
            tariff_usd_per_kwh=0.08,
            exploration=Exploration(),
        )
        telemetry = start_telemetry("router", "bench")
        self.placing = Placing(
            self.fleet,
            max_queue_s=60.0,
            clock=self.clock,
            rng=self.rng,
            telemetry=telemetry,
            measures=Measures(telemetry),
        )
        self.records = DecisionRecords(10_000)
        devices = [key for key in self.catalogue.accelerators if not key.startswith("cpu")]
        self.pools = [(f"pool-{index:02}", devices[index % len(devices)]) for index in range(POOLS)]
        self.workers = [f"worker-{index:04}" for index in range(workers)]
        self.promises = list(slo.classes)
        self.beats: dict[str, WorkerHeartbeat] = {}
        self.conversations: dict[int, tuple[str, str]] = {}

    def start(self) -> None:
        """The state that the router is in."""
        for worker in self.workers:
            self.fold(encode(self.beat(worker)), Samples())
        self.fleet.plan(self.plan(), "", self.clock.monotonic_s())
        for conversation in range(max(2_000, 4 * len(self.workers))):
            tenant = f"tenant-{conversation % TENANTS:05}"
            self.conversations[conversation] = tenant, self.prompt(tenant, self.rng.randrange(1_000, 16_000))
        chains = [asked_of(self.request(*each), each[0]).prompt.chain for each in self.conversations.values()]
        for worker in self.workers:
            held: dict[int, None] = {}
            while len(held) < LINKS_TOLD:
                held |= dict.fromkeys(self.rng.choice(chains).links)
                held |= dict.fromkeys(self.rng.getrandbits(64) for _ in range(20))
            self.fleet.prefixes_changed(
                PrefixesChanged(
                    worker=worker, epoch="e", sequence=1, reset=True, held=tuple(held), dropped=(), at_unix_ms=0
                ),
                self.clock.monotonic_s(),
            )

    def beat(self, worker: str) -> WorkerHeartbeat:
        """The worker's next heartbeat; its load wanders."""
        before, rng = self.beats.get(worker), self.rng
        if before is None:
            pool, accelerator = self.pools[int(worker[-4:]) % POOLS]
            idle = idle_beat(worker, pool, accelerator, MODEL)
            before = replace(
                idle,
                engine="vllm",
                running=rng.randrange(64),
                kv_cache_usage=rng.random() * 0.8,
                kv_capacity_tokens=max(32_768, idle.kv_capacity_tokens),
                context_tokens=32_768,
                simulated=False,
            )
        self.beats[worker] = beat = replace(
            before,
            sequence=before.sequence + 1,
            running=min(250, max(0, before.running + rng.randrange(-2, 3))),
            waiting_prefill_tokens=rng.choice((0, 0, rng.randrange(4_000))),
            kv_cache_usage=min(0.95, max(0.0, before.kv_cache_usage + rng.uniform(-0.01, 0.01))),
            steps=before.steps + 10,
            at_unix_ms=self.clock.unix_ms(),
        )
        return beat

    def plan(self) -> RoutingPlan:
        """A hundred classes: prompt and answer lengths in buckets, for each promise; shares of every pool."""
        edges = [0, 256, 1024, 2048, 4096, 8192, 0]
        buckets = list(pairwise(edges))
        classes = [
            WorkloadClass(
                slo_class=promise,
                prompt_tokens_from=prompt_from,
                prompt_tokens_to=prompt_to,
                completion_tokens_from=answer_from,
                completion_tokens_to=answer_to,
                demand_rps=1.0,
                mean_prompt_tokens=1000.0,
                mean_completion_tokens=200.0,
            )
            for promise in self.promises
            for prompt_from, prompt_to in buckets
            for answer_from, answer_to in buckets
        ][:CLASSES]
        pools = [self.pool_plan(pool, accelerator) for pool, accelerator in self.pools]
        return RoutingPlan(
            model=MODEL,
            version=1,
            made_unix_ms=1,
            classes=tuple(classes),
            shares=tuple(
                Share(
                    workload_class=index,
                    pool=pool.pool,
                    share=1 / POOLS,
                    feasible=True,
                    device_s_per_request=0.1,
                    usd_per_request=1e-4,
                )
                for index in range(len(classes))
                for pool in pools
            ),
            pools=tuple(pools),
        )

    def pool_plan(self, pool: str, accelerator: str) -> PoolPlan:
        device = self.catalogue.accelerator(accelerator)
        timing = self.catalogue.timing(device, self.catalogue.model(MODEL))
        fields = TimingCoefficients.__dataclass_fields__
        return PoolPlan(
            pool=pool,
            accelerator=accelerator,
            workers=len(self.workers) // POOLS,
            shadow_usd_per_device_s=self.rng.choice((0.0, 1e-5)),
            utilisation=0.5,
            timing=TimingCoefficients(**{name: getattr(timing, name) for name in fields}),
            observations=100,
            mean_error=0.05,
            rate_usd_per_hour=device.rate_nusd_per_hour / 1e9,
        )

    def prompt(self, tenant: str, characters: int) -> str:
        """A prompt that begins as all of the tenant's do, and goes on as no other."""
        system = f"You answer for {tenant}. " * 40
        return (system + " ".join(self.rng.choices(WORDS, k=characters // 5)))[:characters]

    def request(self, tenant: str, prompt: str) -> wire.GenerateRequest:
        return wire.GenerateRequest(
            request_id=f"{self.rng.getrandbits(64):x}",
            model=MODEL,
            slo_class=self.rng.choice(self.promises),
            workload="bench",
            text=prompt,
            sampling=wire.Sampling(max_tokens=self.rng.choice((64, 256, 1024))),
        )

    def next_request(self) -> tuple[str, wire.GenerateRequest]:
        """A conversation that goes on, or a new prompt; either from one of all tenants."""
        if self.rng.random() < 0.5:
            tenant, prompt = self.rng.choice(self.conversations)
            return tenant, self.request(tenant, prompt + " and then? " * 20)
        tenant = f"tenant-{self.rng.randrange(TENANTS):05}"
        return tenant, self.request(tenant, self.prompt(tenant, self.rng.randrange(400, 16_000)))

    def fold(self, body: bytes, samples: Samples) -> None:
        started_s = thread_time()
        beat = decode(WorkerHeartbeat, body)
        decoded_s = thread_time()
        self.fleet.heartbeat(beat, self.clock.monotonic_s(), self.clock.unix_ms())
        samples.decode.append(decoded_s - started_s)
        samples.fold.append(thread_time() - decoded_s)

    def run(self, requests: int) -> Samples:
        samples = Samples()
        running: deque[tuple[Asked, Placed]] = deque()
        for _ in range(requests // TRAFFIC):
            # What clients and workers do is done before: it is not the router's, and would push the router's data out
            # of the processor's caches.
            came = [
                (tenant, request.SerializeToString(), [encode(self.beat(each)) for each in beating])
                for (tenant, request), beating in [
                    (self.next_request(), self.rng.choices(self.workers, k=BEATS)) for _ in range(TRAFFIC)
                ]
            ]
            for tenant, body, beats in came:
                self.serve(tenant, wire.GenerateRequest.FromString(body), running, samples)
                for beat in beats:
                    self.fold(beat, samples)
        return samples

    def serve(
        self, tenant: str, request: wire.GenerateRequest, running: deque[tuple[Asked, Placed]], samples: Samples
    ) -> None:
        """One request placed; one that runs since long ends."""
        started_s = thread_time()
        asked = asked_of(request, tenant)
        chained_s = thread_time()
        ask = self.placing.ask(asked)
        asking_s = thread_time()
        decision = self.placing.decide(asked, ask)
        picked_s = thread_time()
        self.records.add(
            DecisionRecord(
                asked=asked,
                prompt_tokens=ask.prompt_tokens,
                completion_tokens=ask.completion_tokens,
                picked_worker=decision.worker.name,
                plan="",
                plan_age_s=0.0,
                shortlist=decision.shortlist,
                trace_id="",
                decided_unix_ms=0,
                decision_us=0.0,
            )
        )
        recorded_s = thread_time()
        placed = self.placing.carried_out(asked, ask, decision)
        samples.carry_out.append(thread_time() - recorded_s)
        samples.chain.append(chained_s - started_s)
        samples.expect.append(asking_s - chained_s)
        samples.pick.append(picked_s - asking_s)
        self.fleet.prefilled(placed, self.clock.monotonic_s())
        running.append((asked, placed))
        if len(running) > IN_FLIGHT:
            ended, done = running.popleft()
            self.fleet.finished(done, self.clock.monotonic_s())
            self.placing.learn(
                ended,
                done.worker,
                prompt_tokens=done.prompt_tokens,
                completion_tokens=100,
                expected_cached=0,
                cached_tokens=0,
            )
        samples.cached += bool(ask.cached)
