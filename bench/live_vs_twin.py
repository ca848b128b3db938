"""The twin held against the live mesh: the same requests, on the same fleet, in real time and in virtual time.

    python -m bench.live_vs_twin [--requests 400] [--rps 5] [--out live_vs_twin]

In: a trace drawn from a seed. It is replayed into a mesh of simulated accelerators that is started and stopped here, on
free ports; what the mesh recorded is then run by the twin, so that answers are as long as they were. Out: TTFT and TPOT
by class, device-seconds, dollars of them and tokens on both sides, with their differences; `bench/results/<out>.json`.
Exits 1 when a figure differs by more than a tenth. Live figures are as good as the machine is quiet: the simulated
engines keep modelled time, what the mesh adds to it is real.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.mixed_replay import mesh, replay, toml
from bench.policy_scenes import bursty
from bench.record import write
from services.cli.access import FILE_NAME
from services.cli.replay_log import read_log
from services.mesh.accelerators import load_catalogue
from services.mesh.events import RequestFinished
from services.mesh.settings import load_settings
from services.twin.recorded import Recording
from services.twin.requests import TwinRequest
from services.twin.run import simulate
from services.twin.scenario import Fleet, Scenario, classes_of

MODEL: Final = "llama-3.1-8b"
FLEET: Final = ("nvidia-h100-sxm", "amd-mi300x", "nvidia-l40s", "nvidia-l4")
SEED: Final = 3
AGREES: Final = 0.10
_QUANTILES: Final = (0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure on both sides."""

    figure: str
    live: float
    twin: float

    @property
    def off(self) -> float:
        """Of the twin from the live one, as a part of it."""
        return (self.twin - self.live) / self.live if self.live else 0.0


async def live(folder: Path, requests: int, rps: float) -> tuple[dict[str, Any], Recording]:
    """The replay's document, and what a mesh that is started in `folder` and stopped recorded."""
    trace = [replace(each, arrival_s=each.arrival_s * 4.0 / rps) for each in bursty(requests, SEED, median_answer=60.0)]
    rows = [f"{each.arrival_s:.4f},{each.prompt_tokens},{each.completion_tokens}" for each in trace]
    path = folder / "trace.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,completion_tokens", *rows]) + "\n", encoding="utf-8")
    workers = [
        {"id": f"{accelerator}-0", "accelerator": accelerator, "models": [MODEL], "engine": "simulated"}
        for accelerator in FLEET
    ]
    config = folder / "tokenworks.toml"
    settings = {"mesh": {"data_dir": str(folder / "data")}, "fleet": {"workers": workers}}
    config.write_text(toml(settings), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENWORKS_")}
    environment = kept | {"TOKENWORKS_CONFIG": str(config)}
    async with mesh(environment, folder):
        document = await replay(environment, path, model=MODEL, slo_mix="interactive=0.5,standard=0.3,batch=0.2")
        nats = tomllib.loads((folder / "data" / FILE_NAME).read_text(encoding="utf-8"))["nats"]
        return document, await read_log(nats, MODEL)


def compared(recording: Recording) -> list[Compared]:
    """What was recorded, beside what the twin makes of the same requests."""
    catalogue = load_catalogue()
    # The replay says how long answers are to be: routers need not guess.
    trace = [replace(each, max_tokens=each.completion_tokens, exact=True) for each in recording.trace()]
    fleet = Fleet(tuple((f"{key}-0", catalogue.accelerator(key)) for key in FLEET))
    scenario = Scenario(fleet=fleet, model=MODEL, classes=classes_of(load_settings().slo.classes), seed=SEED)
    outcome = simulate(scenario, catalogue, trace, "tokenworks")
    happened = recording.happened()
    rates = {key: catalogue.accelerator(key).rate_nusd_per_hour / 3.6e12 for key in FLEET}
    twin_s = {each.device.key: each.totals.busy_s for each in outcome.workers}
    figures = [
        Compared("tokens", happened.delivered_tokens, sum(each.delivered for each in outcome.requests)),
        Compared("device-seconds", sum(happened.busy_s.values()), sum(twin_s.values())),
        Compared("dollars of them", _usd(happened.busy_s, rates), _usd(twin_s, rates)),
    ]
    for name in dict.fromkeys(each.promise.name for each in scenario.classes):
        was = [each for each in recording.ended() if each.slo_class == name]
        is_ = [each for each in outcome.requests if each.promise.name == name]
        figures += _latencies(name, was, is_)
    return figures


def _latencies(name: str, was: Sequence[RequestFinished], is_: Sequence[TwinRequest]) -> list[Compared]:
    figures = []
    for quantile in _QUANTILES if was and is_ else ():
        for figure in ("ttft_s", "tpot_s"):
            sides = [np.quantile([getattr(each, figure) for each in side], quantile) for side in (was, is_)]
            figures.append(Compared(f"{name} {figure} p{quantile * 100:.0f}", float(sides[0]), float(sides[1])))
    return figures


def _usd(busy_s: Mapping[str, float], rates: Mapping[str, float]) -> float:
    return sum(seconds * rates.get(key, 0.0) for key, seconds in busy_s.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rps", type=float, default=5.0, help="on average; they come in bursts")
    parser.add_argument("--out", default="live_vs_twin", help="name of the result; empty: none is written")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        document, recording = asyncio.run(live(Path(folder), asked.requests, asked.rps))
    figures = compared(recording)
    table = Table(
        title=f"{asked.requests} requests, {asked.rps:g} a second, on {', '.join(FLEET)}", title_justify="left"
    )
    for column in ("figure", "live", "twin", "twin is off by"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for each in figures:
        table.add_row(each.figure, f"{each.live:,.4g}", f"{each.twin:,.4g}", f"{each.off:+.1%}")
    Console().print(table)
    apart = [each.figure for each in figures if abs(each.off) > AGREES]
    if asked.out:
        rows = [asdict(each) | {"off": round(each.off, 4)} for each in figures]
        write(
            asked.out, {"fleet": FLEET, "seed": SEED, "figures": rows, "apart": apart, "failed": document.get("failed")}
        )
    if apart:
        Console(stderr=True).print(f"[red]apart by more than {AGREES:.0%}: {', '.join(apart)}[/]")
        sys.exit(1)


if __name__ == "__main__":
    main()
