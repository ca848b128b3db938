"""Three NATS servers from the wheel as one cluster: whichever is killed, nothing is lost and nobody stands still."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

from services.mesh.bus import EventId
from services.mesh.clock import SystemClock
from services.mesh.nats.bus import NatsBus
from services.mesh.nats.cluster import NatsCluster
from services.mesh.settings import NatsSettings
from services.mesh.subjects import CREDIT, STREAMS, TOKENS
from services.mesh.telemetry import start_telemetry
from tests.contract.bus_worlds import Reading, credit, eventually, eventually_so, tokens


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    async with NatsCluster(tmp_path, [(0, 0)] * 3, sync_always=False) as servers:
        yield servers


async def _bus(cluster: NatsCluster, service: str) -> NatsBus:
    settings = NatsSettings(url=cluster.url, replicas=3, connect_timeout_s=60.0, ack_timeout_s=1.0)
    bus = NatsBus(settings, service, f"{service}-0", start_telemetry(service, service), SystemClock())
    await bus.connect()
    return bus


async def _leader(cluster: NatsCluster, stream: str) -> int:
    async with await nats.connect(cluster.url.split(",")) as client:
        found = (await client.jetstream().stream_info(stream)).cluster
        assert found is not None
        assert found.leader is not None
        return int(found.leader.removeprefix("node-"))


async def _level(cluster: NatsCluster) -> None:
    """Waits until every node has all that the streams hold: before, the next to go may be the only one that has it."""
    async with await nats.connect(cluster.url.split(",")) as client:

        async def level() -> bool:
            for stream in STREAMS:
                try:
                    found = (await client.jetstream().stream_info(stream.name)).cluster
                except nats.errors.Error:
                    return False  # no leader yet
                copies = found.replicas if found is not None and found.leader else None
                if copies is None or len(copies) != 2 or not all(each.current for each in copies):
                    return False
            return True

        await eventually_so(level, "every node has caught up")


async def test_every_stream_has_a_copy_on_each_node(cluster: NatsCluster) -> None:
    bus = await _bus(cluster, "meter")
    async with await nats.connect(cluster.url.split(",")) as client:
        for stream in STREAMS:
            assert (await client.jetstream().stream_info(stream.name)).config.num_replicas == 3
    await bus.close()


async def test_whichever_node_is_killed_nothing_is_lost_and_readers_and_publishers_go_on(cluster: NatsCluster) -> None:
    worker, meter = await _bus(cluster, "worker"), await _bus(cluster, "meter")
    reading = Reading().consume(meter, [TOKENS], "meter-tokens")
    watching = Reading().watch(meter, [CREDIT])
    published: list[EventId] = []
    stopping = asyncio.Event()

    async def load() -> None:
        while not stopping.is_set():
            published.append(worker.publish(tokens(f"r{len(published)}")))
            await asyncio.sleep(0.01)

    loading = asyncio.create_task(load())
    await reading.until(20)
    leader = await _leader(cluster, "TW_TOKENS")
    for number in (leader, (leader + 1) % 3, (leader + 2) % 3):
        node = cluster.nodes[number]
        await node.kill()
        seen = len({each.id for each in reading.received})
        await eventually(
            lambda seen=seen: len({each.id for each in reading.received}) > seen + 50,  # type: ignore[misc]
            f"reading goes on without node {number}",
        )
        await node.start()
        await _level(cluster)
    stopping.set()
    await loading
    worker.publish(credit("acme", 7))
    assert await worker.flush(60.0) == 0
    await eventually(lambda: {each.id for each in reading.received} == set(published), "everything arrived")
    await eventually(lambda: bool(watching.received), "the watch goes on")
    await reading.stop()
    await watching.stop()
    await worker.close()
    await meter.close()
