"""What the engine's prefix cache holds, told to the routers: `PrefixesChanged` on the bus.

In: the blocks of engines that report them, the prompts that they computed. Out: links held and dropped, a few times a
second; and everything anew now and then, since the bus may lose a message and a router may start late. A worker whose
engine reports no blocks says nothing, and routers go by what they sent it.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.events import PrefixesChanged
from services.mesh.prefix_chain import NO_CHAIN, Chain, chain_of_chat, chain_of_text, chain_of_token_ids
from services.worker.core.prefix_view import PrefixView
from services.worker.engine import BlockChange, Engine, ReportsBlocks
from services.worker.identity import Identity
from services.worker.requests import Order

INTERVAL_S: Final = 0.1
ANEW_EVERY_S: Final = 30.0
_SPREAD: Final = 0.25  # workers that started together shall not all tell everything together


class Prefixes:
    """The prefix cache of one worker, whichever its engine is at the moment."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock
        self._view = PrefixView()
        self._reporting: Engine | None = None
        self._sequence = 0
        self._changed = asyncio.Event()
        place = int.from_bytes(identity.epoch.encode()[-2:], "big") % 1000 / 1000
        self._anew_every_s = ANEW_EVERY_S * (1 + _SPREAD * place)
        self._told_all_s = clock.monotonic_s()

    def watch(self, engine: Engine) -> Engine:
        """Listens to an engine that has not started, in place of the one before; gives it back."""
        self._view.clear()
        self._reporting = None
        if isinstance(engine, ReportsBlocks):
            self._reporting = engine
            engine.watch_blocks(partial(self._blocks_changed, engine))
            self._changed.set()
        return engine

    def prompted(self, order: Order, token_ids: Sequence[int]) -> None:
        """The order's prompt is being computed, as these tokens."""
        self._view.prompted(order.engine.model, chain_of(order), token_ids)
        self._changed.set()

    async def run(self, bus: Bus) -> None:
        """Tells until cancelled."""
        while True:
            if self._reporting is None:
                await self._changed.wait()
            try:
                async with asyncio.timeout(self._anew_every_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            self.tell(bus)
            await asyncio.sleep(INTERVAL_S)

    def tell(self, bus: Bus) -> None:
        """Publishes what has changed since the last time."""
        if self._reporting is None:
            return
        now_s = self._clock.monotonic_s()
        if now_s - self._told_all_s >= self._anew_every_s:
            self._view.announce_all()
        changes = self._view.take()
        if changes is None:
            return
        if changes.reset:
            self._told_all_s = now_s
        self._sequence += 1
        bus.publish(
            PrefixesChanged(
                worker=self._identity.worker,
                epoch=self._identity.epoch,
                sequence=self._sequence,
                reset=changes.reset,
                held=changes.held,
                dropped=changes.dropped,
                at_unix_ms=self._clock.unix_ms(),
            )
        )

    def _blocks_changed(self, engine: Engine, changes: Sequence[BlockChange]) -> None:
        if engine is self._reporting:  # one that could not be stopped has nothing to say any more
            self._view.changed(changes)
            self._changed.set()


def chain_of(order: Order) -> Chain:
    """The chain of an order's prompt, as its router made it."""
    tenant, model, prompt = order.tenant, order.engine.model, order.engine.prompt
    if prompt.text is not None:
        return chain_of_text(tenant, model, prompt.text)
    if prompt.token_ids is not None:
        return chain_of_token_ids(tenant, model, prompt.token_ids)
    if prompt.chat is not None:
        return chain_of_chat(tenant, model, prompt.chat, order.engine.tools_json)
    return NO_CHAIN
