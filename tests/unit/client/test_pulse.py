"""Who is silent is asked; who does not answer either is given up, and nobody else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc
import pytest

from tokenworks.pulse import ANSWER_LOOKS, SILENT_LOOKS, Heart, Pulse


class FakeChannel:
    """A channel whose other end answers a check when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.cancelled = 0
        self.answer = asyncio.Event()
        self.refusal: grpc.aio.AioRpcError | None = None

    def unary_unary(self, method: str, **_: Callable[..., Any]) -> Callable[..., Any]:
        assert method == "/grpc.health.v1.Health/Check"
        return self._check

    async def _check(self, request: bytes, timeout: float) -> bytes:
        assert request == b""
        assert timeout > 0
        self.asked += 1
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.refusal is not None:
            raise self.refusal
        return b""


@pytest.fixture
async def channel() -> AsyncIterator[FakeChannel]:
    channel = FakeChannel()
    yield channel
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nobody waits for an answer any more"


async def looks(heart: Heart, count: int) -> None:
    for _ in range(count):
        heart.look()
        for _ in range(3):  # what it began, begins
            await asyncio.sleep(0)


def as_channel(channel: FakeChannel) -> grpc.aio.Channel:
    return cast("grpc.aio.Channel", channel)


def heart_of(channel: FakeChannel, gave_up: list[str]) -> tuple[Heart, Callable[[], None]]:
    heart = Heart(as_channel(channel))

    def give_up() -> None:
        gave_up.append("r-1")

    heart.add(give_up)
    return heart, give_up


async def test_who_neither_sends_nor_answers_is_given_up_once(channel: FakeChannel) -> None:
    gave_up: list[str] = []
    heart, _ = heart_of(channel, gave_up)
    await looks(heart, SILENT_LOOKS - 1)
    assert channel.asked == 0
    await looks(heart, ANSWER_LOOKS)
    assert (channel.asked, gave_up) == (1, [])
    await looks(heart, 1)
    assert gave_up == ["r-1"]
    await looks(heart, 1)
    assert gave_up == ["r-1"]


@pytest.mark.parametrize("refuses", [False, True])
async def test_who_answers_may_be_silent_for_ever(channel: FakeChannel, refuses: bool) -> None:
    gave_up: list[str] = []
    heart, _ = heart_of(channel, gave_up)
    channel.answer.set()
    if refuses:
        nothing = grpc.aio.Metadata()
        channel.refusal = grpc.aio.AioRpcError(grpc.StatusCode.UNIMPLEMENTED, nothing, nothing, None, None)
    await looks(heart, 20 * (SILENT_LOOKS + ANSWER_LOOKS))
    assert gave_up == []
    assert channel.asked > 10


async def test_who_sends_is_not_asked(channel: FakeChannel) -> None:
    gave_up: list[str] = []
    heart, _ = heart_of(channel, gave_up)
    for _ in range(20):
        await looks(heart, SILENT_LOOKS - 1)
        heart.heard += 1
    await looks(heart, 1)
    assert (channel.asked, gave_up) == (0, [])


async def test_a_token_that_comes_while_an_answer_is_due_will_do(channel: FakeChannel) -> None:
    gave_up: list[str] = []
    heart, _ = heart_of(channel, gave_up)
    await looks(heart, SILENT_LOOKS + ANSWER_LOOKS - 1)
    heart.heard += 1
    await looks(heart, 2)
    assert (channel.asked, channel.cancelled, gave_up) == (1, 1, [])


async def test_where_no_stream_runs_nobody_is_asked(channel: FakeChannel) -> None:
    gave_up: list[str] = []
    heart, give_up = heart_of(channel, gave_up)
    await looks(heart, SILENT_LOOKS)
    heart.remove(give_up)
    await asyncio.sleep(0)
    assert (channel.asked, channel.cancelled, len(heart)) == (1, 1, 0)


async def test_an_address_is_forgotten_with_its_last_stream() -> None:
    pulse, channel = Pulse(), FakeChannel()
    first, second = (lambda: None), (lambda: None)
    heart = pulse.begin("a:1", as_channel(channel), first)
    assert pulse.begin("a:1", as_channel(channel), second) is heart
    pulse.end("a:1", first)
    assert (len(pulse), len(heart)) == (1, 1)
    for _ in range(2):
        pulse.end("a:1", second)
        assert len(pulse) == 0
