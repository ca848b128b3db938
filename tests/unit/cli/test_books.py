import asyncio

from services.cli.access import Access
from services.cli.books import Bookkeeper
from services.cli.peers import Peers
from tests.unit.cli.fake_operators import SECRET, FakeMeter, serving
from tokenworks.v1 import metering_pb2 as metering


def row(tenant="acme", workload="w", accelerator="nvidia-l4", slo_class="batch", **figures):
    key = metering.UsageKey(tenant=tenant, workload=workload, accelerator=accelerator, slo_class=slo_class)
    return metering.UsageRow(key=key, **figures)


def peers_at(address):
    return Peers(Access(router=address, meter=address, optimizer=address, nats="", secret=SECRET))


async def test_only_what_was_booked_since_the_beginning_counts():
    meter = FakeMeter(rows=[row(delivered_tokens=5, generated_tokens=5, requests=1, price_nusd=50)])
    async with serving(meter=meter) as address, peers_at(address) as peers:
        bookkeeper = Bookkeeper(peers)
        await bookkeeper.begin()
        meter.rows.append(row(delivered_tokens=7, generated_tokens=7, requests=1, finished_requests=1, price_nusd=70))
        meter.rows.append(row(accelerator="amd-mi300x", delivered_tokens=3, generated_tokens=3, slo_class="standard"))
        books = await bookkeeper.settle({"w"}, completion_tokens=10, finished=1, deadline_s=10)
    assert (books.total.delivered_tokens, books.total.price_nusd, books.total.requests) == (10, 70, 1)
    assert {name: each.delivered_tokens for name, each in books.by_accelerator.items()} == {
        "nvidia-l4": 7,
        "amd-mi300x": 3,
    }
    assert books.by_tenant_workload["acme", "w"].delivered_tokens == 10
    assert {name: each.delivered_tokens for name, each in books.by_slo_class.items()} == {"batch": 7, "standard": 3}


async def test_other_workloads_are_not_the_runs():
    meter = FakeMeter()
    async with serving(meter=meter) as address, peers_at(address) as peers:
        bookkeeper = Bookkeeper(peers)
        await bookkeeper.begin()
        meter.rows += [
            row(delivered_tokens=2, generated_tokens=2),
            row(workload="v", delivered_tokens=4, generated_tokens=4),
            row(workload="x", delivered_tokens=9, generated_tokens=9),
        ]
        books = await bookkeeper.settle({"w", "v"}, completion_tokens=6, finished=0, deadline_s=10)
    assert books.total.delivered_tokens == 6
    assert set(books.by_tenant_workload) == {("acme", "w"), ("acme", "v")}


async def test_books_are_waited_for_until_the_meter_has_caught_up():
    meter = FakeMeter()
    async with serving(meter=meter) as address, peers_at(address) as peers, asyncio.timeout(10):
        bookkeeper = Bookkeeper(peers)
        await bookkeeper.begin()
        meter.rows.append(row(delivered_tokens=6, generated_tokens=6))
        meter.lag_events = [3, 2]
        books = await bookkeeper.settle({"w"}, completion_tokens=6, finished=0, deadline_s=60)
    assert (books.lag_events, meter.lag_events) == (0, [])


async def test_books_that_never_agree_are_given_at_the_deadline():
    meter = FakeMeter(rows=[])
    async with serving(meter=meter) as address, peers_at(address) as peers:
        bookkeeper = Bookkeeper(peers)
        await bookkeeper.begin()
        meter.rows.append(row(delivered_tokens=5, generated_tokens=5))
        books = await bookkeeper.settle({"w"}, completion_tokens=6, finished=0, deadline_s=0)
    assert books.total.delivered_tokens == 5


async def test_makers_witness_is_waited_for_too():
    meter = FakeMeter()
    async with serving(meter=meter) as address, peers_at(address) as peers, asyncio.timeout(20):
        bookkeeper = Bookkeeper(peers)
        await bookkeeper.begin()
        meter.rows.append(row(delivered_tokens=5, generated_tokens=4))
        settling = asyncio.create_task(bookkeeper.settle({"w"}, completion_tokens=5, finished=0, deadline_s=60))
        while len(meter.asked) < 8:
            await meter.answered.acquire()
        meter.rows.append(row(generated_tokens=1))
        books = await settling
    assert books.total.generated_tokens == 5
