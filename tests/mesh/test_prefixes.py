"""Prefix affinity, end to end: a conversation goes back to where its beginning is cached, as long as it is cached."""

from typing import Any

import pytest

from services.mesh.prefix_chain import Chain, chain_of_text
from services.router.core.fleet import Fleet
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import MODEL, LocalMesh, eventually, simulated
from tokenworks import Client, Result
from tokenworks.v1 import inference_pb2

pytestmark = pytest.mark.mesh

SYSTEM = "You answer questions about the plays of William Shakespeare, briefly and in verse. " * 40
TURN = " And what does the fool say to the king when the storm is over? " * 5


async def ask(client: Client, **prompt: Any) -> tuple[Result, inference_pb2.Candidate]:
    """One answer, and why it was made where it was."""
    async with client.generate(model=MODEL, max_tokens=8, ignore_eos=True, **prompt) as generation:
        async for _ in generation:
            pass
    assert generation.result is not None
    explained = await client.explain(generation.result.request_id)
    picked = next(each for each in explained.candidates if each.worker == explained.picked_worker)
    return generation.result, picked


def fleet(mesh: LocalMesh) -> Fleet:
    found = mesh.parts["router"].running.fleet
    assert isinstance(found, Fleet)
    return found


async def told(mesh: LocalMesh, worker: str, chain: Chain, *, held: bool) -> None:
    """Waits until the router knows from the worker itself that it holds most of the chain, or nothing of it."""

    async def known() -> bool:
        known = fleet(mesh).worker(worker)
        if known is None or not fleet(mesh).prefixes.believes(known.slot):
            return False
        share = dict(fleet(mesh).prefixes.expected(MODEL, chain, 1000).each()).get(known.slot, 0.0)
        return share > 500 if held else share == 0

    await eventually(known, f"{worker} has told that it {'holds' if held else 'dropped'} the prompt")


async def started(start_mesh: StartMesh) -> LocalMesh:
    """Three workers alike, none of which is tried any more because nothing was known of it."""
    mesh = await start_mesh(*[simulated(f"h100-{index}") for index in range(3)])
    client = mesh.client()

    async def all_tried() -> bool:
        await ask(client, text="river")
        return bool((fleet(mesh).models[MODEL].tried_s > 0).all())

    await eventually(all_tried, "every worker was tried")
    return mesh


async def test_a_conversation_goes_back_to_the_worker_that_holds_it(start_mesh: StartMesh) -> None:
    mesh = await started(start_mesh)
    client, text = mesh.client(), SYSTEM
    first, _ = await ask(client, text=text)
    home = first.segments[0].worker
    await told(mesh, home, chain_of_text("local", MODEL, text), held=True)
    for _ in range(4):
        text += TURN
        result, picked = await ask(client, text=text)
        assert [each.worker for each in result.segments] == [home]
        assert result.cached_prompt_tokens > 500
        assert picked.expected_cached_tokens == pytest.approx(result.cached_prompt_tokens, rel=0.2)
        assert picked.prefix_saving_usd > 0


async def test_a_chat_that_goes_on_finds_its_messages_cached(start_mesh: StartMesh) -> None:
    mesh = await started(start_mesh)
    client = mesh.client()
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TURN}]
    homes = set()
    for _ in range(4):
        result, picked = await ask(client, chat=chat)
        homes.add(result.segments[0].worker)
        chat += [{"role": "assistant", "content": "The rain it raineth every day."}, {"role": "user", "content": TURN}]
    assert len(homes) == 1
    assert result.cached_prompt_tokens > 500
    assert picked.prefix_saving_usd > 0


async def test_what_a_worker_threw_away_is_expected_there_no_longer(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(simulated("l4-0", "nvidia-l4", speed=200.0))
    client = mesh.client()
    chain = chain_of_text("local", MODEL, SYSTEM)
    await ask(client, text=SYSTEM)
    await told(mesh, "l4-0", chain, held=True)
    _, picked = await ask(client, text=SYSTEM)
    assert picked.expected_cached_tokens > 500
    for word in ("river", "mountain", "garden", "window", "letter", "summer", "winter", "music"):
        await ask(client, text=f"{word} " * 7_500)  # eight of these do not fit into the cache together
    await told(mesh, "l4-0", chain, held=False)
    result, picked = await ask(client, text=SYSTEM)
    assert (picked.expected_cached_tokens, picked.prefix_saving_usd, result.cached_prompt_tokens) == (0, 0, 0)


async def test_a_worker_that_starts_anew_is_expected_to_hold_nothing(start_mesh: StartMesh) -> None:
    settings = simulated("h100-0")
    mesh = await start_mesh(settings)
    client = mesh.client()
    await ask(client, text=SYSTEM)
    await told(mesh, "h100-0", chain_of_text("local", MODEL, SYSTEM), held=True)
    before = fleet(mesh).worker("h100-0")
    await mesh.stop_part("h100-0")
    await mesh.start_worker(settings)

    async def anew() -> bool:
        known = fleet(mesh).worker("h100-0")
        return known is not None and known is not before and bool(known.beat.state == "ready") and known.linked

    await eventually(anew, "the router knows the worker's new start")
    _, picked = await ask(client, text=SYSTEM)
    assert picked.expected_cached_tokens == 0
