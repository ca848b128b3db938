"""`tokenworks up` as a newcomer runs it: real processes, a real bus, the bundled traffic in part."""

import asyncio
import json
import os
import signal
import sys

import pytest

pytestmark = pytest.mark.mesh

FLEET = [
    {"id": "h100-0", "accelerator": "nvidia-h100-sxm", "engine": "simulated"},
    {
        "id": "cpu-0",
        "accelerator": "cpu-epyc-turin",
        "models": ["smollm2-135m-instruct"],
        "engine": "simulated",
    },
]


async def start(tmp_path, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENWORKS", "OTEL"))}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.cli.main",
        "up",
        "--free-ports",
        *arguments,
        env=environment
        | {
            "TOKENWORKS_MESH_DATA_DIR": str(tmp_path / "data"),
            "TOKENWORKS_CONFIG": str(tmp_path / "none.toml"),
            "TOKENWORKS_FLEET_WORKERS": json.dumps(FLEET),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_mesh_starts_serves_agrees_with_its_meter_and_stops(tmp_path):
    program = await start(tmp_path, "--once", "--limit", "25", "--json")
    async with asyncio.timeout(100):
        out, err = await program.communicate()
    assert program.returncode == 0, err.decode()
    document = json.loads(out)
    report = document["report"]
    assert document["first_text"]["text"]
    assert (report["requests"]["finished"], report["requests"]["failed"]) == (25, 0)
    assert {row["accelerator"] for row in report["by_accelerator"]} == {"nvidia-h100-sxm", "cpu-epyc-turin"}
    assert report["meter"]["equal"] is True
    assert "Drained cleanly." in err.decode()


async def test_mesh_that_stays_up_drains_on_the_signal_and_exits_0(tmp_path):
    program = await start(tmp_path, "--no-replay")
    async with asyncio.timeout(100):
        async for line in program.stdout:
            if b"The mesh stays up" in line:
                break
        program.send_signal(signal.SIGINT)
        rest, _ = await program.communicate()
    assert program.returncode == 0
    assert b"Drained cleanly." in rest
