"""The decision at scale: what one pick, one heartbeat and the memory of a router cost, from ten workers to thousands.

    python -m bench.pick [--workers 10 30 100 300 1000 3000] [--out pick]

In: nothing but this checkout; no mesh is started, the router's cores are driven as its edge drives them. Out: a table,
`bench/results/<out>.json` and `docs/images/<out>.svg`. Each size runs in a process of its own, so that memory is that
of a router with so many workers.

A router's state: workers of all accelerators of the catalogue in forty pools, each with its own load; a plan with a
hundred classes in force; the prefix caches of all workers, as they told them; the decisions it keeps for Explain. Then
requests of ten thousand tenants, half of them going on with conversations that some workers hold, each beginning with
its tenant's system prompt: each is chained, placed and carried out, a first token and an end follow, and four
heartbeats come between any two.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from time import thread_time
from typing import Any, Final

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from bench.record import write
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
SIZES: Final = (10, 30, 100, 300, 1000, 3000)
POOLS: Final = 40
CLASSES: Final = 100
TENANTS: Final = 10_000
LINKS_TOLD: Final = 1_000  # by each worker
WARM_UP: Final = 1_000
REQUESTS: Final = 6_000
TRAFFIC: Final = 500  # requests that are made at a time
IN_FLIGHT: Final = 2_000
BEATS: Final = 4  # heartbeats between two requests
IMAGES: Final = Path(__file__).resolve().parent.parent / "docs" / "images"
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
            device = self.catalogue.accelerator(accelerator)
            before = WorkerHeartbeat(
                worker=worker,
                pool=pool,
                accelerator=accelerator,
                engine="vllm",
                models=(MODEL,),
                address=f"{worker}:7610",
                epoch="e",
                sequence=0,
                state="ready",
                running=rng.randrange(64),
                waiting=0,
                waiting_prefill_tokens=0,
                kv_cache_usage=rng.random() * 0.8,
                kv_capacity_tokens=max(32_768, self.catalogue.kv_capacity_tokens(device, self.catalogue.model(MODEL))),
                context_tokens=32_768,
                max_batch=256,
                max_waiting=1024,
                slowdown=1.0,
                power_w=device.idle_w,
                busy_ns=0,
                generated_tokens=0,
                energy_uj=0,
                simulated=False,
                rate_nusd_per_hour=device.rate_nusd_per_hour,
                failed_because="",
                at_unix_ms=0,
                steps=0,
                prefill_chunk_tokens=2048,
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


def measure(workers: int) -> dict[str, Any]:
    """One size, in this process."""
    process = psutil.Process()
    before_mb = process.memory_info().rss / 1e6
    gc.collect()
    gc.freeze()  # as a router does once it has started; what it knows of workers comes later
    gc.set_threshold(20_000, 50, 100)
    scene = Scene(workers)
    scene.start()
    scene.run(WARM_UP)
    samples = scene.run(REQUESTS)
    return {
        "workers": workers,
        "pick_us": _spread(samples.pick),
        "expect_lengths_and_prefixes_us": _spread(samples.expect),
        "request_to_plain_values_and_chain_us": _spread(samples.chain),
        "carry_out_us": _spread(samples.carry_out),
        "heartbeat_fold_us": _spread(samples.fold),
        "heartbeat_decode_us": _spread(samples.decode),
        "picks": len(samples.pick),
        "picks_with_cached_prefix": samples.cached,
        "links": len(scene.fleet.prefixes),
        "rss_mb": round(process.memory_info().rss / 1e6, 1),
        "rss_before_mb": round(before_mb, 1),
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    p50, p99, p999 = np.percentile(np.array(seconds) * 1e6, (50, 99, 99.9)).tolist()
    return {
        "p50": round(p50, 1),
        "p99": round(p99, 1),
        "p99.9": round(p999, 1),
        "mean": round(1e6 * sum(seconds) / len(seconds), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=SIZES)
    parser.add_argument("--out", default="pick")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one)))
        return
    console = Console()
    results = []
    for workers in asked.workers:
        console.print(f"{workers} workers …")
        done = subprocess.run(
            [sys.executable, "-m", "bench.pick", "--one", str(workers)], check=True, stdout=subprocess.PIPE, text=True
        )
        results.append(json.loads(done.stdout.splitlines()[-1]))
    console.print(_table(results))
    method = (
        "CPU time of each call, in microseconds, interleaved as in a router: a request of a tenant of 10,000 is"
        " chained, picked for and carried out, then four heartbeats are folded; each size in a process of its own"
    )
    path = write(asked.out, {"method": method, "tenants": TENANTS, "classes": CLASSES, "sizes": results})
    picture = _plot(results, asked.out)
    console.print(f"{path}\n{picture}")


def _table(results: list[dict[str, Any]]) -> Table:
    table = Table(title="One router's decision, µs (p50 / p99), and its memory")
    for column in ("workers", "pick", "expect lengths, prefixes", "plain values, chain", "fold a heartbeat", "RSS, MB"):
        table.add_column(column, justify="right")
    for each in results:
        figures = [
            each[name] for name in ("pick_us", "expect_lengths_and_prefixes_us", "request_to_plain_values_and_chain_us")
        ]
        figures.append(each["heartbeat_fold_us"])
        spreads = [f"{figure['p50']:.0f} / {figure['p99']:.0f}" for figure in figures]
        table.add_row(str(each["workers"]), *spreads, f"{each['rss_mb']:.0f}")
    return table


def _plot(results: list[dict[str, Any]], name: str) -> Path:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    workers = [each["workers"] for each in results]
    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for label, key, spread in (
        ("pick, p99", "pick_us", "p99"),
        ("pick, median", "pick_us", "p50"),
        ("fold a heartbeat, p99", "heartbeat_fold_us", "p99"),
        ("fold a heartbeat, median", "heartbeat_fold_us", "p50"),
    ):
        times.plot(workers, [each[key][spread] for each in results], marker="o", label=label)
    times.set(xscale="log", xlabel="workers", ylabel="µs", ylim=0, title="CPU time")
    times.legend(fontsize="small")
    memory.plot(workers, [each["rss_mb"] for each in results], marker="o")
    memory.set(xscale="log", xlabel="workers", ylabel="MB", ylim=0, title="memory of the process")
    for axes in (times, memory):
        axes.grid(visible=True, alpha=0.3)
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


if __name__ == "__main__":
    main()
