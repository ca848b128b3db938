"""`tokenworks replay TRACE`: real arrivals through the live mesh, and what came of them."""

import asyncio
import signal
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli.options import (
    DirectOption,
    JsonFlag,
    KeyOption,
    MeterOption,
    RouterOption,
    TenantOption,
    TraceArgument,
)
from services.cli.output import CommandFailed, Output, command

if TYPE_CHECKING:
    from services.cli.access import Access
    from services.cli.casting import Arrival, Casting
    from services.cli.drive import Plan
    from services.cli.report import Document
    from services.twin.traces import TraceRequest

DEFAULT_MODEL: Final = "llama-3.1-8b"
DEFAULT_MIX: Final = {"interactive": 0.5, "standard": 0.3, "batch": 0.2}


def replay(
    trace: TraceArgument,
    *,
    speed: Annotated[float, typer.Option(min=0.001, max=10_000, help="4 plays it four times as fast.")] = 1.0,
    limit: Annotated[int, typer.Option(min=0, help="Only the first so many requests; 0: all.")] = 0,
    model: Annotated[str, typer.Option(help="For every request; else the trace's, else llama-3.1-8b.")] = "",
    seed: Annotated[int, typer.Option(help="Of what the trace leaves open.")] = 0,
    slo_mix: Annotated[
        str, typer.Option(help="Weights of SLO classes; default interactive=0.5,standard=0.3,batch=0.2.")
    ] = "",
    workload: Annotated[str, typer.Option(help="Label of the requests; default: replay/<name of the file>.")] = "",
    deadline_s: Annotated[float, typer.Option(min=1, help="Seconds that one stream may take.")] = 600.0,
    settle: Annotated[float, typer.Option(min=0, help="Seconds to wait for the meter after the last stream.")] = 30.0,
    direct: DirectOption = True,
    router: RouterOption = "",
    key: KeyOption = "",
    tenant: TenantOption = "",
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Play a trace's arrivals into the live mesh, in real time, and report what came of them.

    Reads Azure's CSV and Mooncake's JSON lines; prompts' words, tenants and classes are made up from the seed.
    Requests are sent when the trace says, whether or not earlier ones were answered. The meter must agree to the token.
    """
    with command(as_json) as output:
        import uvloop

        from services.cli.access import read_access
        from services.cli.casting import Casting
        from services.cli.drive import Plan, failed_because
        from services.cli.report_view import pictures
        from services.mesh.settings import load_settings

        settings = load_settings()
        access = read_access(settings, router=router, meter=meter)
        keys = _keys(access, key, tenant)
        casting = Casting(
            tenants=tuple(keys),
            slo_mix=_mix(slo_mix, tuple(settings.slo.classes)),
            workload=workload or f"replay/{trace.stem}",
            model=DEFAULT_MODEL,
            override_model=model,
            seed=seed,
        )
        total, span_s = _measure(trace, limit, keys)
        output.say(
            f"{total:,} requests of {trace.name} over {span_s / speed:,.0f} s (x{speed:g}), into {access.router}"
        )
        plan = Plan(
            arrivals=_arrivals(trace, limit, casting),
            total=total,
            keys=keys,
            slo=settings.slo,
            synthesised=lambda: casting.synthesised,
            speed=speed,
            seed=seed,
            deadline_s=deadline_s,
            direct=direct,
            settle_s=settle,
        )
        document = {"trace": trace.name, "speed": speed, "seed": seed} | uvloop.run(_drive(output, access, plan))
        output.result(document, *pictures(document))
        if reason := failed_because(document):
            raise CommandFailed(reason, reason="ReplayFailed") if not as_json else typer.Exit(1)


async def _drive(output: Output, access: "Access", plan: "Plan") -> "Document":
    """The first Ctrl-C sends nothing more and waits for what is open; a second one does what it always does."""
    from services.cli.drive import drive

    loop, interrupted = asyncio.get_running_loop(), asyncio.Event()

    def interrupt() -> None:
        interrupted.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    return await drive(output, access, plan, interrupted)


def read_trace(path: Path, limit: int) -> Iterator["TraceRequest"]:
    """The first `limit` requests of a file, all for 0. Raises TraceInvalid."""
    from services.twin.traces import read

    with path.open(encoding="utf-8", newline="") as lines:
        yield from islice(read(lines, path.name), limit or None)


def _arrivals(path: Path, limit: int, casting: "Casting") -> Iterator["Arrival"]:
    return (casting.cast(request, index) for index, request in enumerate(read_trace(path, limit)))


def _measure(path: Path, limit: int, keys: Mapping[str, str]) -> tuple[int, float]:
    """Requests, and the seconds they span: read once before anything is sent, so that a bad line sends nothing."""
    total, span_s = 0, 0.0
    for request in read_trace(path, limit):
        total, span_s = total + 1, request.arrival_s
        if request.tenant and request.tenant not in keys:
            raise CommandFailed(
                f"request {total} of {path.name} is tenant {request.tenant!r}'s, and there is no key for it (kept here:"
                f" {', '.join(sorted(keys))}); make one with `tokenworks keys create {request.tenant} --keep`",
                reason="NoKey",
            )
    if not total:
        raise CommandFailed(f"{path.name} has no requests", reason="TraceInvalid")
    return total, span_s


def _keys(access: "Access", key: str, tenant: str) -> dict[str, str]:
    if key or tenant:
        return {tenant or "local": access.key(key, tenant or "local")}
    return dict(access.keys) or {"local": access.key("", "local")}


def _mix(text: str, known: Sequence[str]) -> Mapping[str, float]:
    from services.cli.casting import parse_slo_mix

    if not text:
        return {name: DEFAULT_MIX[name] for name in known if name in DEFAULT_MIX} or dict.fromkeys(known, 1.0)
    try:
        return parse_slo_mix(text, known)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--slo-mix") from error
