"""A thousand streams at once through one router of a real mesh on this machine: are all of them whole, does the meter
agree to the token, and what does a token cost each process in CPU time.

    python -m bench.streams [--streams 1000] [--tokens 64] [--out streams]

In: nothing but this checkout; the mesh is started and stopped here, on free ports, in a folder of its own. Out: a
table, and `bench/results/<out>.json`. Exits 1 when a stream failed, had a gap, or the meter differs. The clients run in
this process, on the same cores; their CPU time is listed as `client`.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from bench.record import write
from services.cli.access import FILE_NAME, Access
from services.cli.peers import Peers
from services.cli.readiness import probe
from tokenworks import CallError, Client
from tokenworks.v1 import metering_pb2 as metering

MODEL: Final = "llama-3.1-8b"
WORKLOAD: Final = "bench/streams"
WARM_UP: Final = 50
READY_S: Final = 90.0
STOP_S: Final = 60.0
SETTLE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Streamed:
    """One stream as its client saw it; `failure` is empty when it is whole. Times are in seconds from its start."""

    tokens: int
    price_nusd: int
    ttft_s: float
    e2e_s: float
    failure: str = ""


@contextmanager
def local_mesh(folder: Path) -> Iterator[tuple[Access, psutil.Process]]:
    """A mesh of processes in `folder`; its access, and the process whose children it is."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENWORKS_", "OTEL_"))}
    environment |= {"TOKENWORKS_MESH_DATA_DIR": str(folder), "TOKENWORKS_CONFIG": str(folder / "none.toml")}
    command = [sys.executable, "-m", "services.cli.main", "up", "--no-replay", "--free-ports"]
    log = folder / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield _ready(folder / FILE_NAME, process), psutil.Process(process.pid)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            status = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status != 0:
            print(f"the mesh ended with status {status}:\n{log.read_text()[-2000:]}", file=sys.stderr)


def _ready(file: Path, process: subprocess.Popen[bytes]) -> Access:
    ends_s = time.monotonic() + READY_S
    while time.monotonic() < ends_s and process.poll() is None:
        if file.exists():
            access = Access(**tomllib.loads(file.read_text(encoding="utf-8")))
            if all(asyncio.run(probe(address)) == "ready" for address in access.http.values()):
                return access
        time.sleep(0.2)
    raise SystemExit(f"the mesh was not ready within {READY_S:g} s; see {file.parent}")


async def stream(client: Client, number: int, tokens: int) -> Streamed:
    started_s, first_s, count = time.perf_counter(), 0.0, 0
    generation = client.generate(
        text=f"stream {number}", model=MODEL, max_tokens=tokens, ignore_eos=True, workload=WORKLOAD
    )
    try:
        async with generation:
            async for piece in generation:  # fails by itself on a gap or a repeat
                first_s = first_s or time.perf_counter() - started_s
                count += piece.token_count
    except CallError as error:
        return Streamed(count, 0, first_s, 0.0, str(error))
    result = generation.result
    assert result is not None
    failure = "" if count == result.completion_tokens == tokens else f"{count} tokens of {tokens}"
    return Streamed(count, result.price_nusd, first_s, time.perf_counter() - started_s, failure)


def cpu_s_by_kind(mesh: psutil.Process) -> Counter[str]:
    """CPU seconds so far, user and system, by kind of process; this process is `client`."""
    found: Counter[str] = Counter()
    for process in (mesh, *mesh.children(recursive=True), psutil.Process()):
        times = process.cpu_times()
        found[_kind(process, mesh)] += times.user + times.system
    return found


def memory_mb_by_kind(mesh: psutil.Process) -> Counter[str]:
    """Resident memory, MB, by kind of process."""
    found: Counter[str] = Counter()
    for process in (mesh, *mesh.children(recursive=True), psutil.Process()):
        found[_kind(process, mesh)] += process.memory_info().rss / 1e6
    return found


def _kind(process: psutil.Process, mesh: psutil.Process) -> str:
    if process.pid == os.getpid():
        return "client"
    if process == mesh:
        return "supervisor"
    services = [each.partition(".")[2] for each in process.cmdline() if each.startswith("services.")]
    named = [each for each in services if not each.startswith("cli")]
    return named[-1] if named else process.name()


async def measure(access: Access, mesh: psutil.Process, streams: int, tokens: int) -> dict[str, Any]:
    # Relayed: it is the router that is measured.
    client = Client(access.router, access.keys["local"], direct=False, max_attempts=1)
    async with client, Peers(access) as peers:
        await client.connected()
        warm = await asyncio.gather(*[stream(client, -number, tokens) for number in range(1, WARM_UP + 1)])
        await _settled(peers, warm)
        before, started_s = cpu_s_by_kind(mesh), time.perf_counter()
        results = await asyncio.gather(*[stream(client, number, tokens) for number in range(streams)])
        streamed_s = time.perf_counter() - started_s
        total = await _settled(peers, (*warm, *results))
        after = cpu_s_by_kind(mesh)
    made = sum(each.tokens for each in results)
    clients_tokens = made + sum(each.tokens for each in warm)
    clients_nusd = sum(each.price_nusd for each in (*warm, *results))
    failures = Counter(each.failure for each in (*warm, *results) if each.failure)
    ttfts_s = np.array([each.ttft_s for each in results if each.ttft_s])
    return {
        "streams": streams,
        "tokens_per_stream": tokens,
        "tokens": made,
        "failed_streams": failures.total(),
        "failures": dict(failures.most_common(5)),
        "clients_tokens": clients_tokens,
        "meter_tokens": total.delivered_tokens,
        "clients_nusd": clients_nusd,
        "meter_nusd": total.price_nusd,
        "equal": (clients_tokens, clients_nusd) == (total.delivered_tokens, total.price_nusd),
        "streamed_s": round(streamed_s, 3),
        "tokens_per_s": round(made / streamed_s),
        "ttft_p50_s": round(float(np.percentile(ttfts_s, 50)), 4),
        "ttft_p99_s": round(float(np.percentile(ttfts_s, 99)), 4),
        "cpu_us_per_token": {kind: round((after[kind] - before[kind]) / made * 1e6, 1) for kind in sorted(after)},
        "memory_mb": {kind: round(size) for kind, size in sorted(memory_mb_by_kind(mesh).items())},
    }


async def _settled(peers: Peers, results: Sequence[Streamed]) -> metering.UsageRow:
    """The meter's total of this benchmark, once it has every request's end; as it stands when the time is over."""
    ours = metering.GetUsageRequest(filters=[metering.UsageFilter(field="workload", values=[WORKLOAD])])
    delivered = sum(each.tokens for each in results)
    ends_s = time.monotonic() + SETTLE_S
    while True:
        answer = await peers.usage(ours)
        booked = answer.total.finished_requests >= len(results) and answer.total.delivered_tokens >= delivered
        if (booked and answer.lag_events == 0) or time.monotonic() > ends_s:
            return answer.total
        await asyncio.sleep(0.1)


def show(figures: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"{figures['streams']:,} streams at once, {figures['tokens']:,} tokens in {figures['streamed_s']:.1f} s"
        f" ({figures['tokens_per_s']:,} tokens/s), {figures['failed_streams']} failed;"
        f" TTFT p50 {figures['ttft_p50_s']:.2f} s, p99 {figures['ttft_p99_s']:.2f} s"
    )
    console.print(
        f"clients received {figures['clients_tokens']:,} tokens, the meter booked {figures['meter_tokens']:,}:"
        f" {'equal' if figures['equal'] else 'DIFFERENT'}"
    )
    table = Table("process", "CPU µs per token", "resident MB")
    for kind, cpu_us in figures["cpu_us_per_token"].items():
        table.add_row(kind, f"{cpu_us:.1f}", f"{figures['memory_mb'].get(kind, 0):,}")
    console.print(table)
    for failure, count in figures["failures"].items():
        console.print(f"[red]{count} streams: {failure}[/]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", default="streams", help="name of the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tw-bench-") as folder, local_mesh(Path(folder)) as (access, mesh):
        figures = uvloop.run(measure(access, mesh, options.streams, options.tokens))
    show(figures)
    print(f"written to {write(options.out, figures)}")
    if figures["failed_streams"] or not figures["equal"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
