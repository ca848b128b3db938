"""Vendors' command-line tools: run one, and read what it prints. Past its deadline it is killed."""

import asyncio
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from services.worker.hardware.source import SourceUnavailable

_DEADLINE_S: Final = 5.0
_SHOWN_CHARACTERS: Final = 200  # of what a tool complains


def find_tool(name: str, *places: str) -> str:
    """The path of a tool, on PATH or in one of the directories that its vendor installs it to.

    Raises:
        SourceUnavailable: it is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path=":".join(places))
    if not found:
        raise SourceUnavailable(f"{name} is not installed")
    return found


async def output_of(path: str, *arguments: str, deadline_s: float = _DEADLINE_S) -> str:
    """What the tool prints on its standard output.

    Raises:
        SourceUnavailable: it cannot be started, fails, or takes longer than the deadline.
    """
    said = " ".join((Path(path).name, *arguments))
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise SourceUnavailable(f"`{said}` cannot be started: {error}") from error
    try:
        async with asyncio.timeout(deadline_s):
            out, complaints = await process.communicate()
    except TimeoutError:
        raise SourceUnavailable(f"`{said}` has not answered in {deadline_s:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        why = complaints.decode(errors="replace").strip()[-_SHOWN_CHARACTERS:]
        raise SourceUnavailable(f"`{said}` ended with status {process.returncode}: {why or 'it says nothing'}")
    return out.decode(errors="replace")


def parsed(text: str, said_by: str) -> Any:
    """The JSON in a tool's output. Raises SourceUnavailable: it is none."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise SourceUnavailable(f"{said_by} prints no JSON: {text[:_SHOWN_CHARACTERS]!r}") from error


def number(value: object) -> float | None:
    """A figure as tools print it, with or without a unit ("431 W"); None for "N/A" and the like."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    words = str(value).split()
    try:
        return float(words[0].rstrip("%")) if words else None
    except ValueError:
        return None
