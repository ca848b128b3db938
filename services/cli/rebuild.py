"""`tokenworks rebuild`: the meter's books made again from the streams alone, and held against the live ones."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from services.cli.options import JsonFlag
from services.cli.output import CommandFailed, command

_STORE: Final = "TOKENWORKS_METER_DATABASE_URL"


def rebuild(
    into: Annotated[Path, typer.Argument(help="The new SQLite file; must not exist yet.")],
    *,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Hold it against the live books.")] = True,
    raw: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="A folder of meter.raw_events_dir, for what the streams have let go of."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make the meter's database again from the event streams; exit status 1 when it differs from the live one."""
    with command(as_json) as output:
        from services.cli.access import read_access

        access = read_access()
        live = {_STORE: access.store} if access.store and _STORE not in os.environ else {}
        done = asyncio.run(rebuilt(access.nats, into, check=check, raw=raw, environment=live))
        found = done["differences"]
        under = f"{done['price_books']} price books and {done['budgets']} budgets"
        lines = [f"{done['booked']:,} of {done['events']:,} events are booked in [bold]{into}[/], under {under}"]
        if done["refused"] or done["lost"]:
            lines.append(f"[yellow]{done['refused']} reports could not be booked, {done['lost']} events never came[/]")
        if found is not None:
            lines.append(f"[bold red]{len(found)} differences[/]" if found else "[green]equal to the live books[/]")
            lines += found
        output.result(done, "\n".join(lines))
        if found:
            raise typer.Exit(1)


async def rebuilt(
    nats: str, into: Path, *, check: bool, raw: Path | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Runs the meter's own program, as any service is run; what it says.

    Args:
        nats: URL of the streams.
        into: the new SQLite file.
        raw: a folder of Parquet files that hold what the streams have let go of.
        environment: more of the meter's settings.

    Raises:
        CommandFailed: it could not be done; the message has its last word.
    """
    more = [*(["--check"] if check else []), *(["--raw", str(raw)] if raw is not None else [])]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.meter.rebuild", str(into), *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {}), "TOKENWORKS_NATS_URL": nats},
    )
    said, complaint = await process.communicate()
    if process.returncode not in (0, 1) or not said:
        lines = complaint.decode(errors="replace").strip().splitlines()
        raise CommandFailed(lines[-1] if lines else "the rebuild ended without a word", reason="RebuildFailed")
    result: dict[str, Any] = json.loads(said)
    return result
