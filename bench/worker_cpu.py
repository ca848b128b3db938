"""What a token costs the worker itself with vLLM in it, against what it costs vLLM's own OpenAI server.

    python -m bench.worker_cpu [--streams 16 64] [--tokens 128] [--rounds 10] [--out worker_cpu]

In: an environment with vLLM (`make test-engines` makes one with its CPU build) and this checkout. Both serve the same
tiny model with the same arguments, in the same run, one after the other and round by round; the worker is driven as a
router drives it, through one `Worker.Session`, the server as its clients do, by HTTP with server-sent events. Out: CPU
microseconds per token of the process that takes requests and gives tokens out (the engine's core and its kernels run in
processes of their own, which both have, and are told beside it), and `bench/results/<out>.json`. Exits 1 when a stream
was not whole.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc
import psutil
from rich.console import Console
from rich.table import Table

from bench.record import write
from services.cli.readiness import free_ports, probe
from services.mesh.nats.server import NatsServer
from services.mesh.rpc import MESH_SECRET
from tests.engines.tiny_model import CONTEXT_TOKENS, write_tiny_model
from tokenworks.v1 import inference_pb2 as wire

MODEL: Final = "tiny"
READY_S: Final = 300.0
ROUND_S: Final = 120.0
MOST_STREAMS: Final = 64
_KV_BYTES: Final = 64 << 20
_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

Drive = Callable[[int, int], Awaitable[None]]  # so many streams of so many tokens each, at once


@dataclass(frozen=True, slots=True)
class Used:
    """CPU seconds, user and system, of a server so far: the process that serves, and those below it."""

    serving_s: float
    engine_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """CPU microseconds per token."""

    serving_us: float
    engine_us: float


class NotWhole(Exception):
    """A stream did not get what it asked for."""


def used(server: psutil.Process) -> Used:
    engine_s = 0.0
    for child in server.children(recursive=True):
        times = child.cpu_times()
        engine_s += times.user + times.system
    own = server.cpu_times()
    return Used(own.user + own.system, engine_s)


@asynccontextmanager
async def process(
    arguments: Sequence[str], environment: dict[str, str], log: Path, ready: Callable[[], Awaitable[bool]]
) -> AsyncIterator[psutil.Process]:
    """A Python process, once it is ready; ended afterwards, with all its children."""
    with log.open("wb") as output:
        started = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    seen = psutil.Process(started.pid)
    try:
        async with asyncio.timeout(READY_S):
            while not await ready():
                if started.returncode is not None:
                    raise SystemExit(f"{' '.join(arguments)} ended:\n{_tail(log)}")
                await asyncio.sleep(0.2)
        yield seen
    finally:
        children = seen.children(recursive=True) if started.returncode is None else []
        if started.returncode is None:
            started.terminate()
            try:
                async with asyncio.timeout(20.0):
                    await started.wait()
            except TimeoutError:
                started.kill()
        await started.wait()
        for child in children:
            if child.is_running():
                child.kill()


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-4000:]


def environment_of(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENWORKS_", "OTEL_"))}
    return kept | _ENVIRONMENT | more


@asynccontextmanager
async def vllm_server(folder: Path) -> AsyncIterator[tuple[psutil.Process, Drive]]:
    """vLLM's OpenAI server, and how it is driven."""
    (port,) = free_ports("127.0.0.1", 1)
    arguments = [
        *("-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / MODEL), "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-num-seqs", str(MOST_STREAMS)),
        *("--kv-cache-memory-bytes", str(_KV_BYTES), "--disable-uvicorn-access-log"),
    ]

    async def ready() -> bool:
        return await probe(f"127.0.0.1:{port}", "/health") == "ready"

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(process(arguments, environment_of(), folder / "vllm.log", ready))
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector)
        )

        async def one(number: int, tokens: int) -> None:
            body = {"model": MODEL, "prompt": _prompt(number), "max_tokens": tokens, "stream": True}
            asked = body | {"ignore_eos": True, "temperature": 0.0, "stream_options": {"include_usage": True}}
            last: dict[str, Any] = {}
            async with session.post("/v1/completions", json=asked) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        last = json.loads(line[6:]) if b'"usage":{' in line.replace(b" ", b"") else last
            made = (last.get("usage") or {}).get("completion_tokens")
            if made != tokens:
                raise NotWhole(f"vLLM's server made {made} tokens of {tokens}")

        async def drive(streams: int, tokens: int) -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(streams):
                    group.create_task(one(next(_numbers), tokens))

        yield server, drive


@asynccontextmanager
async def worker(folder: Path) -> AsyncIterator[tuple[psutil.Process, Drive]]:
    """A worker with vLLM in it, and how it is driven: through one session, as a router does."""
    grpc_port, http_port = free_ports("127.0.0.1", 2)
    secret = secrets.token_urlsafe(16)
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(NatsServer(folder / "nats"))
        settings = {
            "TOKENWORKS_CONFIG": str(folder / "none.toml"),
            "TOKENWORKS_MESH_DATA_DIR": str(folder),
            "TOKENWORKS_MESH_SECRET": secret,
            "TOKENWORKS_NATS_URL": nats.url,
            "TOKENWORKS_WORKER_ACCELERATOR": "cpu-epyc-turin",
            "TOKENWORKS_WORKER_ENGINE": "vllm",
            "TOKENWORKS_WORKER_MODELS": json.dumps([MODEL]),
            "TOKENWORKS_WORKER_MAX_BATCH": str(MOST_STREAMS),
            "TOKENWORKS_WORKER_VLLM_MODEL": str(folder / MODEL),
            "TOKENWORKS_WORKER_VLLM_ARGUMENTS": json.dumps({"enforce_eager": True, "kv_cache_memory_bytes": _KV_BYTES}),
            "TOKENWORKS_WORKER_PORT": str(grpc_port),
            "TOKENWORKS_WORKER_HTTP_PORT": str(http_port),
        }

        async def ready() -> bool:
            return await probe(f"127.0.0.1:{http_port}") == "ready"

        command = ("-m", "services.worker")
        server = await stack.enter_async_context(
            process(command, environment_of(**settings), folder / "worker.log", ready)
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}"))
        method: Any = channel.stream_stream(
            "/tokenworks.v1.Worker/Session",
            request_serializer=wire.SessionRequest.SerializeToString,
            response_deserializer=wire.StepFrame.FromString,
        )
        call = method(metadata=((MESH_SECRET, secret), ("x-tokenworks-router", "bench")))
        await call.wait_for_connection()

        async def drive(streams: int, tokens: int) -> None:
            for _ in range(streams):
                await call.write(wire.SessionRequest(open=_open_stream(next(_numbers), tokens)))
            ended = made = 0
            while ended < streams:
                frame = await call.read()
                for chunk in frame.chunks:
                    made += chunk.token_count
                    ended += chunk.last
                    if chunk.HasField("error"):
                        raise NotWhole(f"the worker: {chunk.error.reason}: {chunk.error.message}")
            if made != streams * tokens:
                raise NotWhole(f"the worker made {made} tokens of {streams * tokens}")

        yield server, drive
        call.cancel()


_numbers = count(1)


def _prompt(number: int) -> str:
    return f"request {number}: what there is to say of it"


def _open_stream(number: int, tokens: int) -> wire.OpenStream:
    request = wire.GenerateRequest(
        request_id=f"bench-{number}",
        model=MODEL,
        text=_prompt(number),
        slo_class="standard",
        sampling=wire.Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True),
    )
    return wire.OpenStream(stream=number, tenant="bench", request=request)


async def measure(server: psutil.Process, drive: Drive, streams: int, tokens: int) -> Round:
    before = used(server)
    async with asyncio.timeout(ROUND_S):
        await drive(streams, tokens)
    await asyncio.sleep(0.2)  # what is reported after the last token is part of its cost
    after, made = used(server), streams * tokens
    return Round((after.serving_s - before.serving_s) * 1e6 / made, (after.engine_s - before.engine_s) * 1e6 / made)


async def run(folder: Path, counts: Sequence[int], tokens: int, rounds: int) -> list[dict[str, Any]]:
    write_tiny_model(folder / MODEL)
    rows = []
    async with AsyncExitStack() as stack:
        ours, ours_drive = await stack.enter_async_context(worker(folder))
        theirs, theirs_drive = await stack.enter_async_context(vllm_server(folder))
        for streams in counts:
            await measure(ours, ours_drive, streams, tokens)  # the first of a kind is slower
            await measure(theirs, theirs_drive, streams, tokens)
            measured: dict[str, list[Round]] = {"worker": [], "vllm_server": []}
            for _ in range(rounds):
                measured["worker"].append(await measure(ours, ours_drive, streams, tokens))
                measured["vllm_server"].append(await measure(theirs, theirs_drive, streams, tokens))
            rows.append(_row(streams, measured))
    return rows


def _row(streams: int, measured: dict[str, list[Round]]) -> dict[str, Any]:
    row: dict[str, Any] = {"streams": streams}
    for name, rounds in measured.items():
        row[name] = {
            # The kernel counts in hundredths of a second: their mean is finer than one round.
            "serving_us_per_token": round(statistics.fmean(each.serving_us for each in rounds), 1),
            "serving_us_per_round": [round(each.serving_us, 1) for each in rounds],
            "engine_us_per_token": round(statistics.fmean(each.engine_us for each in rounds), 1),
        }
    ours, theirs = row["worker"]["serving_us_per_token"], row["vllm_server"]["serving_us_per_token"]
    row["ratio"] = round(ours / theirs, 3)
    return row


def picture(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        "streams", "worker µs/token", "vLLM's server µs/token", "ratio", "engine core µs/token: worker, server"
    )
    for row in rows:
        ours, theirs = row["worker"], row["vllm_server"]
        table.add_row(
            str(row["streams"]),
            f"{ours['serving_us_per_token']:.0f}",
            f"{theirs['serving_us_per_token']:.0f}",
            f"{row['ratio']:.2f}",
            f"{ours['engine_us_per_token']:.0f}, {theirs['engine_us_per_token']:.0f}",
        )
    return table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--streams", type=int, nargs="+", default=[16, 64])
    arguments.add_argument("--tokens", type=int, default=128)
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--out", default="worker_cpu")
    chosen = arguments.parse_args()
    if max(chosen.streams) > MOST_STREAMS or chosen.tokens > CONTEXT_TOKENS // 2:
        arguments.error(f"at most {MOST_STREAMS} streams of {CONTEXT_TOKENS // 2} tokens")
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = asyncio.run(run(Path(folder), chosen.streams, chosen.tokens, chosen.rounds))
        except NotWhole as error:
            sys.exit(str(error))
    console = Console()
    console.print(picture(rows))
    path = write(
        chosen.out, {"model": "tiny Llama, 0.2 M parameters", "tokens_per_stream": chosen.tokens, "rows": rows}
    )
    console.print(f"[dim]{path}[/]")


if __name__ == "__main__":
    main()
