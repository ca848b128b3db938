"""`tokenworks drain`: a worker takes no new work, ends or hands over what it has, reports it, and exits."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import JsonFlag
from services.cli.output import CommandFailed, command

if TYPE_CHECKING:
    from services.cli.access import Access
    from services.mesh.events import ControlAnswered


def drain(
    worker: Annotated[str, typer.Argument(help="The worker's id, as `tokenworks top` shows it.")],
    *,
    grace: Annotated[float, typer.Option(help="Seconds its streams may go on before others take them over.")] = 10.0,
    as_json: JsonFlag = False,
) -> None:
    """Drain a worker: no new requests, running streams finish or move, last events out, then it exits."""
    if not 0 <= grace <= 3600:
        raise typer.BadParameter(f"{grace:g} s; give 0 to 3600", param_hint="--grace")
    with command(as_json) as output:
        from services.cli.access import read_access

        answered = asyncio.run(_drain(read_access(), worker, round(grace * 1000)))
        if not answered.accepted:
            raise CommandFailed(f"worker {worker!r} refused: {answered.message}", reason="DrainRefused")
        output.result(
            {"worker": worker, "accepted": True, "message": answered.message},
            f"worker [bold]{worker}[/] drains: {answered.message}",
        )


async def _drain(access: "Access", worker: str, grace_ms: int) -> "ControlAnswered":
    from services.mesh.clock import SystemClock
    from services.mesh.events import Drain
    from services.mesh.nats.bus import NatsBus
    from services.mesh.settings import load_settings
    from services.mesh.telemetry import start_telemetry

    settings = load_settings()
    telemetry = start_telemetry("cli", "drain")
    bus = NatsBus(settings.nats.model_copy(update={"url": access.nats}), "cli", "drain", telemetry, SystemClock())
    try:
        await bus.connect()
        return await bus.request_control(worker, Drain(grace_ms=grace_ms), 5.0)
    finally:
        await bus.close()
        telemetry.shutdown()
