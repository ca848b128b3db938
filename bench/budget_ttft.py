"""What budgets add to a first token, and to the tokens after it: the same requests with none, and under six at once.

    python -m bench.budget_ttft [--requests 1200] [--rounds 24] [--tokens 32] [--long-tokens 512] [--out budget_ttft]

In: nothing but this checkout; a real mesh of simulated accelerators is started and stopped here. Out: a table, and
`bench/results/<out>.json`. Rounds with and without budgets take turns, so that what else runs on the machine falls on
both alike, and the added TTFT is told with its interval over pairs of neighbouring rounds; relayed and direct requests
are measured apart. One request runs at a time: it is the path that is timed.

CPU time stands beside it, by kind of process: per request, and per token as what answers of `long-tokens`, which are
paid for in several slices, take more than short ones. What the mesh takes while it idles is measured first, and taken
off by the second; on a machine that does other things that is not enough, so the path alone is timed as well, see
`bench.budget_path`.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from bench import budget_path
from bench.record import write
from bench.streams import Streamed, cpu_s_by_kind, local_mesh, stream
from services.cli.access import Access
from services.cli.peers import Peers
from tokenworks import Client
from tokenworks.v1 import metering_pb2 as metering

_TENANT: Final = "local"
_WARM_UP: Final = 10
_MANY: Final = 10**15
_FEWER_LONG: Final = 4
_IDLE_S: Final = 5.0
_KINDS: Final = ("router", "worker", "meter", "nats-server")
_PERIODS: Final = ("once", "minute", "hour", "day", "month")


def _budgets(*, lift: bool) -> list[metering.SetBudgetRequest]:
    """The tenant's dollars in five windows, and its tokens in one; none is ever spent."""
    kinds = [("nusd", period) for period in _PERIODS] + [("tokens", "minute")]
    return [
        metering.SetBudgetRequest(tenant=_TENANT, scope="tenant", unit=unit, period=period, limit=_MANY, lift=lift)
        for unit, period in kinds
    ]


@dataclass(slots=True)
class _Part:
    """Requests of one length, all with budgets or all without; `rounds`: the median TTFT of each round, ms."""

    streams: list[Streamed] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    cpu_s: Counter[str] = field(default_factory=Counter)
    wall_s: float = 0.0

    def cpu_ms(self, kind: str, idle: Mapping[str, float]) -> float:
        """Per request, beyond what the process takes a second without any."""
        return (self.cpu_s[kind] - idle[kind] * self.wall_s) / len(self.streams) * 1000


async def _idle(mesh: psutil.Process) -> dict[str, float]:
    """CPU seconds a second of each kind of process while nothing is asked for."""
    before, started_s = cpu_s_by_kind(mesh), time.perf_counter()
    await asyncio.sleep(_IDLE_S)
    spent = cpu_s_by_kind(mesh) - before
    return {kind: spent[kind] / (time.perf_counter() - started_s) for kind in _KINDS}


async def measure(
    access: Access, mesh: psutil.Process, *, direct: bool, requests: int, rounds: int, tokens: int, long_tokens: int
) -> dict[str, Any]:
    """One way: relayed or direct."""
    parts = {(funded, length): _Part() for funded in (False, True) for length in (tokens, long_tokens)}
    async with (
        Client(access.router, access.keys[_TENANT], direct=direct, max_attempts=1) as client,
        Peers(access) as peers,
    ):
        await client.connected()
        idle, number = await _idle(mesh), 0
        for round_ in range(rounds):
            funded = _funded(round_)
            for each in _budgets(lift=not funded) if funded != _funded(round_ - 1) else ():
                await peers.set_budget(each)
            for length, count in ((tokens, requests // rounds), (long_tokens, requests // rounds // _FEWER_LONG)):
                part = parts[funded, length]
                for _ in range(_WARM_UP):
                    number += 1
                    await stream(client, number, tokens)
                before, started_s, some = cpu_s_by_kind(mesh), time.perf_counter(), list[Streamed]()
                for _ in range(count):
                    number += 1
                    some.append(await stream(client, number, length))
                part.cpu_s += cpu_s_by_kind(mesh) - before
                part.wall_s += time.perf_counter() - started_s
                part.streams += some
                part.rounds.append(statistics.median(each.ttft_s * 1000 for each in some))
    return _figures(parts, idle, tokens, long_tokens)


def _funded(round_: int) -> bool:
    """Without, with, with, without: what drifts falls on both alike, and the last round lifts them."""
    return round_ % 4 in (1, 2)


def _figures(
    parts: dict[tuple[bool, int], _Part], idle: Mapping[str, float], tokens: int, long_tokens: int
) -> dict[str, Any]:
    failed = [each.failure for part in parts.values() for each in part.streams if each.failure]
    figures: dict[str, Any] = {
        "requests": sum(len(part.streams) for part in parts.values()),
        "failed": len(failed),
        "failures": failed[:3],
        "idle_cpu_s_per_s": {kind: round(idle[kind], 4) for kind in _KINDS},
    }
    short = {funded: parts[funded, tokens] for funded in (False, True)}
    for name, funded in (("without", False), ("with", True)):
        part = short[funded]
        ttfts_ms = [each.ttft_s * 1000 for each in part.streams if each.ttft_s]
        rest_us = [(each.e2e_s - each.ttft_s) / max(1, tokens - 1) * 1e6 for each in part.streams if not each.failure]
        figures[f"ttft_p50_ms_{name}"] = round(statistics.median(ttfts_ms), 3)
        figures[f"itl_p50_us_{name}"] = round(statistics.median(rest_us), 1)
        figures[f"cpu_ms_per_request_{name}"] = {kind: round(part.cpu_ms(kind, idle), 3) for kind in _KINDS}
    added_ms = [with_ - without for without, with_ in zip(short[False].rounds, short[True].rounds, strict=True)]
    middle_ms = statistics.mean(added_ms)
    figures["added_ttft_p50_ms"] = round(middle_ms, 3)
    figures["added_ttft_p50_ms_95"] = round(1.96 * statistics.stdev(added_ms) / len(added_ms) ** 0.5, 3)
    figures["added_itl_p50_us"] = round(figures["itl_p50_us_with"] - figures["itl_p50_us_without"], 1)
    per_token_us = {
        funded: {
            kind: (parts[funded, long_tokens].cpu_ms(kind, idle) - parts[funded, tokens].cpu_ms(kind, idle))
            / (long_tokens - tokens)
            * 1000
            for kind in _KINDS
        }
        for funded in (False, True)
    }
    figures["added_cpu_ms_per_request"] = {
        kind: round(short[True].cpu_ms(kind, idle) - short[False].cpu_ms(kind, idle), 3) for kind in _KINDS
    }
    figures["added_cpu_us_per_token"] = {
        kind: round(per_token_us[True][kind] - per_token_us[False][kind], 2) for kind in _KINDS
    }
    return figures


def show(found: dict[str, dict[str, Any]]) -> None:
    table = Table("", "TTFT p50 without", "with budgets", "added", "per token, added")
    for way, each in found.items():
        table.add_row(
            way,
            f"{each['ttft_p50_ms_without']:.2f} ms",
            f"{each['ttft_p50_ms_with']:.2f} ms",
            f"{each['added_ttft_p50_ms']:+.2f} ± {each['added_ttft_p50_ms_95']:.2f} ms",
            f"{each['added_itl_p50_us']:+.0f} µs",
        )
    Console().print(table)
    table = Table("CPU time", *_KINDS)
    for way, each in found.items():
        without, with_ = each["cpu_ms_per_request_without"], each["cpu_ms_per_request_with"]
        table.add_row(f"{way}, per request", *(f"{without[kind]:.2f} → {with_[kind]:.2f} ms" for kind in _KINDS))
        added = each["added_cpu_us_per_token"]
        table.add_row(f"{way}, per token, added", *(f"{added[kind]:+.2f} µs" for kind in _KINDS))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=24, help="a multiple of 4")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--long-tokens", type=int, default=512)
    parser.add_argument("--out", default="budget_ttft", help="name of the result")
    options = parser.parse_args()
    if options.rounds % 4 or options.requests < options.rounds * _FEWER_LONG:
        parser.error("--rounds must be a multiple of 4, and --requests at least four times as many")
    found = {}
    with tempfile.TemporaryDirectory(prefix="tw-bench-") as folder, local_mesh(Path(folder)) as (access, mesh):
        for way in ("relayed", "direct"):
            found[way] = uvloop.run(
                measure(
                    access,
                    mesh,
                    direct=way == "direct",
                    requests=options.requests,
                    rounds=options.rounds,
                    tokens=options.tokens,
                    long_tokens=options.long_tokens,
                )
            )
    show(found)
    path = budget_path.measure()
    print(budget_path.told(path))
    print(f"written to {write(options.out, found | {'path': path})}")
    if any(each["failed"] for each in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
