"""CloudEvents from a running meter to receivers that fail now and then, are down for long, refuse, or are JetStream."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import pytest
from aiohttp import web

from services.mesh.errors import SettingInvalid
from services.mesh.nats.server import NatsServer
from services.mesh.settings import CloudEventsSettings, load_settings
from tests.mesh.local_mesh import eventually
from tests.mesh.running_meter import DEADLINE_S, Meter, running_meter
from tests.unit.meter.facts import admitted, entry, finished, tokens

pytestmark = pytest.mark.mesh


@dataclass
class Receiver:
    """Keeps what it acknowledged, by (source, id)."""

    url: str = ""
    answers: list[int] = field(default_factory=list)  # one per request, in turn; then 204
    refused: str = ""  # a request that it refuses for good
    taken: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    types: set[str] = field(default_factory=set)

    async def take(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer secret"
        self.types.add(request.content_type)
        document = json.loads(await request.read())
        status = self.answers.pop(0) if self.answers else 204
        if status == 0:
            assert request.transport is not None
            request.transport.abort()
        events = document if isinstance(document, list) else [document]
        if any(each["data"]["request_id"] == self.refused for each in events):
            return web.Response(status=400, text="no such meter")
        if status == 204:
            for each in events:
                self.taken[each["source"], each["id"]] = each
                self.times[each["id"]] += 1
        return web.Response(status=status)

    def total(self, name: str) -> int:
        return sum(each["data"][name] for each in self.taken.values())


@asynccontextmanager
async def _served(receiver: Receiver, port: int = 0) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_post("/events", receiver.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        port = runner.addresses[0][1]
        receiver.url = f"http://127.0.0.1:{port}/events"
        yield port
    finally:
        await runner.cleanup()


def _settings(url: str, **more: Any) -> CloudEventsSettings:
    quick = {"every_s": 0.02, "longest_retry_s": 0.05, "timeout_s": 5.0, "bearer": "secret", "start": "beginning"}
    return CloudEventsSettings(url=url, **{**quick, **more})


def _serve(meter: Meter, first: int, count: int) -> None:
    for number in range(first, first + count):
        request_id = f"r{number}"
        last = tokens(entry(request_id, 0, 10, last=True))
        meter.publish(admitted(request_id), last, finished(request_id, 10))


async def _all_told(receiver: Receiver, requests: int) -> None:
    async def told() -> bool:
        return receiver.total("requests") == requests and receiver.total("output_tokens") == 10 * requests

    await eventually(told, f"{requests} requests are told of", DEADLINE_S)


async def test_every_billed_part_is_told_once_to_a_receiver_that_fails_now_and_then(tmp_path: Path) -> None:
    receiver = Receiver(answers=[503, 204, 0, 429, 204, 302, 500, 204, 0])
    async with _served(receiver), running_meter(tmp_path, cloudevents=_settings(receiver.url)) as meter:
        for first in (0, 5, 10):
            _serve(meter, first, 5)
            total = await meter.total(lambda row, first=first: row.finished_requests == first + 5)
        await _all_told(receiver, 15)
        assert receiver.types == {"application/cloudevents+json"}
        assert receiver.total("price_nusd") == total.price_nusd
        assert receiver.total("total_tokens") == total.prompt_tokens + total.delivered_tokens
        one = next(iter(receiver.taken.values()))
        assert (one["specversion"], one["type"], one["subject"]) == ("1.0", "tokenworks.usage.booked", "acme")
        assert one["time"] == "2023-11-14T22:14:00Z"


async def test_a_receiver_that_always_fails_some_is_told_of_each_once(tmp_path: Path) -> None:
    """Every seventh request fails, of eight that are under way at once; what was taken is not told again."""
    receiver = Receiver(answers=[503 if number % 7 == 0 else 204 for number in range(1, 400)])
    async with _served(receiver), running_meter(tmp_path, cloudevents=_settings(receiver.url)) as meter:
        _serve(meter, 0, 60)
        await _all_told(receiver, 60)
    assert max(receiver.times.values()) == 1


async def test_what_a_receiver_misses_while_it_is_down_waits_in_the_ledger(tmp_path: Path) -> None:
    receiver = Receiver()
    async with _served(receiver) as port:
        pass
    settings = _settings(f"http://127.0.0.1:{port}/events", batch=4)
    async with running_meter(tmp_path, cloudevents=settings) as meter:
        _serve(meter, 0, 20)
        await meter.total(lambda row: row.finished_requests == 20)  # booked, whoever is away
        async with _served(receiver, port):
            await _all_told(receiver, 20)
        broker = meter.broker
    receiver.answers = [503] * 5
    async with _served(receiver, port), running_meter(tmp_path, broker=broker, cloudevents=settings) as meter:
        _serve(meter, 20, 5)
        await _all_told(receiver, 25)
    assert receiver.types == {"application/cloudevents-batch+json"}
    early = [each["id"] for each in receiver.taken.values() if int(each["data"]["request_id"][1:]) < 20]
    assert max(receiver.times[each] for each in early) == 1, "a meter that starts again goes on where it was"


@pytest.mark.parametrize("batch", [1, 8])
async def test_an_event_that_is_refused_for_good_holds_up_no_other(tmp_path: Path, batch: int) -> None:
    receiver = Receiver(refused="r1")
    async with _served(receiver), running_meter(tmp_path, cloudevents=_settings(receiver.url, batch=batch)) as meter:
        _serve(meter, 0, 4)
        await _all_told(receiver, 3)
        assert {each["data"]["request_id"] for each in receiver.taken.values()} == {"r0", "r2", "r3"}


async def test_the_first_start_tells_from_now_on(tmp_path: Path) -> None:
    receiver = Receiver()
    async with running_meter(tmp_path) as meter:
        _serve(meter, 0, 3)
        await meter.total(lambda row: row.finished_requests == 3)
        broker = meter.broker
    async with _served(receiver):
        settings = _settings(receiver.url, start="now")
        async with running_meter(tmp_path, broker=broker, cloudevents=settings) as meter:
            _serve(meter, 3, 2)

            async def told() -> bool:
                return {each["data"]["request_id"] for each in receiver.taken.values()} == {"r3", "r4"}

            await eventually(told, "what is new is told of", DEADLINE_S)


async def test_events_go_to_a_stream_of_jetstream_once_it_is_there(nats_server: NatsServer, tmp_path: Path) -> None:
    settings = _settings(f"{nats_server.url}/usage.booked", timeout_s=2.0)
    client = await nats.connect(nats_server.url)
    try:
        async with running_meter(tmp_path, cloudevents=settings) as meter:
            _serve(meter, 0, 3)
            await meter.total(lambda row: row.finished_requests == 3)
            js = client.jetstream()
            await js.add_stream(name="USAGE", subjects=["usage.>"])
            taken: dict[str, dict[str, Any]] = {}
            subscription = await js.subscribe("usage.booked", ordered_consumer=True)
            async with asyncio.timeout(DEADLINE_S):
                while sum(each["data"]["requests"] for each in taken.values()) < 3:
                    message = await subscription.next_msg(timeout=DEADLINE_S)
                    event = json.loads(message.data)
                    assert message.headers is not None
                    assert message.headers["Nats-Msg-Id"] == event["id"]
                    taken[event["id"]] = event
            assert {each["data"]["request_id"] for each in taken.values()} == {"r0", "r1", "r2"}
    finally:
        await client.close()


@pytest.mark.parametrize("url", ["ftp://x", "nats://host:4222", "nats://host/a.*", "http:///path", "events"])
def test_a_receiver_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(SettingInvalid, match=r"cloudevents\.url"):
        load_settings(cloudevents={"url": url})
