import asyncio

from services.cli.casting import Arrival
from services.cli.traffic import Player
from services.mesh.errors import EngineFailed, QueueFull
from services.twin.traces import TraceRequest
from tests.unit.client.fake_router import KEY, FakeRouter, serving
from tokenworks import Client


def arrival(index=0, at_s=0.0, tokens=3, **fields):
    request = TraceRequest(arrival_s=at_s, prompt_tokens=20, completion_tokens=tokens, **fields)
    return Arrival(index=index, request=request, tenant="local", workload="w", slo_class="batch", model="m")


async def play(router, arrivals, **settings):
    outcomes = []
    async with serving(router) as address, Client(address, KEY) as client, asyncio.timeout(20):
        player = Player({"local": client}, outcomes.append, speed=1000.0, **settings)
        await player.play(arrivals)
    return outcomes, player


async def test_every_arrival_has_one_outcome_with_what_the_client_saw():
    router = FakeRouter()
    outcomes, player = await play(router, [arrival(index, index * 1.0) for index in range(5)])
    assert [each.completion_tokens for each in outcomes] == [3] * 5
    assert (player.sent, player.open, player.tokens) == (5, 0, 15)
    first = outcomes[0]
    assert (first.reason, first.error, first.price_nusd, first.prompt_tokens) == ("length", "", 1234, 20)
    assert first.segments == (("h100-0", "nvidia-h100-sxm", 3),)
    assert first.ttft_s is not None
    assert first.tpot_s is not None
    assert len({each.trace_id for each in outcomes}) == 5


async def test_recorded_lengths_are_asked_for_exactly():
    router = FakeRouter()
    await play(router, [arrival(tokens=7), arrival(index=1, tokens=2)])
    asked = sorted((each.sampling.max_tokens, each.sampling.ignore_eos) for each in router.requests)
    assert asked == [(2, True), (7, True)]
    assert all(len(each.token_ids.ids) == 20 for each in router.requests)


async def test_prompts_for_models_of_several_tokenizers_are_words_as_many_as_the_trace_says():
    router = FakeRouter()
    await play(router, [arrival(), arrival(index=1, session_id="s"), arrival(index=2, session_id="s")], in_words={"m"})
    texts = [each.text for each in sorted(router.requests, key=lambda each: each.session_id)]
    assert [len(text.split(" ")) for text in texts] == [20] * 3
    assert texts[1] == texts[2] != texts[0]
    assert all(each.sampling.ignore_eos for each in router.requests)


async def test_words_of_a_trace_are_sent_as_chat_and_may_end_early():
    router = FakeRouter()
    await play(router, [arrival(prompt="Why?")])
    assert router.requests[0].chat.messages[0].content == "Why?"
    assert not router.requests[0].sampling.ignore_eos


async def test_arrivals_do_not_wait_for_answers():
    router = FakeRouter(hold_at=1)
    async with serving(router) as address, Client(address, KEY) as client, asyncio.timeout(20):
        player = Player({"local": client}, lambda outcome: None)
        playing = asyncio.create_task(player.play([arrival(index) for index in range(4)]))
        for _ in range(4):
            await router.arrived.acquire()
        assert player.open == 4
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        await router.cancelled.wait()


async def test_refusals_and_breaks_are_outcomes_too():
    router = FakeRouter(break_at={2: EngineFailed("gone")})
    router.refusals.append(QueueFull("full"))
    outcomes, _ = await play(router, [arrival()])
    outcomes += (await play(router, [arrival()]))[0]
    refused, broken = outcomes
    assert (refused.reason, refused.completion_tokens, refused.ttft_s) == ("QueueFull", 0, None)
    assert (broken.reason, broken.completion_tokens, broken.error) == ("EngineFailed", 2, "gone")


async def test_stopped_player_sends_nothing_more():
    router = FakeRouter()
    async with serving(router) as address, Client(address, KEY) as client, asyncio.timeout(20):
        player = Player({"local": client}, lambda outcome: player.stop())
        await player.play(arrival(index, index * 0.2) for index in range(10_000))
    assert player.sent < 10_000
