"""Policies held against each other in virtual time: how much load each sustains, and how each takes a blow.

    python -m bench.policy [--traces DIR] [--quick] [--processes N]

In: `policy_scenes`. Out: `bench/results/policy.json` and `.md`, `docs/images/policy.svg`, and a table.

Load is searched for: the greatest speed of a trace at which no class falls below 99 %, to 4 %. The other routers' rules
are run with both ways of setting engines up; ours starts from chunks of 2,048 tokens everywhere, and its plans set what
engines' steps may take. The fluid bound is the greater of both settings': it knows the whole trace, waits for nothing
and loses nothing to fluctuations. Struck fleets are run at one speed.
"""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.policy_scenes import ENGINES, FLEET, OURS, SEED, Scene, scenario, scenes
from bench.record import RESULTS, hardware, write
from services.mesh.accelerators import load_catalogue
from services.twin.bound import fluid_bound
from services.twin.capacity import TARGET, sustained
from services.twin.policies import BASELINES
from services.twin.requests import TwinRequest
from services.twin.run import simulate

IMAGES: Final = Path(__file__).resolve().parent.parent / "docs" / "images"
_PRECISION: Final = 0.04
_WINDOW_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Row:
    """What one policy did in one scene.

    Attributes:
        speed: sustained, or the one it was run at.
        attainment: part of all requests whose promises were kept; of the worst class where load was searched for.
        back_s: after the blow, until from then on 99 % of the arrivals of every 5 s kept theirs; 0 where none was hit,
            -1 where that was never so again.
    """

    scene: str
    policy: str
    engine: str
    speed: float
    attainment: float
    usd_per_mtok: float
    back_s: float
    runs: int
    tokens_per_cpu_s: float
    cpu_s: float


def measure(scene: Scene, policy: str, engine: str) -> Row:
    """One policy in one scene, in this process."""
    catalogue, began_s = load_catalogue(), time.process_time()
    made = scenario(catalogue, engine, scene)
    if scene.speed:
        outcome = simulate(made, catalogue, scene.trace, policy)
        requests = outcome.requests
        tokens = sum(each.delivered for each in requests)
        return Row(
            scene=scene.name,
            policy=policy,
            engine=engine,
            speed=scene.speed,
            attainment=sum(each.slo_met for each in requests) / len(requests),
            usd_per_mtok=0.0,
            back_s=back_s(requests, scene.struck_s),
            runs=1,
            tokens_per_cpu_s=tokens / outcome.cpu_s,
            cpu_s=time.process_time() - began_s,
        )
    found = sustained(made, catalogue, scene.trace, policy, first=scene.first, precision=_PRECISION)
    at = found.at
    return Row(
        scene=scene.name,
        policy=policy,
        engine=engine,
        speed=found.speed,
        attainment=at.worst_attainment if at else 0.0,
        usd_per_mtok=at.usd_per_mtok if at else 0.0,
        back_s=0.0,
        runs=found.runs,
        tokens_per_cpu_s=at.tokens_per_cpu_s if at else 0.0,
        cpu_s=time.process_time() - began_s,
    )


def back_s(requests: Sequence[TwinRequest], struck_s: float) -> float:
    """See `Row`."""
    windows: dict[int, list[bool]] = {}
    for each in requests:
        if each.arrival_s >= struck_s:
            windows.setdefault(int((each.arrival_s - struck_s) // _WINDOW_S), []).append(each.slo_met)
    bad = [window for window, met in windows.items() if sum(met) < TARGET * len(met)]
    if not bad:
        return 0.0
    return -1.0 if max(bad) == max(windows) else (max(bad) + 1) * _WINDOW_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=os.environ.get("TRACES") or None, help="folder of public traces")
    parser.add_argument("--quick", action="store_true", help="a quarter of each trace, and no files")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--scene", action="append", help="only this one; repeat")
    asked = parser.parse_args()
    console = Console()
    found, missing = scenes(asked.traces, quick=asked.quick)
    for each in missing:
        console.print(f"[yellow]left out:[/] {each}")
    found = [each for each in found if not asked.scene or each.name in asked.scene]
    began_s = time.monotonic()
    entries: list[dict[str, Any]] = []
    with ProcessPoolExecutor(asked.processes) as pool:
        first_engine = next(iter(ENGINES))
        started = [
            (scene, [
                pool.submit(measure, scene, policy, engine)
                for policy, engine in [
                    (OURS, first_engine),
                    *((kind.name, engine) for kind in BASELINES for engine in ENGINES),
                ]
            ])
            for scene in found
        ]  # fmt: skip
        for scene, futures in started:
            rows = [each.result() for each in futures]
            entry = entry_of(scene, rows)
            entries.append(entry)
            console.print(table(entry))
    took_s = time.monotonic() - began_s
    console.print(f"[dim]{took_s:,.0f} s with {asked.processes} processes; seed {SEED}; fleet: {FLEET}[/]")
    if not asked.quick and not asked.scene:
        document = {"fleet": FLEET, "seed": SEED, "took_s": round(took_s), "left_out": missing, "scenes": entries}
        console.print(f"wrote {write('policy', document)}, {_markdown(entries, took_s)}, {_plot(entries)}")


def entry_of(scene: Scene, rows: Sequence[Row]) -> dict[str, Any]:
    """A scene with its rows: ours first, then each baseline's better setting, and the other one."""
    catalogue = load_catalogue()
    bound = 0.0
    if not scene.speed and not scene.reused:
        bound = max(fluid_bound(scenario(catalogue, engine, scene), catalogue, scene.trace) for engine in ENGINES)
    ours = rows[0]
    better = [max((each for each in rows if each.policy == kind.name), key=_merit) for kind in BASELINES]
    best = max(better, key=_merit)
    return {
        "scene": scene.name,
        "says": scene.says,
        "goal": scene.goal,
        "searched": not scene.speed,
        "requests": len(scene.trace),
        "fluid_bound": round(bound, 2),
        "ours_of_bound": round(ours.speed / bound, 3) if bound else None,
        "ours_to_best": round(ours.speed / best.speed, 2) if not scene.speed and best.speed else None,
        "best_baseline": best.policy,
        "rows": [asdict(each) for each in (ours, *better)],
        "other_setting": [asdict(each) for each in rows[1:] if each not in better],
    }


def _merit(row: Row) -> tuple[float, float]:
    return row.speed, row.attainment


def table(entry: dict[str, Any]) -> Table:
    made = Table(title=f"{entry['scene']}: {entry['says']}", title_justify="left", caption=f"aim: {entry['goal']}")
    for name in _columns(entry):
        made.add_column(name, justify="left" if name in ("policy", "engines") else "right")
    for row in _every_row(entry):
        made.add_row(*_cells(entry, row))
    return made


def _every_row(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours, each baseline at its better setting, and then at its other one."""
    return [*entry["rows"], *entry["other_setting"]]


def _columns(entry: dict[str, Any]) -> list[str]:
    if entry["searched"]:
        return ["policy", "engines", "sustains", "of the bound", "worst class", "$/M tokens"]
    return ["policy", "engines", "promises kept", "99 % again after"]


def _cells(entry: dict[str, Any], row: dict[str, Any]) -> list[str]:
    ours = row["policy"] == OURS
    head = [row["policy"], "set by the plan" if ours else row["engine"]]
    if entry["searched"]:
        bound = entry["fluid_bound"]
        part = f"{row['speed'] / bound:.0%}" if bound else "-"
        return [*head, f"x{row['speed']:.2f}", part, f"{row['attainment']:.2%}", f"{row['usd_per_mtok']:.3f}"]
    back = {0.0: "at once", -1.0: "never"}.get(row["back_s"], f"{row['back_s']:g} s")
    return [*head, f"{row['attainment']:.2%}", back]


def _markdown(entries: Sequence[dict[str, Any]], took_s: float) -> Path:
    machine = hardware()
    lines = [
        "# Policies in virtual time",
        "",
        f"`make bench-policy`, {took_s:,.0f} s on {machine['cores']} cores of {machine['cpu']}; seed {SEED}; {FLEET};",
        "llama-3.1-8b. Each baseline at the better of two settings of its engines, then at the other; loads to 4 %.",
    ]
    for entry in entries:
        columns = _columns(entry)
        lines += ["", f"## {entry['scene']}", "", f"{entry['says']}. Aim: {entry['goal']}.", ""]
        if entry["fluid_bound"]:
            lines[-2] += f" Fluid bound: x{entry['fluid_bound']:g}."
        lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(_cells(entry, row)) + " |" for row in _every_row(entry)]
    path = RESULTS / "policy.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _plot(entries: Sequence[dict[str, Any]]) -> Path:
    """Sustained loads side by side, as a part of what ours sustains or of the bound."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    shown = [each for each in entries if each["searched"]]
    names = [row["policy"] for row in shown[0]["rows"]]
    figure, axes = plt.subplots(figsize=(9, 4))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        heights = [each["rows"][place]["speed"] / max(_most(each), 1e-9) for each in shown]
        axes.bar([index + place * width for index in range(len(shown))], heights, width, label=name)
    for index, each in enumerate(shown):
        if each["fluid_bound"]:
            axes.text(index, 1.01, f"bound x{each['fluid_bound']:.1f}", fontsize=7)
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(shown))], [each["scene"] for each in shown])
    axes.set_ylabel("load sustained at 99 %, of the fluid bound")
    axes.set_ylim(0, 1.1)
    axes.legend(fontsize=7)
    figure.tight_layout()
    path = IMAGES / "policy.svg"
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _most(entry: dict[str, Any]) -> float:
    return float(entry["fluid_bound"]) or max(row["speed"] for row in entry["rows"])


if __name__ == "__main__":
    main()
