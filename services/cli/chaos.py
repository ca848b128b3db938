"""`tokenworks chaos`: a mesh under load is broken on purpose, on a seeded schedule, and held to its promises."""

import asyncio
import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli.options import JsonFlag, KeyOption, MeterOption, NatsOption, RouterOption, TenantOption
from services.cli.output import CommandFailed, Output, command

if TYPE_CHECKING:
    from services.chaos.cables import Cable, CableUnavailable
    from services.chaos.core.faults import FaultKind
    from services.chaos.ground import Ground
    from services.chaos.report import Report
    from services.chaos.run import Plan
    from services.cli.access import Access
    from services.cli.chaos_mesh import Size
    from services.cli.data_dir import DataDir

_OWN = "The mesh that it starts"
_ATTACHED = "A mesh that runs already"
_LISTEN_S: Final = 1.2  # several heartbeats


def chaos(
    *,
    faults: Annotated[int, typer.Option(min=0, help="How many things are broken.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the schedule: the same one gives the same faults.")] = 1,
    streams: Annotated[int, typer.Option(min=1, help="Streams that run at once.")] = 12,
    every: Annotated[float, typer.Option(min=0.1, help="Mean seconds from one fault to the next.")] = 1.5,
    only: Annotated[
        list[str] | None, typer.Option(help="KIND, or KIND:NAME, e.g. kill, kill:worker-0; several times. Else all.")
    ] = None,
    in_turn: Annotated[
        str, typer.Option(help="This KIND to each target once, instead of a drawn schedule, e.g. kill.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Write the JSON report here as well.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before breaking a running mesh.")] = False,
    budget: Annotated[
        int, typer.Option(min=0, help="Requests that one tenant can pay for; 0: it is not there.", rich_help_panel=_OWN)
    ] = 8,
    routers: Annotated[int, typer.Option(min=1, max=8, rich_help_panel=_OWN)] = 2,
    workers: Annotated[int, typer.Option(min=2, max=32, rich_help_panel=_OWN)] = 3,
    speed: Annotated[
        float,
        typer.Option(min=0.01, max=100, help="Of its engines; slow ones cost this machine less.", rich_help_panel=_OWN),
    ] = 0.3,
    nats_nodes: Annotated[int, typer.Option(help="1, or 3 or 5 as a cluster.", rich_help_panel=_OWN)] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(help="Its data and logs go here and stay; else they stay on a violation.", rich_help_panel=_OWN),
    ] = None,
    attach: Annotated[
        bool, typer.Option("--attach", help="Break a mesh that runs: a staging one.", rich_help_panel=_ATTACHED)
    ] = False,
    pid: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PID or NAME=@FILE: a process that may be killed.", rich_help_panel=_ATTACHED),
    ] = None,
    model: Annotated[str, typer.Option(help="What its streams ask for.", rich_help_panel=_ATTACHED)] = "llama-3.1-8b",
    router: RouterOption = "",
    meter: MeterOption = "",
    nats: NatsOption = "",
    key: KeyOption = "",
    tenant: TenantOption = "local",
    as_json: JsonFlag = False,
) -> None:
    """Break a mesh on purpose while streams run, mend it, and check that nothing was lost; exit status 1 if it was.

    By itself it starts a mesh of simulated workers for that, in a directory of its own. With --attach it breaks the
    mesh that the settings name; nobody else should use that meanwhile, and its workers have to be simulated ones, whose
    answers can be foretold.
    """
    with command(as_json) as output:
        from services.chaos.core.faults import FaultKind
        from services.chaos.run import Plan
        from services.cli.access import read_access
        from services.cli.chaos_mesh import Size
        from services.mesh.settings import load_settings

        if in_turn and in_turn not in set(FaultKind):
            raise typer.BadParameter(f"{in_turn!r} is none of {', '.join(FaultKind)}", param_hint="--in-turn")
        if nats_nodes not in (1, 3, 5):
            raise typer.BadParameter(f"{nats_nodes} is none of 1, 3, 5", param_hint="--nats-nodes")
        size = Size(routers=routers, workers=workers, nats_nodes=nats_nodes, speed=speed)
        turn = FaultKind(in_turn) if in_turn else None
        plan = Plan(
            seed=seed,
            faults=faults,
            every_s=every,
            streams=streams,
            only=tuple(only or ()),
            in_turn=turn,
            budget_requests=budget,
            tenant=tenant,
            command=_again(
                faults=faults,
                seed=seed,
                streams=streams,
                every=every,
                only=only or [],
                in_turn=turn,
                budget=budget,
                size=None if attach else size,
            ),
        )
        if attach:
            access = read_access(load_settings(), router=router, meter=meter, nats=nats)
            running = _break_running(output, plan, access, named=pid or [], model=model, yes=yes, key=key)
            report = asyncio.run(running)
        else:
            report = _break_own(output, plan, size, keep)
        if out is not None:
            out.write_text(json.dumps(report.document(), indent=1) + "\n", encoding="utf-8")
        output.result(report.document(), *report.lines())
        if report.violations:
            raise typer.Exit(1)


def _again(
    *,
    faults: int,
    seed: int,
    streams: int,
    every: float,
    only: list[str],
    in_turn: "FaultKind | None",
    budget: int,
    size: "Size | None",
) -> str:
    words = ["tokenworks chaos", f"--faults {faults} --seed {seed} --streams {streams} --every {every:g}"]
    words += [f"--only {each}" for each in only]
    words += [f"--in-turn {in_turn}"] if in_turn else []
    if size is None:
        return " ".join([*words, "--attach"])
    words.append(f"--budget {budget} --routers {size.routers} --workers {size.workers}")
    return " ".join([*words, f"--nats-nodes {size.nats_nodes} --speed {size.speed:g}"])


def _break_own(output: Output, plan: "Plan", size: "Size", keep: Path | None) -> "Report":
    from services.cli.data_dir import DataDir

    # Nothing of this machine's settings reaches the mesh: it must not write into books that count.
    for name in [name for name in os.environ if name.startswith("TOKENWORKS_")]:
        del os.environ[name]
    path = keep or Path(tempfile.mkdtemp(prefix="tokenworks-chaos-"))
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise CommandFailed(f"{keep} is not empty; the mesh begins its books anew, give another directory")
    os.environ["TOKENWORKS_CONFIG"] = str(path / "none.toml")
    data_dir = DataDir(path)
    with data_dir.locked():
        report = asyncio.run(_run_own(output, plan, size, data_dir))
    if keep is None and not report.violations:
        shutil.rmtree(path)
    else:
        output.say(f"Its data and the services' logs are in {path}")
    return report


async def _run_own(output: Output, plan: "Plan", size: "Size", data_dir: "DataDir") -> "Report":
    from services.chaos.cables import CableUnavailable, laid

    with ExitStack() as stack:
        cable: Cable | CableUnavailable
        try:
            cable = stack.enter_context(laid())
        except CableUnavailable as reason:
            cable = reason
        return await _run_with(output, plan, size, data_dir, cable)


async def _run_with(
    output: Output, plan: "Plan", size: "Size", data_dir: "DataDir", cable: "Cable | CableUnavailable"
) -> "Report":
    from dataclasses import replace

    from services.chaos.run import run
    from services.cli.chaos_books import MeterBooks
    from services.cli.chaos_mesh import CAPPED, TENANT, OwnMesh
    from services.cli.peers import Peers
    from services.mesh.clock import SystemClock

    mesh = OwnMesh(size, data_dir, lambda words: output.say(f"[dim]{words}[/]"), cable)
    _say_what_may_happen(output, mesh)
    output.say(f"Starting a mesh in {data_dir.path}")
    database = {"TOKENWORKS_MESH_DATA_DIR": str(data_dir.path)}
    async with mesh, Peers(mesh.access) as peers:
        return await run(
            mesh,
            MeterBooks(peers, mesh.nats, database),
            replace(plan, tenant=TENANT, capped=CAPPED if plan.budget_requests else ""),
            nats=mesh.settings.nats,
            clock=SystemClock(),
            say=output.say,
        )


async def _break_running(
    output: Output, plan: "Plan", access: "Access", *, named: list[str], model: str, yes: bool, key: str
) -> "Report":
    from services.chaos.beats import Beats
    from services.chaos.run import run
    from services.cli.chaos_books import MeterBooks
    from services.cli.chaos_staging import Pids, attached
    from services.cli.peers import Peers
    from services.mesh.clock import SystemClock
    from services.mesh.settings import load_settings

    settings, clock = load_settings(), SystemClock()
    keys = {plan.tenant: access.key(key, plan.tenant)}
    async with Beats(settings.nats, access.nats, clock) as beats, Peers(access) as peers:
        await asyncio.sleep(_LISTEN_S)
        mesh = await attached(access, beats, keys=keys, model=model, pids=Pids(named))
        _say_what_may_happen(output, mesh)
        if not yes and not typer.confirm("Do that to this mesh?", err=True):
            raise CommandFailed("nothing was broken", reason="NotConfirmed")
        books = MeterBooks(peers, access.nats, None)
        return await run(mesh, books, plan, nats=settings.nats, clock=clock, say=output.say)


def _say_what_may_happen(output: Output, ground: "Ground") -> None:
    output.say("What may be done, until all is mended again:")
    for target in ground.targets:
        output.say(f"  {target.role} {target.name}: {', '.join(target.kinds)}")
    for words in ground.skipped:
        output.say(f"  [dim]not here: {words}[/]")
