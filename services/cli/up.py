"""`tokenworks up`: a whole mesh on this machine, shown at work, until Ctrl-C."""

import asyncio
import time
from enum import StrEnum
from typing import Annotated

import typer

from services.cli.options import JsonFlag
from services.cli.output import command


class Traces(StrEnum):
    PHOENIX = "phoenix"


def up(
    *,
    once: Annotated[bool, typer.Option("--once", help="Start, show, stop, and exit.")] = False,
    replay: Annotated[bool, typer.Option("--replay/--no-replay", help="Replay the bundled traffic.")] = True,
    limit: Annotated[int, typer.Option(min=0, help="Only so many requests of the bundled traffic; 0: all.")] = 0,
    traces: Annotated[Traces | None, typer.Option(help="Open a trace explorer on the mesh.")] = None,
    engine: Annotated[str, typer.Option(help="What the CPU worker runs its model with.")] = "",
    model: Annotated[
        str, typer.Option(help="What it serves: a name, a directory, a GGUF file. Simulated pools serve it as well.")
    ] = "",
    url: Annotated[str, typer.Option(help="Of the server, with --engine openai.")] = "",
    shape: Annotated[
        str, typer.Option(help="What simulated pools take the model for: a catalogue name, a directory, a GGUF file.")
    ] = "",
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Take free ports instead of the usual ones.")
    ] = False,
    nats_nodes: Annotated[int, typer.Option(help="NATS servers: 1, 3 or 5, a cluster where several.")] = 0,
    meters: Annotated[int, typer.Option(help="Meters that share tenants out; several need --store.")] = 0,
    store: Annotated[str, typer.Option(help="Where the books are kept: postgresql://user:password@host/name.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Start a mesh on this machine: bus, router, meter, optimizer and a worker per accelerator; Ctrl-C drains it.

    The first text comes from a real small model on the CPU; then a bundled trace is replayed through the live mesh and
    what was made is reported. With --once the mesh then stops; the exit status is 1 if a request failed, an accelerator
    served nothing, or the meter does not agree with the clients.
    """
    started_s = time.monotonic()
    with command(as_json) as output:
        from services.cli.data_dir import DataDir
        from services.cli.layout import with_meters
        from services.cli.real_model import real_model
        from services.cli.up_run import UpRun, prepare
        from services.mesh.settings import ENGINES, NatsSettings, load_settings

        if engine and engine not in ENGINES:
            raise typer.BadParameter(f"{engine!r} is none of {', '.join(ENGINES)}", param_hint="--engine")
        settings = load_settings()
        if nats_nodes:
            nodes = NatsSettings.model_validate(settings.nats.model_dump() | {"nodes": nats_nodes})
            settings = settings.model_copy(update={"nats": nodes})
        settings = with_meters(settings, meters, store)
        real = real_model(engine=engine, model=model, url=url, shape=shape)
        if real.note:
            output.say(f"[yellow]{real.note}[/]")
        data_dir = DataDir(settings.mesh.data_dir)
        with data_dir.locked():
            prepared = prepare(
                settings,
                data_dir,
                real=real,
                explorer=traces is Traces.PHOENIX,
                all_free=free_ports,
            )
            status = asyncio.run(UpRun(output, prepared, started_s).run(once=once, replay=replay, limit=limit))
        if status:
            raise typer.Exit(status)
