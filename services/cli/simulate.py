"""`tokenworks simulate` and `tokenworks compare`: a trace on a fleet that is not there, in virtual time."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli.options import JsonFlag, TraceArgument
from services.cli.output import CommandFailed, command

if TYPE_CHECKING:
    from rich.table import Table

    from services.mesh.settings import ElasticPool
    from services.twin.compare import Compared
    from services.twin.report import Report
    from services.twin.scenario import EngineSettings, Event, Scenario
    from services.twin.traces import TraceRequest

DEFAULT_FLEET: Final = "nvidia-h100-sxm, amd-mi300x, intel-gaudi3, google-tpu-v6e, aws-trainium2, nvidia-l4"
DEFAULT_POLICIES: Final = "tokenworks,round-robin,two-choices,least-requests,kv-block-cost,tokens-over-throughput"

FleetOption = Annotated[str, typer.Option(help='Like "2 nvidia-h100-sxm, 3 nvidia-l4".')]
ModelOption = Annotated[str, typer.Option(help="A model of the catalogue; every worker serves it.")]
SpeedOption = Annotated[float, typer.Option(min=0.001, max=10_000, help="4: arrivals come four times as fast.")]
LimitOption = Annotated[int, typer.Option(min=0, help="Only the first so many requests; 0: all.")]
MixOption = Annotated[str, typer.Option(help="Weights of interactive, standard and batch.")]
ChunkOption = Annotated[int, typer.Option(min=16, help="Prompt tokens per engine step.")]
ChunkSecondsOption = Annotated[
    float, typer.Option(min=0, max=10, help="Instead: each device's chunk takes so many seconds.")
]
PolicyNamesOption = Annotated[
    str, typer.Option("--policies", help="Comma-separated; the first is what the others are held against.")
]
ElasticOption = Annotated[
    list[str] | None,
    typer.Option(
        "--elastic",
        help='"nvidia-l4 1 8 60": between 1 and 8 of them, as the plans say; a new one is ready after 60 s; repeat.',
    ),
]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", help="Draw it, too: a file that ends with .svg, .png or .pdf.")
]
FaultOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fault",
        help='"60 fail nvidia-l4-0", "90 ready nvidia-l4-0", "90 start nvidia-l4-0 45" (a cold start of 45 s),'
        ' "60 slow nvidia-l4-0 10", "60 price nvidia-l4-0 1.5" or "60 tariff nvidia-l4-0 2"; repeat.',
    ),
]


def simulate(
    trace: TraceArgument,
    *,
    fleet: FleetOption = DEFAULT_FLEET,
    policy: Annotated[str, typer.Option(help="tokenworks, or one of the rules of `compare`.")] = "tokenworks",
    model: ModelOption = "llama-3.1-8b",
    speed: SpeedOption = 1.0,
    limit: LimitOption = 0,
    slo_mix: MixOption = "0.5,0.3,0.2",
    chunk_tokens: ChunkOption = 2048,
    chunk_s: ChunkSecondsOption = 0.0,
    fault: FaultOption = None,
    elastic: ElasticOption = None,
    seed: Annotated[int, typer.Option(help="Of what the trace leaves open, and of chance in the policy.")] = 1,
    plot: PlotOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a trace in virtual time through the mesh's own router, scheduler and optimizer; report what came of it."""
    with command(as_json) as output:
        from services.mesh.accelerators import load_catalogue
        from services.twin.report import report
        from services.twin.run import simulate as run

        scenario = _scenario(
            fleet,
            model,
            slo_mix,
            speed=speed,
            seed=seed,
            chunk_tokens=chunk_tokens,
            chunk_s=chunk_s,
            faults=fault or [],
            elastic=elastic or [],
        )
        requests = _requests(trace, limit)
        _check(plot)
        outcome = run(scenario, load_catalogue(), requests, policy)
        if plot is not None:
            from services.cli.plots import plot_run

            plot_run(outcome, plot)
        done = report(outcome)
        output.result(done.document(), *_pictures(done))


def compare(
    trace: TraceArgument,
    *,
    fleet: FleetOption = DEFAULT_FLEET,
    policies: PolicyNamesOption = DEFAULT_POLICIES,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs of each policy.")] = 3,
    model: ModelOption = "llama-3.1-8b",
    speed: SpeedOption = 1.0,
    limit: LimitOption = 0,
    slo_mix: MixOption = "0.5,0.3,0.2",
    chunk_tokens: ChunkOption = 2048,
    chunk_s: ChunkSecondsOption = 0.0,
    fault: FaultOption = None,
    plot: PlotOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Run policies side by side in virtual time: the mesh's, other routers' rules, and the fluid bound."""
    with command(as_json) as output:
        from dataclasses import asdict

        from services.mesh.accelerators import load_catalogue
        from services.twin.bound import fluid_bound
        from services.twin.compare import compare as held
        from services.twin.report import report
        from services.twin.run import simulate as run

        _check(plot)
        requests, catalogue = _requests(trace, limit), load_catalogue()
        names = [each.strip() for each in policies.split(",") if each.strip()]
        reports: dict[str, list[Report]] = {}
        for name in names:
            for seed in range(1, seeds + 1):
                scenario = _scenario(
                    fleet,
                    model,
                    slo_mix,
                    speed=speed,
                    seed=seed,
                    chunk_tokens=chunk_tokens,
                    chunk_s=chunk_s,
                    faults=fault or [],
                )
                reports.setdefault(name, []).append(report(run(scenario, catalogue, requests, name)))
            output.say(f"[dim]{name}: {seeds} runs[/]")
        compared = held(reports)
        if plot is not None:
            from services.cli.plots import plot_compared

            plot_compared(compared, plot)
        bound = fluid_bound(scenario, catalogue, requests)
        output.result(
            {"policies": [asdict(each) for each in compared], "fluid_bound_speed": bound, "speed": speed},
            _compared(compared),
            f"[dim]No policy can keep up with this trace beyond x{bound:.1f} on this fleet (fluid bound).[/]",
        )


def _check(plot: Path | None) -> None:
    if plot is not None:
        from services.cli.plots import check

        check(plot)


def _scenario(
    fleet: str,
    model: str,
    slo_mix: str,
    *,
    speed: float,
    seed: int,
    chunk_tokens: int,
    chunk_s: float,
    faults: Sequence[str],
    elastic: Sequence[str] = (),
) -> "Scenario":
    from services.mesh.accelerators import load_catalogue
    from services.twin.scenario import EngineSettings, Fleet, Scenario, usual_classes

    try:
        interactive, standard, batch = (float(each) for each in slo_mix.split(","))
    except ValueError as error:
        raise CommandFailed(f"--slo-mix {slo_mix!r} is not three weights like 0.5,0.3,0.2") from error
    catalogue = load_catalogue()
    catalogue.model(model)
    return Scenario(
        fleet=Fleet.parse(fleet, catalogue),
        model=model,
        classes=usual_classes(interactive=interactive, standard=standard, batch=batch),
        engine=EngineSettings(prefill_chunk_tokens=chunk_tokens, prefill_chunk_s=chunk_s),
        speed=speed,
        seed=seed,
        events=tuple(map(_event, faults)),
        elastic=tuple(_elastic_pool(words, model) for words in elastic),
    )


def engine_of(chunk_tokens: int) -> "EngineSettings":
    """Engines with chunks of so many prompt tokens."""
    from services.twin.scenario import EngineSettings

    return EngineSettings(prefill_chunk_tokens=chunk_tokens)


def _elastic_pool(words: str, model: str) -> "ElasticPool":
    from services.mesh.settings import ElasticPool

    try:
        name, least, most, cold_start_s = words.split()
        return ElasticPool(
            pool=name,
            accelerator=name,
            models=(model,),
            least=int(least),
            most=int(most),
            cold_start_s=float(cold_start_s),
        )
    except ValueError as error:
        raise CommandFailed(f"--elastic {words!r} is not like 'nvidia-l4 1 8 60': {error}") from error


def _event(words: str) -> "Event":
    from services.twin.scenario import EVENTS, Event

    parts = words.split()
    try:
        at_s, kind, worker = float(parts[0]), parts[1], parts[2]
        needed = kind not in ("fail", "ready")
        amount = float(parts[3]) if needed else 1.0
    except (ValueError, IndexError) as error:
        raise CommandFailed(f"--fault {words!r} is not like '60 slow nvidia-l4-0 10'") from error
    if kind not in EVENTS or not (amount > 0 and at_s >= 0):
        raise CommandFailed(f"--fault {words!r}: {kind!r} is none of {', '.join(EVENTS)}, or a number is not above 0")
    return Event(at_s, kind, (worker,), amount)


def _requests(path: Path, limit: int) -> list["TraceRequest"]:
    from services.twin.traces import read

    with path.open(encoding="utf-8-sig") as lines:
        requests = list(islice(read(lines, path.name), limit or None))
    if len(requests) < 2:
        raise CommandFailed(f"{path} has {len(requests)} requests; a run needs at least 2")
    return requests


def _pictures(done: "Report") -> list["Table | str"]:
    from services.cli.report_view import accelerator_name, seconds, table

    classes = table("Promises", "class", ">requests", ">kept", ">TTFT p50", ">p99", ">TPOT p50", ">p99")
    for name, each in done.by_class.items():
        classes.add_row(
            name,
            f"{each.requests:,}",
            f"{each.slo_attainment:.2%}",
            seconds(each.ttft_p50_s),
            seconds(each.ttft_p99_s),
            seconds(each.tpot_p50_s),
            seconds(each.tpot_p99_s),
        )
    pools = table("Accelerators", "accelerator", ">workers", ">requests", ">tokens", ">busy", ">energy")
    for key, pool in done.by_pool.items():
        pools.add_row(
            accelerator_name(key),
            str(pool.workers)
            if pool.mean_workers > pool.workers - 0.05
            else f"{pool.mean_workers:.1f} of {pool.workers}",
            f"{pool.requests:,}",
            f"{pool.tokens:,}",
            f"{pool.busy:.0%}",
            f"{pool.energy_j / 3.6e6:,.3f} kWh",
        )
    head = (
        f"[bold]{done.policy}[/], x{done.speed:g}: {done.finished:,} of {done.requests:,} requests finished,"
        f" {done.delivered_tokens:,} tokens in {done.span_s:,.0f} virtual s; promises kept {done.slo_attainment:.2%}"
    )
    tail = (
        f"[dim]fleet ${done.fleet_usd:,.4f} ({done.usd_per_mtok:,.3f} per million tokens, idle included) ·"
        f" {done.resumed} streams resumed · {done.tokens_per_cpu_s:,.0f} tokens per processor second[/]"
    )
    return [head, "", classes, "", pools, "", tail]


def _compared(compared: Sequence["Compared"]) -> "Table":
    from services.cli.report_view import table

    made = table(None, "policy", ">promises kept", ">worst class", ">$/M tokens", ">to the first")
    for each in compared:
        kept, worst, cost = (each.figures[name] for name in ("slo_attainment", "worst_attainment", "usd_per_mtok"))
        to_first = each.to_first["worst_attainment"]
        made.add_row(
            each.policy,
            f"{kept.mean:.2%} ± {kept.half:.2%}",
            f"{worst.mean:.2%} ± {worst.half:.2%}",
            f"{cost.mean:,.3f} ± {cost.half:,.3f}",
            f"{to_first.mean:+.2%} ± {to_first.half:.2%}",
        )
    return made
