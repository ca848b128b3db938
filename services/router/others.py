"""The other routers of the mesh, on this machine and elsewhere: routers agree through events, none leads.

In: what this router placed, and what the others say they did. Out: `PlacementsMade`, at most twenty times a second; the
others' placements in this router's view of the fleet, until heartbeats show them; and answers of others about requests
that this router does not know. A router may be one of several processes that share a port, so each also answers at an
address of its own.
"""

import asyncio
from typing import Final

import grpc

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.events import PlacedAtWorker, PlacementsMade, TenantSpending
from services.mesh.money import NUSD_PER_USD
from services.mesh.rpc import open_channel
from services.mesh.subjects import ROUTERS
from services.router.core.fleet import Fleet
from services.router.core.tally import Tally
from services.router.room import Room
from tokenworks.v1 import inference_pb2 as wire
from tokenworks.v1 import inference_pb2_grpc

ASKED_BY: Final = "x-tokenworks-asked-by"  # a router, which has asked all others itself
_SAY_EVERY_S: Final = 0.05
_SILENT_S: Final = 1.0  # at most, between two words of a router
_GONE_AFTER_S: Final = 5.0
_ANSWER_S: Final = 2.0
_MOST_OTHERS: Final = 1024


class Others:
    """One router's view of the others.

    Args:
        router: this one's id.
        tally: of its placements; emptied here.
        room: where its requests wait; what its tenants spend is shared with the others.
    """

    def __init__(self, router: str, tally: Tally, fleet: Fleet, *, room: Room, bus: Bus, clock: Clock) -> None:
        self._router = router
        self._tally = tally
        self._fleet = fleet
        self._room = room
        self._bus = bus
        self._clock = clock
        self._addresses: dict[str, tuple[str, float]] = {}  # and when it was heard of

    async def speak(self, address: str) -> None:
        """Runs until cancelled: tells the others. `address` is where this router alone answers, `host:port`."""
        said_s = float("-inf")
        while True:
            if self._tally or self._clock.monotonic_s() - said_s >= _SILENT_S:
                said_s = self._clock.monotonic_s()
                self._bus.publish(
                    PlacementsMade(
                        router=self._router,
                        address=address,
                        placed=tuple(
                            PlacedAtWorker(
                                worker=worker,
                                epoch=epoch,
                                requests=made.requests,
                                prefill_tokens=made.prefill_tokens,
                                prompt_tokens=made.prompt_tokens,
                            )
                            for (worker, epoch), made in self._tally.take()
                        ),
                        at_unix_ms=self._clock.unix_ms(),
                        spent=tuple(
                            TenantSpending(tenant=tenant, spent_nusd=round(usd * NUSD_PER_USD))
                            for tenant, usd in self._room.fairness.take_untold().items()
                        ),
                        waiting=len(self._room),
                        refused=self._room.take_refused(),
                    )
                )
            await asyncio.sleep(_SAY_EVERY_S)

    async def listen(self) -> None:
        """Runs until cancelled: takes in what the others say."""
        await self._bus.watch([ROUTERS], self._fold)

    def addresses(self) -> list[str]:
        """Where the others answer that were heard of lately."""
        now_s = self._clock.monotonic_s()
        return [address for address, heard_s in self._addresses.values() if now_s - heard_s <= _GONE_AFTER_S]

    async def explain(self, request: wire.ExplainRequest, authorization: str) -> wire.Explanation | None:
        """What another router knows of a request; None when none of them does.

        Args:
            authorization: as the caller sent it: they answer it about its own requests only.
        """
        asking = [asyncio.create_task(self._ask(each, request, authorization)) for each in self.addresses()]
        try:
            for answer in asyncio.as_completed(asking):
                if (found := await answer) is not None:
                    return found
            return None
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, address: str, request: wire.ExplainRequest, authorization: str) -> wire.Explanation | None:
        metadata = (("authorization", authorization), (ASKED_BY, self._router))
        async with open_channel(address) as channel:
            stub = inference_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]
            try:
                answer: wire.Explanation = await stub.Explain(request, metadata=metadata, timeout=_ANSWER_S)
            except grpc.aio.AioRpcError:  # it does not know, or is gone
                return None
            return answer

    async def _fold(self, delivered: Delivered) -> None:
        event = delivered.event
        if not isinstance(event, PlacementsMade) or event.router == self._router:
            return
        now_s = self._clock.monotonic_s()
        if event.router not in self._addresses and len(self._addresses) >= _MOST_OTHERS:
            self._addresses.pop(next(iter(self._addresses)))
        self._addresses[event.router] = event.address, now_s
        for each in event.placed:
            self._fleet.placed_by_others(
                each.worker,
                each.epoch,
                requests=each.requests,
                prefill_tokens=each.prefill_tokens,
                prompt_tokens=each.prompt_tokens,
                now_s=now_s,
            )
        for spending in event.spent:
            self._room.fairness.placed_by_others(spending.tenant, spending.spent_nusd / NUSD_PER_USD, now_s)
