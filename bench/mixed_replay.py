"""One model under one name on unlike engines: vLLM on the CPU, a llama.cpp server, five simulated accelerators; 300
requests are replayed through their mesh. Is every request answered, does the meter agree, what did each accelerator
cost?

    python -m bench.mixed_replay [--requests 300] [--out mixed_replay]

In: an environment with vLLM (`make test-engines` makes one with its CPU build) and this checkout; the models are tiny
and made here, the mesh is started and stopped here, on free ports, in a folder of its own. Out: a table, and
`bench/results/<out>.json`. Exits 1 when a request failed, the meter differs, or an engine served nothing.

The engines' tokenizers are unlike: prompts go as text, and answers that are broken off go on from their text.
"""

import argparse
import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.record import write
from services.cli.access import FILE_NAME, Access
from services.cli.readiness import probe
from tests.contract.tiny_gguf import write_tiny_gguf
from tests.engines.tiny_model import write_tiny_model

MODEL: Final = "tiny"
SIMULATED: Final = ("nvidia-h100-sxm", "nvidia-l4", "amd-mi300x", "intel-gaudi3", "google-tpu-v6e")
READY_S: Final = 300.0
REPLAY_S: Final = 300.0
STOP_S: Final = 60.0
# Half of this machine each: an accelerator has one row in the books, and the two engines are to be told apart. They are
# the cheapest, and soon busy: what would be late there goes to the others.
_CPUS: Final = ("cpu-vllm", "cpu-llamacpp")
_CPU: Final = {
    "vendor": "this machine",
    "name": "its processor",
    "memory_gb": 8,
    "bandwidth_tb_s": 0.02,
    "bf16_tflops": 1.0,
    "tdp_w": 60,
    "rate_usd_per_hour": "0.05",
    "cpu": True,
}
# On a machine that others slow, a few are told early that they would be late, and when to come back: no failure.
_REFUSED_PART: Final = 0.25
_SHAPE: Final = {
    "parameters": 200_000,
    "layers": 2,
    "hidden": 64,
    "kv_heads": 2,
    "head_dim": 32,
    "weight_bytes_per_parameter": 4,
    "kv_bytes_per_value": 4,
    "context_tokens": 1024,
}


def write_trace(path: Path, requests: int) -> None:
    """`requests` short ones, the same every time, at about 60 per second."""
    drawn, at_s = Random(3), 0.0
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("arrival_s", "prompt_tokens", "completion_tokens"))
        for _ in range(requests):
            at_s += drawn.expovariate(60.0)
            rows.writerow((f"{at_s:.3f}", drawn.randint(10, 60), drawn.randint(8, 64)))


def settings_of(folder: Path, llamacpp_url: str) -> dict[str, Any]:
    """The `tokenworks.toml` of the mesh, as tables."""
    simulated = [
        {
            "id": f"sim-{index}",
            "accelerator": accelerator,
            "models": [MODEL],
            "engine": "simulated",
        }
        for index, accelerator in enumerate(SIMULATED)
    ]
    real = [
        {
            "id": "vllm-0",
            "accelerator": "cpu-vllm",
            "models": [MODEL],
            "engine": "vllm",
            "worker": {
                "vllm_model": str(folder / "tiny"),
                "vllm_arguments": {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20},
                "max_batch": 16,
            },
        },
        {
            "id": "llamacpp-0",
            "accelerator": "cpu-llamacpp",
            "models": [MODEL],
            "engine": "openai",
            "worker": {"openai_url": llamacpp_url, "max_batch": 8},
        },
    ]
    return {
        "mesh": {"data_dir": str(folder / "data")},
        "fleet": {"workers": [*real, *simulated]},
        "catalogue": {"models": {MODEL: _SHAPE}, "accelerators": dict.fromkeys(_CPUS, _CPU)},
    }


@asynccontextmanager
async def llamacpp_server(path: Path) -> AsyncIterator[str]:
    """llama.cpp's HTTP server with the model at `path`; its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.contract.llamacpp_http",
        str(path),
        "8",
        "1024",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            address = (await process.stdout.readline()).decode().strip()
        if not address:
            raise SystemExit("llama.cpp's server did not start")
        yield address
    finally:
        process.stdin.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def mesh(environment: dict[str, str], folder: Path) -> AsyncIterator[None]:
    """`tokenworks up`, once it says that the mesh stands; drained at the end."""
    log = folder / "up.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli.main", "up", "--no-replay", "--free-ports"),
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        async with asyncio.timeout(READY_S):
            while not await _stands(folder / "data" / FILE_NAME):
                if process.returncode is not None:
                    raise SystemExit(f"the mesh did not start:\n{log.read_text()[-4000:]}")
                await asyncio.sleep(0.5)
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
        await process.wait()


async def _stands(file: Path) -> bool:
    """Whether all services of the mesh that keeps its addresses in `file` are ready."""
    addresses = _addresses(file)
    return bool(addresses) and all([await probe(address) == "ready" for address in addresses])


def _addresses(file: Path) -> tuple[str, ...]:
    """Where each service says whether it is ready; none while the file is not there."""
    if not file.exists():
        return ()
    return tuple(Access(**tomllib.loads(file.read_text(encoding="utf-8"))).http.values())


async def replay(
    environment: dict[str, str], trace: Path, *, model: str = MODEL, slo_mix: str = "standard=1"
) -> dict[str, Any]:
    """The document of `tokenworks replay`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main", "replay", str(trace), "--model", model, "--json"),
        *("--slo-mix", slo_mix),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    async with asyncio.timeout(REPLAY_S):
        out, _ = await process.communicate()
    document: dict[str, Any] = json.loads(out)
    return document


async def run(folder: Path, requests: int) -> dict[str, Any]:
    """The replay's document, of a mesh that is started in `folder` and stopped."""
    write_tiny_model(folder / "tiny")
    write_tiny_gguf(folder / "tiny.gguf")
    write_trace(folder / "trace.csv", requests)
    async with llamacpp_server(folder / "tiny.gguf") as url:
        config = folder / "tokenworks.toml"
        config.write_text(toml(settings_of(folder, url)), encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENWORKS_")}
        environment = kept | {
            "TOKENWORKS_CONFIG": str(config),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        async with mesh(environment, folder):
            return await replay(environment, folder / "trace.csv")


def toml(tables: dict[str, Any]) -> str:
    """TOML of nested tables: each value in JSON's form, which TOML shares, but for tables."""

    def value(of: Any) -> str:
        if isinstance(of, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {value(each)}" for key, each in of.items()) + "}"
        if isinstance(of, list):
            return "[" + ", ".join(value(each) for each in of) + "]"
        return json.dumps(of)

    return "".join(
        f"[{name}]\n" + "".join(f"{json.dumps(key)} = {value(each)}\n" for key, each in table.items())
        for name, table in tables.items()
    )


def failures(document: dict[str, Any]) -> list[str]:
    """What of the run is not as it should be, in words."""
    served = {row["accelerator"] for row in document["by_accelerator"] if row["completion_tokens"]}
    idle = sorted({*SIMULATED, *_CPUS} - served)
    requests, meter = document["requests"], document["meter"]
    wrong = [f"{requests['failed']} requests failed"] if requests["failed"] else []
    if requests["refused"] > _REFUSED_PART * requests["sent"]:
        wrong.append(f"{requests['refused']} of {requests['sent']} requests were refused")
    wrong += [] if meter and meter["equal"] else ["the meter differs from the clients"]
    wrong += [f"{', '.join(idle)} served nothing"] if idle else []
    return wrong


def picture(document: dict[str, Any]) -> Table:
    table = Table("accelerator", *_COLUMNS)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in document["by_accelerator"]:
        table.add_row(
            row["accelerator"],
            f"{row['requests']:,}",
            f"{row['completion_tokens']:,}",
            f"{row['device_s']:.2f}",
            f"{row['energy_j']:,.0f}",
            f"{(row['use_cost_nusd'] + row['energy_cost_nusd']) / 1e9:.6f}",
            f"{row['cost_usd_per_mtok']:.3f}",
        )
    return table


_SUMMARY: Final = "{finished} requests finished, {refused} were refused early, 0 failed, the meter agrees"
_COLUMNS: Final = ("requests", "tokens", "device s", "energy J", "cost $", "cost $/Mtok")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--requests", type=int, default=300)
    arguments.add_argument("--out", default="mixed_replay")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        document = asyncio.run(run(Path(folder), chosen.requests))
    console = Console()
    console.print(picture(document))
    wrong = failures(document)
    document.pop("trace", None)
    console.print("; ".join(wrong) or _SUMMARY.format(**document["requests"]))
    path = write(chosen.out, document)
    console.print(f"[dim]{path}[/]")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
