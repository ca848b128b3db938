"""What a worker tells routers of its prefix cache: from a real engine's blocks, numbered without gaps, and never a
dead engine's."""

from typing import Any

from services.mesh.accelerators import load_catalogue
from services.mesh.clock import FakeClock, SystemClock
from services.mesh.events import Event, PrefixesChanged
from services.mesh.prefix_chain import chain_of_chat, chain_of_text, chain_of_token_ids
from services.router.requests import asked_of
from services.worker.core.simulation import prompt_ids
from services.worker.engine import BlockChange, BlockKind, OnBlocks
from services.worker.engines.simulated import SimulatedEngine
from services.worker.identity import Identity
from services.worker.prefixes import ANEW_EVERY_S, Prefixes, chain_of
from services.worker.requests import relayed
from tests.unit.worker.test_simulated_engine import Started, settings
from tests.unit.worker.waiting import until
from tokenworks.v1 import inference_pb2 as pb

WHO = Identity(worker="w", pool="p", accelerator=load_catalogue().accelerator("nvidia-h100-sxm"), epoch="e1")
TEXT = "The quality of mercy is not strained, it droppeth as the gentle rain from heaven. " * 20


class KeepingBus:
    """Takes events; the rest of the Bus is not asked of it."""

    def __init__(self) -> None:
        self.events: list[PrefixesChanged] = []

    def publish(self, event: Event) -> None:
        assert isinstance(event, PrefixesChanged)
        self.events.append(event)


class BlockEngine:
    """An engine of which only the blocks are of interest."""

    def __init__(self) -> None:
        self.on_blocks: OnBlocks = lambda _: None

    def watch_blocks(self, on_blocks: OnBlocks) -> None:
        self.on_blocks = on_blocks


def order(text: str = TEXT) -> Any:
    request = pb.GenerateRequest(request_id="r", model="llama-3.1-8b", text=text)
    return relayed(pb.OpenStream(stream=1, tenant="acme", request=request), 1, 8192)


def cleared() -> list[BlockChange]:
    return [BlockChange(kind=BlockKind.CLEARED)]


def test_router_and_worker_make_the_same_chain_of_every_form_of_prompt() -> None:
    chat = pb.Chat(
        messages=[
            pb.ChatMessage(role="user", content=TEXT),
            pb.ChatMessage(role="assistant", content="", tool_calls_json='[{"id": "1"}]'),
            pb.ChatMessage(role="tool", content=TEXT, tool_call_id="1", name="quote"),
        ]
    )
    forms = (
        {"text": TEXT},
        {"token_ids": pb.TokenIds(ids=range(500))},
        {"chat": chat},
        {"chat": chat, "tools_json": '[{"type": "function"}]'},
    )
    seen = set()
    for form in forms:
        request = pb.GenerateRequest(request_id="r", model="m", **form)  # type: ignore[arg-type]
        asked = asked_of(request, "acme")
        served = chain_of(relayed(pb.OpenStream(stream=1, tenant="acme", request=request), 1, 8192))
        assert asked.prompt.chain == served
        assert served.links
        seen.add(served.links)
    assert len(seen) == len(forms)
    assert chain_of_text("acme", "m", TEXT).links in seen
    assert chain_of_token_ids("acme", "m", range(500)).links in seen
    assert chain_of_chat("acme", "m", [("user", TEXT)]).links[0] in {links[0] for links in seen}


def test_a_worker_tells_everything_first_then_changes_and_everything_anew_now_and_then() -> None:
    clock, bus = FakeClock(), KeepingBus()
    as_bus: Any = bus
    prefixes, engine = Prefixes(WHO, clock), BlockEngine()
    as_engine: Any = engine
    assert prefixes.watch(as_engine) is engine
    prefixes.tell(as_bus)
    prefixes.tell(as_bus)
    assert [(each.sequence, each.reset, each.held) for each in bus.events] == [(1, True, ())]
    ids = tuple(range(4096))
    prefixes.prompted(order(), ids)
    stored = BlockChange(
        kind=BlockKind.STORED, hashes=tuple(range(1, 257)), token_ids=ids, block_tokens=16, model="llama-3.1-8b"
    )
    engine.on_blocks([stored])
    prefixes.tell(as_bus)
    chain = chain_of(order())
    assert (bus.events[-1].sequence, bus.events[-1].reset, bus.events[-1].held) == (2, False, chain.links)
    clock.advance(ANEW_EVERY_S * 1.3)
    prefixes.tell(as_bus)
    assert (bus.events[-1].sequence, bus.events[-1].reset, bus.events[-1].held) == (3, True, chain.links)
    engine.on_blocks([BlockChange(kind=BlockKind.REMOVED, hashes=(1,))])
    prefixes.tell(as_bus)
    assert bus.events[-1].dropped == chain.links[:1]
    assert {(each.worker, each.epoch) for each in bus.events} == {("w", "e1")}


def test_an_engine_in_place_of_a_dead_one_holds_nothing_and_the_dead_one_is_not_heard() -> None:
    bus = KeepingBus()
    as_bus: Any = bus
    prefixes, dead, alive = Prefixes(WHO, FakeClock()), BlockEngine(), BlockEngine()
    for engine in (dead, alive):
        as_engine: Any = engine
        prefixes.watch(as_engine)
        prefixes.tell(as_bus)
    dead.on_blocks(cleared())
    prefixes.tell(as_bus)
    assert [(each.sequence, each.reset) for each in bus.events] == [(1, True), (2, True)]


def test_a_worker_whose_engine_reports_no_blocks_says_nothing() -> None:
    bus = KeepingBus()
    as_bus: Any = bus
    silent: Any = object()
    prefixes = Prefixes(WHO, FakeClock())
    prefixes.watch(silent)
    prefixes.tell(as_bus)
    assert not bus.events


async def test_the_simulated_engine_tells_a_prompts_ids_once_and_the_blocks_that_it_stored() -> None:
    engine, changes = SimulatedEngine(settings(), SystemClock()), list[BlockChange]()
    engine.watch_blocks(changes.extend)
    started = Started(engine)
    await engine.start(started.on_step, started.failures.append)
    request = order().engine
    try:
        await engine.submit(request)
        await until(lambda: started.finish(1) is not None and bool(changes), "it ended and has told of its blocks")
    finally:
        await engine.stop(0.0)
    told = [list(each.prompt_token_ids) for each in started.outputs if each.prompt_token_ids]
    assert told == [prompt_ids(request.prompt)]
    assert started.outputs[0].prompt_token_ids
    first = changes[0]
    assert (first.kind, first.parent, first.model) == (BlockKind.STORED, None, "llama-3.1-8b")
    assert list(first.token_ids) == told[0][: len(first.hashes) * first.block_tokens]
