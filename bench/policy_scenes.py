"""What policies are compared on: a fleet, traces that are read or drawn from a seed, and what befalls the fleet.

In: a folder with the public traces, where there is one. Out: `Scene`s. The fleet, the model, the classes and every
default are the same in all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import exp, log, sqrt
from pathlib import Path
from random import Random
from typing import Final

from services.mesh.accelerators import Catalogue
from services.twin.scenario import EngineSettings, Event, Fleet, Scenario, usual_classes
from services.twin.traces import TraceRequest, read

FLEET: Final = "2 nvidia-h100-sxm, 2 amd-mi300x, 2 nvidia-a100-80g-sxm, 3 nvidia-l40s, 3 nvidia-l4, google-tpu-v6e"
MODEL: Final = "llama-3.1-8b"
ENGINES: Final = {
    "2,048 tokens": EngineSettings(prefill_chunk_tokens=2048),
    "30 ms": EngineSettings(prefill_chunk_s=0.030),
}
OURS: Final = "tokenworks"
SEED: Final = 1
# A third of the fleet, of every kind but one of the three small ones.
FAILING: Final = ("nvidia-h100-sxm-0", "amd-mi300x-0", "nvidia-l40s-0", "nvidia-l4-0")
AZURE: Final = Path("azure/AzureLLMInferenceTrace_conv.csv")
MOONCAKE: Final = Path("mooncake/synthetic_trace.jsonl")
_CONTEXT_TOKENS: Final = 131_072  # of the model: what is longer can be served nowhere
_ORIGINALS: Final = {
    AZURE: "https://github.com/Azure/AzurePublicDataset (AzureLLMInferenceTrace_conv.csv)",
    MOONCAKE: "https://github.com/kvcache-ai/Mooncake (FAST25-release/traces/synthetic_trace.jsonl)",
}


@dataclass(frozen=True, slots=True)
class Scene:
    """One comparison.

    Attributes:
        goal: what ours is to reach, for a reader.
        first: the speed that a search begins with: downwards, and upwards where it holds.
        reused: whether prompts share prefixes.
        speed: where above 0, nothing is searched: runs are at this speed, and `struck_s` is when it strikes.
    """

    name: str
    says: str
    goal: str
    trace: Sequence[TraceRequest]
    first: float = 32.0
    reused: bool = False
    speed: float = 0.0
    struck_s: float = 0.0
    events: tuple[Event, ...] = ()


def scenario(catalogue: Catalogue, engine: str, scene: Scene, seed: int = SEED) -> Scenario:
    """The scene with engines set up in one of the ways of `ENGINES`."""
    return Scenario(
        fleet=Fleet.parse(FLEET, catalogue),
        model=MODEL,
        classes=usual_classes(),
        engine=ENGINES[engine],
        speed=scene.speed or 1.0,
        seed=seed,
        events=scene.events,
    )


def scenes(traces: Path | None, *, quick: bool) -> tuple[list[Scene], list[str]]:
    """All scenes; and, for those whose trace is not there, why they are left out."""
    part = 4 if quick else 1
    made: list[Scene] = []
    missing: list[str] = []

    def with_trace(path: Path, requests: int, make: Callable[[list[TraceRequest]], list[Scene]]) -> None:
        file = traces / path if traces else path
        if not file.is_file():
            missing.append(f"{path.name} is not there; give TRACES=dir with {path}, from {_ORIGINALS[path]}")
            return
        with file.open(encoding="utf-8-sig") as lines:
            made.extend(make(list(islice(read(lines, path.name), requests // part))))

    with_trace(AZURE, 20_000, _azure)
    with_trace(MOONCAKE, 1000, _mooncake)
    bursts = bursty(4000 // part, SEED)
    made.append(
        Scene(
            "bursts", f"{len(bursts):,} requests in bursts, seed {SEED}: short answers after long prompts", "2x", bursts
        )
    )
    made += _struck(bursty(6000 // part, SEED + 1, median_answer=120.0, burst=1.0), part)
    return made, missing


def bursty(requests: int, seed: int, *, median_answer: float = 13.0, burst: float = 4.0) -> list[TraceRequest]:
    """Prompts of median 1,500 tokens and 99th percentile 7,400; answers of the median given; Poisson arrivals, four a
    second on average, that come `burst` times as densely in a quarter of the time.
    """
    rng = Random(f"{seed}/bursty")
    spread = log(7400 / 1500) / 2.326  # of the logarithm: 2.326 is the normal distribution's 99th percentile
    calm_rps = 4.0 / (0.75 + 0.25 * burst)
    at_s, made = 0.0, []
    for _ in range(requests):
        dense = at_s % 40.0 < 10.0
        at_s += rng.expovariate(calm_rps * (burst if dense else 1.0))
        made.append(
            TraceRequest(
                arrival_s=at_s,
                prompt_tokens=max(1, round(1500 * exp(rng.gauss(0.0, spread)))),
                completion_tokens=max(1, round(median_answer * exp(rng.gauss(0.0, 0.8)))),
            )
        )
    return made


def _azure(trace: list[TraceRequest]) -> list[Scene]:
    return [Scene("conversation", f"Azure conversation trace, {len(trace):,} requests", "92 % of the bound", trace)]


def _mooncake(trace: list[TraceRequest]) -> list[Scene]:
    trace = [each for each in trace if each.prompt_tokens + each.completion_tokens <= _CONTEXT_TOKENS]
    bare = [replace(each, blocks=()) for each in trace]
    says = f"Mooncake synthetic trace, its first {len(trace):,} requests"
    goal = "85 % of the bound, 2x"
    return [
        Scene("long prompts", f"{says}, as if no two prompts had anything in common", goal, bare, first=4.0),
        Scene("long prompts, shared", f"{says}, with the beginnings they share", "2x", trace, first=4.0, reused=True),
    ]


def _struck(trace: list[TraceRequest], part: int) -> list[Scene]:
    """The same trace with a third of the fleet failing, and with demand doubling within a minute."""
    struck_s = 40.0 / part
    speed = 5.0
    fails = tuple(Event(struck_s, "fail", (name,)) for name in FAILING)
    doubled = [replace(each, arrival_s=_doubling(each.arrival_s / speed, struck_s) * speed) for each in trace]
    goal = "no worse than the best, 99 % again within 30 s"
    return [
        Scene(
            "failures",
            f"{len(FAILING)} of 13 workers fail at {struck_s:g} s",
            goal,
            trace,
            speed=speed,
            struck_s=struck_s,
            events=fails,
        ),
        Scene(
            "doubling",
            f"demand doubles within a minute from {struck_s:g} s on",
            goal,
            doubled,
            speed=speed,
            struck_s=struck_s,
        ),
    ]


def _doubling(at_s: float, from_s: float, within_s: float = 60.0) -> float:
    """When an arrival comes whose rate grows linearly to the double within a minute.

    The work done by time t at rate 1 + (t - from) / within is t + (t - from)**2 / (2 within): solved for t.
    """
    ahead: float = at_s - from_s
    if ahead <= 0:
        return at_s
    if ahead >= 1.5 * within_s:
        return from_s + within_s + (ahead - 1.5 * within_s) / 2
    return from_s + within_s * (sqrt(1 + 2 * ahead / within_s) - 1)
