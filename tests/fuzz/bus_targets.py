"""Every subject of the bus: the table's channels, as any publisher on it can send to them, and the requests that are
answered: control, gaps, leases.

In: a mesh over a bus in memory. Out: a target for each channel. A message is read by whoever reads it in production;
it may be folded, dropped as undecodable or put aside, and no reader may fail on it.
"""

import asyncio
from random import Random
from typing import Final

from google.protobuf.message import Message

from services.mesh.codec import MESSAGES, from_message
from services.mesh.publishing import EVENT_ID, MESSAGE_ID
from services.mesh.reading import answer_control, answer_leases
from services.mesh.subjects import (
    CHANNELS,
    CONTROL_TEMPLATE,
    GAPS_TEMPLATE,
    LEASES_TEMPLATE,
    Channel,
    channel_at,
    subject_of,
)
from tests.fuzz.mutations import mutated_bytes, mutated_message
from tests.fuzz.samples import TRACEPARENT
from tests.fuzz.target import Target, Wrong
from tests.fuzz.world import SPARE, World
from tokenworks.v1 import events_pb2

_AT_ONCE: Final = 64  # after so many readers get their turn
_MOST_BYTES: Final = 1 << 20  # a server of NATS takes no more
_IDS: Final = (
    "",
    "no id",
    "a:b",
    "a:b:0",
    "a:b:-1",
    "a:b:1e9",
    "a:b:99999999999999999999999",
    ":::",
    "a:b:\u0663",
    "x" * 5000,
)


def bus_targets(world: World) -> list[Target]:
    """One for each channel of the table, and for each kind of request."""
    return [
        *[ChannelTarget(world, channel) for channel in CHANNELS],
        ControlTarget(world),
        GapTarget(world),
        LeaseTarget(world),
    ]


def _body(kind: type[Message], rng: Random) -> bytes:
    return mutated_message(kind, rng)[:_MOST_BYTES]


class _Restless:
    at_once = _AT_ONCE

    async def rest(self) -> None:
        pass  # nothing is held


class ChannelTarget(_Restless):
    """One channel, from a publisher that nobody knows or one that takes another's name."""

    def __init__(self, world: World, channel: Channel) -> None:
        self.name = f"nats {channel.template}"
        self._world = world
        self._channel = channel
        self._kind = MESSAGES[channel.event]

    async def one(self, rng: Random, number: int) -> str:
        body = _body(self._kind, rng)
        subject = self._subject(body, rng)
        self._world.broker.put(subject, self._headers(rng, number), body)
        if number % _AT_ONCE == 0:
            await self._world.taken()
        return "put"

    def _subject(self, body: bytes, rng: Random) -> str:
        """The one that the body names, mostly; else any that matches the channel."""
        if rng.random() > 0.05:
            try:
                named = subject_of(from_message(self._channel.event, self._kind.FromString(body)))
            except Exception:  # it is not to be read, so it comes on any
                named = ""
            if named and channel_at(named) is self._channel:
                return named
        return self._channel.wildcard.replace("*", rng.choice(("~", "x", "~zz", "a-b")))

    def _headers(self, rng: Random, number: int) -> dict[str, str]:
        sequence = rng.choice((number + 1, number + 1, number + 1, 1, 2**63, rng.getrandbits(40)))
        written = f"fuzz.{rng.choice(('a', 'b'))}.{self._channel.name}:e{rng.randrange(3)}:{sequence}"
        headers = {EVENT_ID: written, MESSAGE_ID: f"{written}/{rng.getrandbits(60):x}"}
        if rng.random() < 0.1:
            headers[EVENT_ID] = rng.choice(_IDS)
        if rng.random() < 0.05:
            headers.clear()
        if rng.random() < 0.2:
            headers["traceparent"] = rng.choice((TRACEPARENT, "00-zz", "x" * 2000, "\u00e9"))
        return headers


class ControlTarget(_Restless):
    """`tw.control.<worker>`: what a worker answers to any bytes; one that may be drained stands by for it."""

    name = f"nats {CONTROL_TEMPLATE}"

    def __init__(self, world: World) -> None:
        self._handler = world.broker.controls[SPARE]

    async def one(self, rng: Random, number: int) -> str:
        answer = await answer_control(self._handler, _body(events_pb2.ControlRequested, rng))
        if not answer.message:
            raise Wrong("a control request was answered without a word")
        return "accepted" if answer.accepted else "refused"


class GapTarget(_Restless):
    """`tw.gaps.<publisher>`: what a publisher does with any bytes that ask for its events again."""

    name = f"nats {GAPS_TEMPLATE}"

    def __init__(self, world: World) -> None:
        self._buses = [world.broker.publisher(name) for name in ("worker.h100-0", "router.router-0", "meter.meter-0")]

    async def one(self, rng: Random, number: int) -> str:
        body = _body(events_pb2.GapRequested, rng)
        if rng.random() < 0.2:
            body = mutated_bytes(body, rng)
        await asyncio.sleep(0)
        try:
            bus = rng.choice(self._buses)
            assert bus is not None, "every service has a bus"
            answer = bus.send_again(body)
        except ValueError as reason:
            if not str(reason):
                raise Wrong("a request for a gap was refused without a word") from None
            return "refused"
        return f"{'some' if answer.sent_ranges else 'none'} sent"


class LeaseTarget(_Restless):
    """`tw.leases`: what the meter answers to any bytes that ask for credit; those that come together, together."""

    name = f"nats {LEASES_TEMPLATE}"

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: list[tuple[bytes, asyncio.Future[bytes | None]]] = []
        self._answering: asyncio.Task[None] | None = None

    async def one(self, rng: Random, number: int) -> str:
        asked = asyncio.get_running_loop().create_future()
        self._waiting.append((_body(events_pb2.LeaseAsked, rng), asked))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer())
        return "answered" if await asked else "passed over"

    async def _answer(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            handler = self._world.broker.leases.get(0)
            assert handler is not None, "the meter serves leases as long as it runs"
            answers = await answer_leases(handler, [body for body, _ in taken])
            for (_, asked), answer in zip(taken, answers, strict=True):
                asked.set_result(answer)
