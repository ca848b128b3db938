"""`tokenworks chaos` as a user runs it, in a process of its own; its JSON report is what tests look at."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

Document = dict[str, Any]
Chaos = Callable[..., Awaitable[Document]]


@pytest.fixture
def chaos(tmp_path: Path, record_property: Callable[[str, object], None]) -> Chaos:
    """Runs it with these arguments; the report. Fails with what it said where it kept no promise, or did not run."""

    async def run(*arguments: str) -> Document:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENWORKS", "OTEL"))}
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli.main", "chaos", "--json", "--keep", str(tmp_path / "mesh")),
            *arguments,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await program.communicate()
        finally:
            if program.returncode is None:
                program.terminate()
                await program.wait()
        assert program.returncode == 0, f"{out.decode()}\n{err.decode()}"
        document: Document = json.loads(out)
        print(document["line"])  # with -s, or where it fails
        record_property("chaos", document["line"])
        record_property("longest_pause_s", document["longest_pause_s"])
        return document

    return run
