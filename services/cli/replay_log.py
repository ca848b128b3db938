"""`tokenworks replay-log`: what the mesh has served, run again in virtual time under other policies or another fleet.

In: the streams of requests and tokens, as far back as they are kept. Out: what really happened, beside what would have:
dollars, joules, promises kept.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.options import JsonFlag
from services.cli.output import CommandFailed, command
from services.cli.simulate import PolicyNamesOption, engine_of

if TYPE_CHECKING:
    from rich.table import Table

    from services.mesh.accelerators import Catalogue
    from services.twin.recorded import Happened, Recording
    from services.twin.report import Report
    from services.twin.scenario import Fleet


def replay_log(
    *,
    model: Annotated[str, typer.Option(help="Only its requests; needed where several were served.")] = "",
    fleet: Annotated[str, typer.Option(help='Like "2 nvidia-h100-sxm"; empty: the workers that served.')] = "",
    policies: PolicyNamesOption = "tokenworks,least-requests",
    last_s: Annotated[float, typer.Option(min=1, help="Only the last so many seconds of what is recorded.")] = 86_400.0,
    speed: Annotated[float, typer.Option(min=0.001, max=10_000, help="2: as if twice as much had come.")] = 1.0,
    chunk_tokens: Annotated[int, typer.Option(min=16, help="Prompt tokens per engine step.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of chance in the policies.")] = 1,
    nats: Annotated[str, typer.Option(help="URL of the streams; empty: of the mesh on this machine.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Run again what the mesh has served, in virtual time: under other policies, on another fleet, at another load."""
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.accelerators import load_catalogue
        from services.mesh.settings import load_settings
        from services.twin.recorded import since
        from services.twin.report import report
        from services.twin.run import simulate
        from services.twin.scenario import Fleet, Scenario, classes_of

        recording = asyncio.run(read_log(read_access(nats=nats).nats, model))
        trace = since(recording.trace(), last_s)
        if len(trace) < 2:
            raise CommandFailed(f"{len(trace)} requests are recorded{f' of {model}' if model else ''}; send some first")
        models = sorted({each.model for each in trace})
        if len(models) > 1:
            raise CommandFailed(f"requests of {', '.join(models)} are recorded; choose one with --model")
        catalogue = load_catalogue()
        scenario = Scenario(
            fleet=Fleet.parse(fleet, catalogue) if fleet else _recorded_fleet(recording, catalogue),
            model=models[0],
            classes=classes_of(load_settings().slo.classes),
            engine=engine_of(chunk_tokens),
            speed=speed,
            seed=seed,
        )
        names = [each.strip() for each in policies.split(",") if each.strip()]
        reports = [report(simulate(scenario, catalogue, trace, name)) for name in names]
        happened = recording.happened()
        used_usd = _used_usd(happened.busy_s, catalogue)
        document: dict[str, Any] = {
            "recorded": {**asdict(happened), "used_usd": used_usd},
            "fleet": [name for name, _ in scenario.fleet.workers],
            "simulated": [each.document() for each in reports],
        }
        output.result(document, *_table(happened, used_usd, reports, catalogue))


async def read_log(nats: str, model: str) -> "Recording":
    """What the streams at `nats` hold of a model, or of all where it is empty."""
    from services.mesh.bus import Delivered
    from services.mesh.clock import SystemClock
    from services.mesh.nats.bus import NatsBus
    from services.mesh.settings import NatsSettings
    from services.mesh.subjects import ADMITTED, FINISHED, TOKENS
    from services.mesh.telemetry import start_telemetry
    from services.twin.recorded import Recording

    recording = Recording(model)

    async def note(messages: Sequence[Delivered]) -> None:
        for each in messages:
            recording.note(each.event)

    telemetry = start_telemetry("client", "replay-log")
    bus = NatsBus(NatsSettings(url=nats), "client", "replay-log", telemetry, SystemClock())
    await bus.connect()
    try:
        await bus.replay([ADMITTED, FINISHED], note, batch=2048)
        await bus.replay([TOKENS], note, batch=2048)
    finally:
        await bus.close()
        telemetry.shutdown()
    return recording


def _recorded_fleet(recording: "Recording", catalogue: "Catalogue") -> "Fleet":
    from services.twin.scenario import Fleet

    unknown = sorted({key for _, key in recording.fleet if catalogue.find(key) is None})
    if unknown or not recording.fleet:
        raise CommandFailed(f"{', '.join(unknown) or 'no accelerator'} is in the catalogue; name a --fleet")
    return Fleet(tuple((name, catalogue.accelerator(key)) for name, key in recording.fleet))


def _used_usd(busy_s: Mapping[str, float], catalogue: "Catalogue") -> float:
    """Dollars of the time that devices worked, at the catalogue's rates; idle time is not in it."""
    rates = {key: found.rate_nusd_per_hour / 1e9 for key in busy_s if (found := catalogue.find(key)) is not None}
    return sum(seconds / 3600 * rates.get(key, 0.0) for key, seconds in busy_s.items())


def _table(
    happened: "Happened", used_usd: float, reports: Sequence["Report"], catalogue: "Catalogue"
) -> "list[Table | str]":
    from services.cli.report_view import table

    made = table(None, "policy", ">requests", ">tokens", ">promises kept", ">$ used", ">$ with idle", ">kJ")
    made.add_row(
        "as it was",
        f"{happened.requests:,}",
        f"{happened.delivered_tokens:,}",
        f"{happened.slo_attainment:.2%}",
        f"{used_usd:.4f}",
        "",
        f"{happened.energy_j / 1000:,.1f}",
    )
    for each in reports:
        busy_s = {key: pool.busy_s for key, pool in each.by_pool.items()}
        made.add_row(
            each.policy,
            f"{each.finished:,}",
            f"{each.delivered_tokens:,}",
            f"{each.slo_attainment:.2%}",
            f"{_used_usd(busy_s, catalogue):.4f}",
            f"{each.fleet_usd:.4f}",
            f"{each.energy_j / 1000:,.1f}",
        )
    left = f"; {happened.left_out} more ended without an answer, and are left out" if happened.left_out else ""
    return [made, f"[dim]recorded over {happened.span_s:,.0f} s{left}; simulated energy has idle devices' too[/]"]
