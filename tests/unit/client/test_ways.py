"""A client's ways to the tokens: straight from workers, relayed, and on from where a stream broke."""

import asyncio
import socket
from contextlib import AsyncExitStack

import grpc
import pytest

from services.mesh.errors import (
    CreditExhausted,
    EngineFailed,
    InvalidSampling,
    NoWorker,
    PlacementRefused,
    PromptTooLong,
    ResumeRefused,
    WorkerLost,
)
from tests.unit.client.fake_router import KEY, FakeRouter, FakeWorker, placement, serving
from tokenworks import Client, GenerateError, paths, pulse
from tokenworks.channels import Channels

NOWHERE = "127.0.0.1:1"
SOON_S = 0.01


async def direct_mesh(stack: AsyncExitStack, *workers: FakeWorker) -> tuple[FakeRouter, Client]:
    """A router that places at the workers in turn, and a client of it."""
    placements = [placement(each.worker, await stack.enter_async_context(serving(each))) for each in workers]
    router = FakeRouter(placements=placements)
    client = Client(await stack.enter_async_context(serving(router)), KEY)
    return router, await stack.enter_async_context(client)


async def test_tokens_come_straight_from_the_worker_that_the_router_named():
    worker = FakeWorker(worker="l4-0")
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, worker)
        stream = client.generate(text="a", model="m", max_tokens=3)
        assert await stream.text() == "w0 w1 w2 "
        assert worker.tokens == ["for l4-0"]
        assert (len(router.placed), router.requests) == (1, [])
        assert worker.requests[0].request_id == router.placed[0].request_id == stream.request_id
        assert stream.trace_id in worker.traceparents[0]
        assert (stream.attempts, stream.result.segments[0].worker) == (1, "l4-0")


async def test_client_that_wants_no_placements_asks_for_none():
    async with AsyncExitStack() as stack:
        worker = FakeWorker()
        router, _ = await direct_mesh(stack, worker)
        client = Client(await stack.enter_async_context(serving(router)), KEY, direct=False)
        async with client:
            assert await client.generate(text="a", max_tokens=2).text() == "w0 w1 "
        assert (router.placed, worker.requests, len(router.requests)) == ([], [], 1)


async def test_stream_that_a_worker_breaks_off_goes_on_at_another_without_a_gap():
    broken, sound = FakeWorker(worker="l4-0", break_at={3: EngineFailed("dead")}), FakeWorker(worker="l4-1")
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, broken, sound)
        stream = client.generate(text="a", max_tokens=6)
        pieces = [piece async for piece in stream]
        assert [piece.first_index for piece in pieces] == list(range(6))
        assert "".join(piece.text for piece in pieces) == "w0 w1 w2 w3 w4 w5 "
        again = router.placed[1]
        assert (again.resume_from, again.resumed_text, list(again.avoid_workers)) == (3, "w0 w1 w2 ", ["l4-0"])
        assert list(again.resumed_token_ids.ids) == [0, 1, 2]
        assert 0 < again.resumed_ttft_s <= again.resumed_s
        assert sound.requests[0] == again
        made = [(each.worker, each.from_index, each.count) for each in stream.result.segments]
        assert made == [("l4-0", 0, 3), ("l4-1", 3, 3)]
        assert stream.result.completion_tokens == 6


async def test_token_ids_of_unlike_tokenizers_are_not_handed_on():
    broken, other = FakeWorker(worker="a", break_at={1: EngineFailed("x")}), FakeWorker(worker="b")
    other.break_at = {2: EngineFailed("y")}
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, broken, other, FakeWorker(worker="c"))
        for each, tokenizer in zip(router.placements, ("one", "two", "two"), strict=True):
            each.tokenizer = tokenizer
        assert await client.generate(text="a", max_tokens=3).text() == "w0 w1 w2 "
        first, second = router.placed[1:]
        assert (first.resumed_tokenizer, list(first.resumed_token_ids.ids)) == ("one", [0])
        assert (second.resumed_tokenizer, list(second.resumed_token_ids.ids)) == ("", [])
        assert second.resumed_text == "w0 w1 "


async def test_where_no_worker_can_be_reached_the_router_relays_and_goes_on_relaying():
    router = FakeRouter(placements=[placement("far-0", NOWHERE)])
    async with serving(router) as address, Client(address, KEY, max_attempts=1) as client:
        for _ in range(3):
            assert await client.generate(text="a", max_tokens=2).text() == "w0 w1 "
    assert (len(router.placed), len(router.requests)) == (1, 3)


async def test_worker_that_never_answers_a_connection_is_given_up_soon(monkeypatch):
    monkeypatch.setattr(paths, "_CONNECT_WITHIN_S", 0.05)
    with socket.socket() as silent, socket.socket() as filler:  # a backlog that is full: packets are dropped
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        filler.connect(silent.getsockname())
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        router = FakeRouter(placements=[placement("silent", address)])
        async with serving(router) as router_address, Client(router_address, KEY) as client:
            assert await client.generate(text="a", max_tokens=2).text() == "w0 w1 "
    assert len(router.requests) == 1


async def test_closing_while_a_worker_is_connected_to_ends_the_iteration(monkeypatch):
    monkeypatch.setattr(paths, "_CONNECT_WITHIN_S", 0.2)
    placed = asyncio.Event()
    router = FakeRouter(placements=[placement("far", NOWHERE)], on_place=placed.set)
    async with serving(router) as address, Client(address, KEY) as client:
        stream = client.generate(text="a", max_tokens=2)
        reading = asyncio.create_task(stream.text())
        async with asyncio.timeout(10):
            await placed.wait()
            await stream.aclose()
            assert await reading == ""
    assert stream.result is None


async def test_one_worker_that_cannot_be_reached_is_avoided_by_clients_that_reach_others():
    async with AsyncExitStack() as stack:
        near = FakeWorker(worker="near")
        router, client = await direct_mesh(stack, near)
        await client.generate(text="a", max_tokens=1).text()
        router.placements.insert(0, placement("dead", NOWHERE))
        assert await client.generate(text="a", max_tokens=2).text() == "w0 w1 "
        assert list(router.placed[-1].avoid_workers) == ["dead"]
        assert (len(near.requests), router.requests) == (2, [])


async def test_refused_placement_is_relayed():
    worker = FakeWorker()
    worker.refusals.append(PlacementRefused("this worker has no mesh.secret"))
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, worker)
        assert await client.generate(text="a", max_tokens=2).text() == "w0 w1 "
        assert len(router.requests) == 1


async def test_what_the_caller_got_wrong_is_not_asked_elsewhere():
    worker = FakeWorker()
    worker.refusals.append(InvalidSampling("top_p is 7"))
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, worker)
        with pytest.raises(GenerateError, match="InvalidSampling"):
            await client.generate(text="a", max_tokens=2).text()
        assert (len(router.placed), router.requests) == (1, [])


async def test_prompt_too_long_for_one_worker_is_asked_of_another_and_refused_when_the_router_says_so():
    short = FakeWorker(worker="short")
    short.refusals.extend([PromptTooLong("9 tokens, 8 fit"), PromptTooLong("9 tokens, 8 fit")])
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, short, FakeWorker(worker="long"))
        placed = router.placements[0]
        assert await client.generate(text="a", max_tokens=2).text() == "w0 w1 "
        router.placements.insert(0, placed)
        stream = client.generate(text="a", max_tokens=2)
        router.on_place = lambda: router.no_places.append(PromptTooLong("it fits nowhere"))
        with pytest.raises(GenerateError, match="it fits nowhere"):
            await stream.text()


async def test_a_place_whose_answer_was_lost_is_asked_for_again_as_such():
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, FakeWorker())
        router.no_places.append(WorkerLost("the router went away in the middle"))
        assert await client.generate(text="a", max_tokens=2).text() == "w0 w1 "
        assert router.placed[-1].place_lost


async def test_refusal_to_place_ends_the_stream_by_name():
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, FakeWorker())
        router.no_places.append(CreditExhausted("spent"))
        with pytest.raises(GenerateError, match="CreditExhausted"):
            await client.generate(text="a", max_tokens=2).text()


async def test_when_every_worker_failed_the_stream_waits_for_one_to_come_back():
    worker = FakeWorker(worker="only", break_at={1: WorkerLost("stops")})
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, worker)
        stream = client.generate(text="a", max_tokens=3)
        assert (await anext(stream)).text == "w0 "
        router.no_places.append(NoWorker("all failed this request already", retry_after_s=SOON_S))
        assert await stream.text() == "w1 w2 "
        assert [list(each.avoid_workers) for each in router.placed] == [[], []]


async def test_worker_that_breaks_every_stream_is_given_up_in_the_end():
    worker = FakeWorker(worker="poisoned")
    worker.break_at = {0: EngineFailed("dead")}
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, worker)
        worker.refusals.extend(EngineFailed("dead again") for _ in range(20))
        with pytest.raises(GenerateError, match="EngineFailed"):
            await client.generate(text="a", max_tokens=2).text()
        assert len(router.placed) == 9


async def test_refused_resume_ends_the_stream_where_it_broke():
    worker = FakeWorker(break_at={2: WorkerLost("stops")})
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, worker)
        stream = client.generate(text="a", max_tokens=4)
        await anext(stream)
        router.no_places.append(ResumeRefused("its form was asked for"))
        with pytest.raises(GenerateError) as caught:
            await stream.text()
        assert (caught.value.reason, caught.value.next_index) == ("ResumeRefused", 2)


async def test_relayed_stream_goes_on_through_another_router_when_its_own_stops():
    first = FakeRouter(worker="w-0", break_at={2: WorkerLost("this router has stopped; send it to another one")})
    second = FakeRouter(worker="w-1")
    async with serving(first) as one, serving(second) as other, Client((one, other), KEY, direct=False) as client:
        assert await client.generate(text="a", max_tokens=4).text() == "w0 w1 w2 w3 "
    assert [(each.resume_from, each.resumed_text) for each in second.requests] == [(2, "w0 w1 ")]


async def test_router_that_does_not_answer_is_passed_over():
    router = FakeRouter()
    async with serving(router) as address, Client((NOWHERE, address), KEY, max_attempts=2) as client:
        assert await client.generate(text="a", max_tokens=2).text() == "w0 w1 "
        assert client.address == address
        assert [model.name for model in await client.models()] == ["llama-3.1-8b"]


@pytest.fixture
def nobody_answers(monkeypatch):
    """As if every peer were frozen with its connections open, once it sends nothing more."""

    async def never(_: grpc.aio.Channel) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(pulse, "LOOK_EVERY_S", 0.1)  # whoever takes 1.6 s on this machine is not meant
    monkeypatch.setattr(pulse, "_ask", never)


@pytest.mark.usefixtures("nobody_answers")
async def test_stream_leaves_a_worker_that_is_frozen_and_goes_on_at_another():
    frozen, sound = FakeWorker(worker="l4-0", hold_at=2), FakeWorker(worker="l4-1")
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, frozen, sound)
        stream = client.generate(text="a", max_tokens=5)
        assert await stream.text() == "w0 w1 w2 w3 w4 "
        assert (router.placed[1].resume_from, list(router.placed[1].avoid_workers)) == (2, ["l4-0"])
        await asyncio.wait_for(frozen.cancelled.wait(), 10)


@pytest.mark.usefixtures("nobody_answers")
async def test_relayed_stream_leaves_a_router_that_is_frozen_and_goes_on_through_another():
    frozen, sound = FakeRouter(hold_at=2), FakeRouter()
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serving(each)) for each in (frozen, sound)]
        client = await stack.enter_async_context(Client(addresses, KEY, direct=False))
        assert await client.generate(text="a", max_tokens=5).text() == "w0 w1 w2 w3 w4 "
        assert sound.requests[0].resume_from == 2


@pytest.mark.usefixtures("nobody_answers")
async def test_request_leaves_a_router_that_is_frozen_before_it_is_placed_and_is_placed_by_another():
    worker = FakeWorker(worker="l4-0")
    frozen = FakeRouter(frozen=True)
    async with AsyncExitStack() as stack:
        sound, _ = await direct_mesh(stack, worker)
        addresses = [await stack.enter_async_context(serving(each)) for each in (frozen, sound)]
        client = await stack.enter_async_context(Client(addresses, KEY, max_attempts=1))
        streams = [client.generate(text="a", max_tokens=2) for _ in range(3)]
        assert await asyncio.gather(*(each.text() for each in streams)) == ["w0 w1 "] * 3
        assert client.address == addresses[1], "one of them went on to it, and the others followed"
        assert {each.request_id for each in sound.placed} == {each.request_id for each in streams}
        assert [each.place_lost for each in sound.placed] == [True] * 3, "the frozen one may have placed it"
        await asyncio.wait_for(frozen.cancelled.wait(), 30)


@pytest.fixture
def answered(monkeypatch):
    """Who is silent is soon asked whether it lives, and may take its time; released with each answer."""
    answered, ask = asyncio.Semaphore(0), pulse._ask

    async def counted(channel: grpc.aio.Channel) -> None:
        await ask(channel)
        answered.release()

    monkeypatch.setattr(pulse, "LOOK_EVERY_S", SOON_S)
    monkeypatch.setattr(pulse, "ANSWER_LOOKS", 10**6)  # however slow this machine is
    monkeypatch.setattr(pulse, "_ask", counted)
    return answered


async def test_request_waits_for_a_router_that_is_slow_and_answers(monkeypatch, answered):
    monkeypatch.setattr(paths, "_PLACE_WITHIN_S", 600.0)
    slow = FakeRouter(frozen=True)
    async with serving(slow) as one, serving(FakeRouter()) as other, Client((one, other), KEY) as client:
        stream = client.generate(text="a", max_tokens=2)
        placing = asyncio.create_task(anext(stream))
        async with asyncio.timeout(60):
            for _ in range(5):
                await answered.acquire()
        assert not placing.done()
        assert (stream.attempts, client.address) == (1, one)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await placing


@pytest.mark.usefixtures("nobody_answers")
async def test_the_only_router_is_waited_for_however_silent_it_is():
    worker, placing = FakeWorker(), asyncio.Event()
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, worker)
        router.frozen = True
        router.on_place = placing.set
        stream = client.generate(text="a", max_tokens=2)
        text = asyncio.create_task(stream.text())
        await asyncio.wait_for(placing.wait(), 30)
        assert len(client._paths._pulse) == 0, "nobody asks whether it lives"
        router.thaw.set()
        assert await text == "w0 w1 "
        assert stream.attempts == 1


async def test_stream_stays_at_a_worker_that_is_silent_and_answers(answered):
    slow = FakeWorker(worker="l4-0", hold_at=2)
    async with AsyncExitStack() as stack:
        router, client = await direct_mesh(stack, slow, FakeWorker(worker="l4-1"))
        stream = client.generate(text="a", max_tokens=5)
        assert [(await anext(stream)).first_index for _ in range(2)] == [0, 1]
        third = asyncio.create_task(anext(stream))
        async with asyncio.timeout(30):
            for _ in range(5):
                await answered.acquire()
        assert not third.done()
        assert len(router.placed) == 1
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await third


async def test_explanation_is_sought_at_every_router():
    async with serving(FakeRouter()) as address, Client((NOWHERE, address), KEY) as client:
        assert (await client.explain("known")).picked_worker == "h100-0"


async def test_leaving_early_cancels_the_direct_stream():
    worker = FakeWorker(hold_at=1)
    async with AsyncExitStack() as stack:
        _, client = await direct_mesh(stack, worker)
        async with client.generate(text="a", max_tokens=3) as stream:
            assert (await anext(stream)).text == "w0 "
        async with asyncio.timeout(10):
            await worker.cancelled.wait()


async def test_channels_are_shared_and_those_unused_for_longest_are_closed():
    channels = Channels(most=2)
    first = channels.take("a:1")
    assert channels.take("a:1") is first
    channels.take("b:1")
    channels.take("c:1")
    assert len(channels) == 3, "all are in use"
    channels.give_back("b:1")
    assert len(channels) == 2
    channels.give_back("a:1")
    channels.give_back("a:1")
    assert channels.take("a:1") is first
    await channels.close()
    assert len(channels) == 0
    assert first.get_state() is grpc.ChannelConnectivity.SHUTDOWN


@pytest.mark.parametrize("address", ["", (), ("127.0.0.1:1", "")])
async def test_client_needs_an_address(address):
    with pytest.raises(ValueError, match="must be host:port"):
        Client(address, KEY)
