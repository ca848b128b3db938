"""Pictures of simulated runs, as SVG, PNG or PDF: the only file of the command line that imports matplotlib.

In: an outcome, or policies held against each other. Out: a file, of the kind that its name says.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from services.cli.output import CommandFailed
from services.twin.compare import Compared
from services.twin.requests import TwinRequest
from services.twin.run import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS: Final = (".svg", ".png", ".pdf")
_WINDOWS: Final = 60  # of the run, in which tokens and promises are counted
_LATEST: Final = 3.0  # promises that are shown


def check(path: Path) -> None:
    """Before minutes are spent on a run: whether a picture could be written there.

    Raises:
        CommandFailed: matplotlib is missing, the name says no kind, or the folder is not there.
    """
    if path.suffix not in KINDS:
        raise CommandFailed(f"--plot {path}: the name must end with one of {', '.join(KINDS)}")
    if not path.parent.is_dir():
        raise CommandFailed(f"--plot {path}: there is no folder {path.parent}")
    try:
        import matplotlib
    except ImportError as error:
        raise CommandFailed("--plot needs matplotlib: pip install 'tokenworks[plots]'") from error
    matplotlib.use("agg")


def plot_run(outcome: Outcome, path: Path) -> None:
    """How late first and later tokens came by class, as parts of what was promised; and how the run went over time."""
    import matplotlib.pyplot as plt

    figure, (first, later, over_time) = plt.subplots(1, 3, figsize=(13, 3.8))
    for each in outcome.scenario.classes:
        name = each.promise.name
        mine = [one for one in outcome.requests if one.promise.name == name and one.first_s]
        _parts(first, name, [one.ttft_s / one.promise.ttft_promise_s(one.prompt_tokens) for one in mine])
        _parts(later, name, [one.tpot_s / one.promise.tpot_s for one in mine if one.delivered > 1])
    for axes, title in ((first, "TTFT, in promises"), (later, "TPOT, in promises")):
        axes.axvline(1.0, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, _LATEST)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(title)
        axes.set_ylabel("part of the requests")
    if first.get_legend_handles_labels()[1]:
        first.legend(fontsize=8)
    _over_time(over_time, outcome.requests)
    figure.suptitle(f"{outcome.policy}, x{outcome.scenario.speed:g}, {len(outcome.requests):,} requests", fontsize=10)
    _save(figure, path)


def plot_compared(compared: Sequence[Compared], path: Path) -> None:
    """Promises kept, of the worst class too, and dollars, by policy, with their intervals."""
    import matplotlib.pyplot as plt

    figure, (kept, cost) = plt.subplots(1, 2, figsize=(11, 4))
    names, places = [each.policy for each in compared], np.arange(len(compared))
    for axes, figures in ((kept, ("slo_attainment", "worst_attainment")), (cost, ("usd_per_mtok",))):
        width = 0.8 / len(figures)
        for number, name in enumerate(figures):
            found = [each.figures[name] for each in compared]
            axes.bar(
                places + number * width,
                [each.mean for each in found],
                width,
                yerr=[each.half for each in found],
                label={"slo_attainment": "all requests", "worst_attainment": "worst class"}.get(name),
            )
        axes.set_xticks(places + 0.4 - width / 2, names, rotation=20, ha="right", fontsize=8)
    kept.set_ylabel("promises kept")
    kept.legend(fontsize=8, loc="lower right")
    cost.set_ylabel("$ per million tokens, idle included")
    _save(figure, path)


def _parts(axes: "Axes", name: str, values: Sequence[float]) -> None:
    """The part of the values that are at most so large."""
    if values:
        axes.step(np.sort(values), np.arange(1, len(values) + 1) / len(values), where="post", label=name)


def _over_time(axes: "Axes", requests: Sequence[TwinRequest]) -> None:
    """Promises kept, by when requests came; and tokens per second, by when their answers ended."""
    span_s = max((max(each.last_s, each.arrival_s) for each in requests), default=0.0) or 1.0
    edges = np.linspace(0.0, span_s, _WINDOWS + 1)
    came_s = np.array([each.arrival_s for each in requests])
    came, _ = np.histogram(came_s, edges)
    met, _ = np.histogram(came_s, edges, weights=[float(each.slo_met) for each in requests])
    tokens, _ = np.histogram(
        [each.last_s for each in requests], edges, weights=[float(each.delivered) for each in requests]
    )
    middles_s = (edges[:-1] + edges[1:]) / 2
    axes.plot(middles_s[came > 0], met[came > 0] / came[came > 0], label="promises kept")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("virtual seconds")
    axes.set_ylabel("promises kept, by arrival")
    right = axes.twinx()
    right.plot(middles_s, tokens / np.diff(edges), color="grey", linewidth=0.8)
    right.set_ylabel("tokens per second (grey)")


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise CommandFailed(f"--plot {path} cannot be written: {error}") from error
    finally:
        plt.close(figure)
