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
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from bench.pick_scene import CLASSES, TENANTS, Scene
from bench.record import write

SIZES: Final = (10, 30, 100, 300, 1000, 3000)
WARM_UP: Final = 1_000
REQUESTS: Final = 6_000
IMAGES: Final = Path(__file__).resolve().parent.parent / "docs" / "images"


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
