"""What budgets add to a first token, and to the tokens after it: the same requests with none, and under six at once.

    python -m bench.budget_ttft [--requests 1200] [--rounds 12] [--tokens 32] [--out budget_ttft]

In: nothing but this checkout; a real mesh of simulated accelerators is started and stopped here. Out: a table, and
`bench/results/<out>.json`. Rounds with and without budgets take turns, so that what else runs on the machine falls on
both alike; relayed and direct requests are measured apart. One request runs at a time: it is the path that is timed.
The router's CPU time per request stands beside it, which other programs disturb less.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any, Final

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from bench.record import write
from bench.streams import Streamed, cpu_s_by_kind, local_mesh, stream
from services.cli.access import Access
from services.cli.peers import Peers
from tokenworks import Client
from tokenworks.v1 import metering_pb2 as metering

_TENANT: Final = "local"
_WARM_UP: Final = 40
_MANY: Final = 10**15
_PERIODS: Final = ("once", "minute", "hour", "day", "month")


def _budgets(*, lift: bool) -> list[metering.SetBudgetRequest]:
    """The tenant's dollars in five windows, and its tokens in one; none is ever spent."""
    kinds = [("nusd", period) for period in _PERIODS] + [("tokens", "minute")]
    return [
        metering.SetBudgetRequest(tenant=_TENANT, scope="tenant", unit=unit, period=period, limit=_MANY, lift=lift)
        for unit, period in kinds
    ]


async def measure(
    access: Access, mesh: psutil.Process, *, direct: bool, requests: int, rounds: int, tokens: int
) -> dict[str, Any]:
    """One way: relayed or direct."""
    results: dict[bool, list[Streamed]] = {False: [], True: []}
    router_s = {False: 0.0, True: 0.0}
    async with (
        Client(access.router, access.keys[_TENANT], direct=direct, max_attempts=1) as client,
        Peers(access) as peers,
    ):
        await client.connected()
        number = 0
        for round_ in range(rounds):
            funded = bool(round_ % 2)
            if round_:
                for each in _budgets(lift=not funded):
                    await peers.set_budget(each)
            for counted in (False, True):
                before = cpu_s_by_kind(mesh)
                for _ in range(requests // rounds if counted else _WARM_UP):
                    number += 1
                    streamed = await stream(client, number, tokens)
                    if counted:
                        results[funded].append(streamed)
                if counted:
                    router_s[funded] += (cpu_s_by_kind(mesh) - before)["router"]
        for each in _budgets(lift=True) if rounds % 2 == 0 else ():
            await peers.set_budget(each)
    failed = [each.failure for some in results.values() for each in some if each.failure]
    ttft_ms = {funded: [each.ttft_s * 1000 for each in some if each.ttft_s] for funded, some in results.items()}
    rest_us = {
        funded: [(each.e2e_s - each.ttft_s) / max(1, tokens - 1) * 1e6 for each in some if not each.failure]
        for funded, some in results.items()
    }
    figures: dict[str, Any] = {
        "requests": sum(map(len, results.values())),
        "failed": len(failed),
        "failures": failed[:3],
    }
    for name, funded in (("without", False), ("with", True)):
        figures[f"ttft_p50_ms_{name}"] = round(statistics.median(ttft_ms[funded]), 3)
        figures[f"itl_p50_us_{name}"] = round(statistics.median(rest_us[funded]), 1)
        figures[f"router_cpu_ms_per_request_{name}"] = round(router_s[funded] / len(results[funded]) * 1000, 3)
    figures["added_ttft_p50_ms"] = round(figures["ttft_p50_ms_with"] - figures["ttft_p50_ms_without"], 3)
    figures["added_itl_p50_us"] = round(figures["itl_p50_us_with"] - figures["itl_p50_us_without"], 1)
    return figures


def show(found: dict[str, dict[str, Any]]) -> None:
    table = Table("", "TTFT p50 without", "with budgets", "added", "per token, added", "router CPU per request")
    for way, each in found.items():
        table.add_row(
            way,
            f"{each['ttft_p50_ms_without']:.2f} ms",
            f"{each['ttft_p50_ms_with']:.2f} ms",
            f"{each['added_ttft_p50_ms']:+.2f} ms",
            f"{each['added_itl_p50_us']:+.0f} µs",
            f"{each['router_cpu_ms_per_request_without']:.2f} → {each['router_cpu_ms_per_request_with']:.2f} ms",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", default="budget_ttft", help="name of the result")
    options = parser.parse_args()
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
                )
            )
    show(found)
    print(f"written to {write(options.out, found)}")
    if any(each["failed"] for each in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
