"""The load, a process of its own: `python -m bench.datapath.load`, told what to do as JSON lines on standard input.

In: one `Order` per line. Out: one `Outcome` per line, as JSON. Orders run one after the other; connections stay open
between them, as a client's do.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Final

import uvloop

from bench.datapath.direct_client import DirectClient, OwnClient
from bench.datapath.grpc_client import GrpcClient
from bench.datapath.http_client import HttpClient
from bench.datapath.orders import Client, Kind, Order, Outcome, Reading, outcome_of
from bench.datapath.processes import raise_open_files

_CLIENTS: Final[Mapping[Kind, Callable[[Order], Client]]] = {
    "http": HttpClient,
    "grpc": GrpcClient,
    "direct": DirectClient,
    "client": OwnClient,
}


class Load:
    """Carries out orders, with one client per kind and address.

    A slot starts a request, and another when that has ended, until `requests` were started or `limit_s` is over. What
    is not whole by then is broken off and counted as unfinished, not as failed.
    """

    def __init__(self) -> None:
        self._clients: dict[tuple[str, str, int], Client] = {}

    async def carry_out(self, order: Order) -> Outcome:
        client = self._client(order)
        readings: list[Reading] = []
        started_s, cpu_s = time.monotonic(), time.process_time()
        try:
            async with asyncio.timeout(order.limit_s):
                await (_by_rate if order.rate else _by_slots)(client, order, readings)
        except TimeoutError:
            pass
        return outcome_of(readings, time.monotonic() - started_s, time.process_time() - cpu_s)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    def _client(self, order: Order) -> Client:
        where = (order.kind, order.address, order.streams_per_connection)
        if where not in self._clients:
            self._clients[where] = _CLIENTS[order.kind](order)
        return self._clients[where]


async def _by_rate(client: Client, order: Order, readings: list[Reading]) -> None:
    clock = asyncio.get_running_loop().time
    start_s = clock()
    async with asyncio.TaskGroup() as running:
        for number in range(order.requests):
            await asyncio.sleep(max(0.0, start_s + number / order.rate - clock()))
            running.create_task(_one(client, order, readings, slow=False))


async def _by_slots(client: Client, order: Order, readings: list[Reading]) -> None:
    left = order.requests or sys.maxsize

    async def slot(number: int) -> None:
        nonlocal left
        await asyncio.sleep(order.spread_s * number / order.streams)
        while left > 0:
            left -= 1
            await _one(client, order, readings, slow=number < order.slow_readers)

    async with asyncio.TaskGroup() as running:
        for number in range(order.streams):
            running.create_task(slot(number))


async def _one(client: Client, order: Order, readings: list[Reading], *, slow: bool) -> None:
    if slow:
        order = replace(order, tokens=order.slow_tokens, step_ms=order.slow_step_ms)
    reading = Reading(time.monotonic(), slow=slow)
    readings.append(reading)
    try:
        await client.request(order, reading)
    except OSError as error:
        reading.end(f"{type(error).__name__}: {error.strerror or error}")


async def main() -> None:
    raise_open_files()
    load = Load()
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        outcome = await load.carry_out(Order(**json.loads(line)))
        print(json.dumps(asdict(outcome)), flush=True)
    await load.close()


if __name__ == "__main__":
    uvloop.run(main())
