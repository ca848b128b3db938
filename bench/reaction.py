"""How soon the mesh reacts to a device that becomes ten times slower, on a live mesh under load.

    python -m bench.reaction [--rounds 12] [--flips 60] [--rps 20] [--factor 10] [--out reaction]

In: a mesh of simulated accelerators, two of each kind, that is started and stopped here, on free ports; short answers
at a steady rate. In each round the worker that gets most is slowed down from within and, some seconds later, is itself
again. Out, in `bench/results/<out>.json`:

- `left_alone_s`: from the slowdown until the worker gets less than a quarter of what it got before, as the requests'
  own events say; those that are tried there on purpose count as got;
- `control`: the same rounds with nothing slowed, each after one that was: how many workers seemed to be left alone all
  the same, as load shifts by chance or because of the round before;
- `control_loop_s`: from news that the optimizer hears to its plan in force at the router, by what called for it, as the
  router's histogram `tokenworks.router.plan.reaction` has it: quantiles are upper bounds of their buckets. For there to
  be many such plans, workers are slowed down and released in turn at the end, one change a second, `--flips` times.

Exits 1 when a worker was left alone later than 0.5 s, or the control loop's p99 is above 0.5 s.
"""

import argparse
import asyncio
import os
import random
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc
import numpy as np
from rich.console import Console

from bench.mixed_replay import mesh, toml
from bench.record import write
from services.chaos.beats import Beats
from services.cli.access import FILE_NAME, Access
from services.mesh.bus import Delivered
from services.mesh.clock import SystemClock
from services.mesh.events import RequestAdmitted
from services.mesh.nats.bus import NatsBus
from services.mesh.rpc import MESH_SECRET
from services.mesh.settings import NatsSettings
from services.mesh.subjects import ADMITTED
from services.mesh.telemetry import start_telemetry
from tokenworks import Client, GenerateError
from tokenworks.v1 import inference_pb2 as pb
from tokenworks.v1 import inference_pb2_grpc as pb_grpc

MODEL: Final = "llama-3.1-8b"
FLEET: Final = ("nvidia-h100-sxm", "nvidia-l40s")
EACH: Final = 2
AIM_S: Final = 0.5
_ANSWER_TOKENS: Final = 32
_SEEN_S: Final = 4.0  # before a slowdown, to know what a worker usually gets
_SLOW_S: Final = 5.0
_AGAIN_S: Final = 8.0  # until a worker that is itself again gets its part
_QUIET_S: Final = 1.5  # a worker that gets little for so long is left alone
_LITTLE: Final = 0.25  # of what it got before
_LEAST_SEEN: Final = 8  # placements before the slowdown, for a round to tell anything
_CALL_S: Final = 5.0
_FLIP_S: Final = 1.0
_BUCKET: Final = re.compile(r"^tokenworks_router_plan_reaction\w*_bucket\{(.*)\} ([0-9.e+]+)")
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


@dataclass(slots=True)
class Placements:
    """When each request was placed where, as the router said: Unix seconds."""

    at_s: dict[str, list[float]] = field(default_factory=dict)

    async def note(self, delivered: Delivered) -> None:
        if isinstance(event := delivered.event, RequestAdmitted):
            self.at_s.setdefault(event.worker, []).append(event.at_unix_ms / 1000)

    def most(self, since_s: float) -> tuple[str, int]:
        """The worker that got most since then, and how much."""
        counts = {worker: sum(each >= since_s for each in at_s) for worker, at_s in self.at_s.items()}
        return max(counts.items(), key=lambda each: each[1], default=("", 0))


def left_alone_s(placed_s: Sequence[float], slowed_s: float, usual_rps: float, until_s: float) -> float | None:
    """Seconds from the slowdown until the worker got little for `_QUIET_S`; None: never until `until_s`.

    Args:
        placed_s: when it got requests, in order.
        usual_rps: what it got before, above 0.
    """
    after_s = [each for each in placed_s if slowed_s <= each <= until_s]
    for begins_s in (slowed_s, *after_s):
        if begins_s + _QUIET_S > until_s:
            return None
        got = sum(begins_s < each <= begins_s + _QUIET_S for each in after_s)
        if got < _LITTLE * usual_rps * _QUIET_S:
            return begins_s - slowed_s
    return None


def upper_quantile_s(buckets: Mapping[float, float], quantile: float) -> float:
    """The least upper bound of a histogram's bucket that holds the quantile.

    Args:
        buckets: at least one; how many were at most so many seconds.
    """
    total = max(buckets.values())
    return min(bound for bound, count in buckets.items() if count >= quantile * total)


async def reactions(access: Access) -> dict[str, Any]:
    """The routers' histogram, by what called for the plans."""
    counts: dict[str, dict[float, float]] = {}
    async with aiohttp.ClientSession() as http:
        for name, address in access.http.items():
            if not name.startswith("router"):
                continue
            async with http.get(f"http://{address}/metrics") as response:
                for line in (await response.text()).splitlines():
                    if (found := _BUCKET.match(line)) is None:
                        continue
                    labels = dict(_LABEL.findall(found[1]))
                    trigger = next(value for label, value in labels.items() if label.endswith("trigger"))
                    _add(counts.setdefault(trigger, {}), float(labels["le"]), float(found[2]))
    every: dict[float, float] = {}
    for each in counts.values():
        for bound, count in each.items():
            _add(every, bound, count)
    return {
        trigger: {
            "plans": int(max(buckets.values())),
            "p50_s": upper_quantile_s(buckets, 0.5),
            "p99_s": upper_quantile_s(buckets, 0.99),
        }
        for trigger, buckets in [*sorted(counts.items()), ("all", every)]
        if buckets
    }


def _add(buckets: dict[float, float], bound: float, count: float) -> None:
    buckets[bound] = buckets.get(bound, 0.0) + count


async def slow(access: Access, address: str, factor: float) -> None:
    """Makes a worker so many times slower; 1: itself again."""
    kind = pb.InjectFaultRequest.KIND_SLOW if factor > 1 else pb.InjectFaultRequest.KIND_NONE
    metadata = ((MESH_SECRET, access.secret),) if access.secret else ()
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb_grpc.FaultControlStub(channel)  # type: ignore[no-untyped-call]  # generated
        await stub.InjectFault(pb.InjectFaultRequest(kind=kind, factor=factor), timeout=_CALL_S, metadata=metadata)


async def load(client: Client, rps: float, over: asyncio.Event) -> int:
    """Requests at random moments until `over` is set; how many failed."""
    rng, failed = random.Random(1), 0

    async def ask(number: int) -> None:
        nonlocal failed
        try:
            async with client.generate(text=f"river {number}", model=MODEL, max_tokens=_ANSWER_TOKENS) as stream:
                async for _ in stream:
                    pass
        except GenerateError:
            failed += 1

    async with asyncio.TaskGroup() as asking:
        number = 0
        while not over.is_set():
            asking.create_task(ask(number))
            number += 1
            await asyncio.sleep(rng.expovariate(rps))
    return failed


async def measured(folder: Path, rounds: int, flips: int, rps: float, factor: float) -> dict[str, Any]:
    """The figures of a mesh that is started in `folder` and stopped."""
    workers = [
        {"id": f"{accelerator}-{number}", "accelerator": accelerator, "models": [MODEL], "engine": "simulated"}
        for accelerator in FLEET
        for number in range(EACH)
    ]
    settings = {
        "mesh": {"data_dir": str(folder / "data")},
        "worker": {"faults": True},
        "fleet": {"workers": workers},
    }
    config = folder / "tokenworks.toml"
    config.write_text(toml(settings), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENWORKS_")}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(mesh(kept | {"TOKENWORKS_CONFIG": str(config)}, folder))
        access = Access(**tomllib.loads((folder / "data" / FILE_NAME).read_text(encoding="utf-8")))
        clock, placements = SystemClock(), Placements()
        beats = await stack.enter_async_context(Beats(NatsSettings(), access.nats, clock))
        telemetry = start_telemetry("client", "reaction")
        stack.callback(telemetry.shutdown)
        bus = NatsBus(NatsSettings(url=access.nats), "client", "reaction", telemetry, clock)
        await bus.connect()
        stack.push_async_callback(bus.close)
        key = next(iter(access.keys.values()))
        client = await stack.enter_async_context(Client(access.router, key, direct=False))
        over = asyncio.Event()
        watching = asyncio.create_task(bus.watch([ADMITTED], placements.note))
        loading = asyncio.create_task(load(client, rps, over))
        try:
            took_s: list[float | None] = []
            calm_s: list[float | None] = []
            for _ in range(rounds):
                took_s.append(await _round(access, beats, placements, factor))
                calm_s.append(await _round(access, beats, placements, 1.0))
            await _flip(access, beats, placements, flips, factor)
        finally:
            over.set()
            failed = await loading
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return _figures(took_s) | {
            "control": _control(calm_s),
            "failed_requests": failed,
            "control_loop_s": await reactions(access),
        }


async def _round(access: Access, beats: Beats, placements: Placements, factor: float) -> float | None:
    """One slowdown, of none with factor 1: how soon its worker was left alone; negative where nothing could be told."""
    await asyncio.sleep(_AGAIN_S)
    worker, got = placements.most(time.time() - _SEEN_S)
    if got < _LEAST_SEEN:
        return -1.0
    slowed_s = time.time()
    await slow(access, beats.address(worker), factor)
    await asyncio.sleep(_SLOW_S)
    await slow(access, beats.address(worker), 1.0)
    return left_alone_s(placements.at_s[worker], slowed_s, got / _SEEN_S, slowed_s + _SLOW_S)


async def _flip(access: Access, beats: Beats, placements: Placements, flips: int, factor: float) -> None:
    """Changes one worker's speed each second, by turns."""
    workers, slowed = sorted(placements.at_s), False
    for number in range(flips + flips % 2):  # none stays slow
        slowed = not slowed
        await slow(access, beats.address(workers[number // 2 % len(workers)]), factor if slowed else 1.0)
        await asyncio.sleep(_FLIP_S)


def _control(calm_s: Sequence[float | None]) -> dict[str, int]:
    told = [each for each in calm_s if each is None or each >= 0]
    return {"rounds": len(told), "left_alone": sum(each is not None for each in told)}


def _figures(took_s: Sequence[float | None]) -> dict[str, Any]:
    told = [each for each in took_s if each is None or each >= 0]
    left = [each for each in told if each is not None]
    return {
        "rounds": len(told),
        "never": len(told) - len(left),
        "left_alone_s": {
            "median": round(float(np.median(left)), 3),
            "slowest": round(max(left), 3),
        }
        if left
        else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--flips", type=int, default=60, help="changes of speed at the end, for more plans")
    parser.add_argument("--rps", type=float, default=20.0)
    parser.add_argument("--factor", type=float, default=10.0, help="how many times slower")
    parser.add_argument("--out", default="reaction", help="name of the result; empty: none is written")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measured(Path(folder), asked.rounds, asked.flips, asked.rps, asked.factor))
    console = Console()
    console.print_json(data=figures)
    if asked.out:
        write(asked.out, {"fleet": FLEET, "each": EACH, "rps": asked.rps, "factor": asked.factor, **figures})
    left, loop = figures["left_alone_s"], figures["control_loop_s"].get("all")
    late = figures["never"] or left is None or left["slowest"] > AIM_S
    if late or loop is None or loop["p99_s"] > AIM_S:
        Console(stderr=True).print(f"[red]later than {AIM_S:g} s: {left}, control loop {loop}[/]")
        sys.exit(1)


if __name__ == "__main__":
    main()
