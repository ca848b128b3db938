"""The ways to the tokens of a request: straight from the worker that a router names, or relayed by the router.

In: a request, and what of the mesh can be reached. Out: `Leg`s, each one call that streams. Where a router hands out no
placements, or no worker was ever reached from here, requests are relayed for a while before placements are tried again.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from tokenworks.channels import Channels, connected, router_channel
from tokenworks.mending import Asked
from tokenworks.pulse import Heart, Pulse
from tokenworks.tracing import TRACEPARENT
from tokenworks.v1 import inference_pb2 as wire
from tokenworks.v1 import inference_pb2_grpc as rpc

PLACEMENT: Final = "x-tokenworks-placement"
_WORKER: Final = "x-tokenworks-worker"
_GENERATE: Final = "/tokenworks.v1.Worker/Generate"
_PLACE_WITHIN_S: Final = 10.0
_CONNECT_WITHIN_S: Final = 2.0
_RELAY_FOR_S: Final = 30.0
_MOST_DEADLINE_MS: Final = (1 << 32) - 1


@dataclass(slots=True)
class Leg:
    """One call that streams tokens of a request.

    Attributes:
        worker, accelerator, tokenizer: of who serves it, as far as is known.
        first_index: of its first token.
        heart: of the other end; whoever reads a message of it says so there.
        answered: a message came.
        given_up: nothing is to be expected of it: its other end is silent, and does not answer when it is asked.
        release: gives back what the call holds.
    """

    call: Any
    asked: Asked
    first_index: int
    worker: str = ""
    accelerator: str = ""
    tokenizer: str = ""
    address: str = ""
    heart: Heart | None = None
    answered: bool = False
    given_up: bool = False
    release: Callable[[], None] = field(default=lambda: None)

    async def serving(self) -> str:
        """The worker's name; empty where nobody has said."""
        if not self.worker and self.answered:
            said: Any = await self.call.initial_metadata()
            self.worker = str(dict(said).get(_WORKER, ""))
        return self.worker

    def give_up(self) -> None:
        """Whoever reads it is told, by the call's cancellation."""
        self.given_up = True
        self.call.cancel()

    def end(self) -> None:
        """The call is over, or is to be."""
        self.call.cancel()
        self.release()
        self.release = lambda: None


class WorkerUnreachable(Exception):
    """No connection came about to the worker of `leg`, which was placed there."""

    def __init__(self, leg: Leg) -> None:
        super().__init__(f"no connection to worker {leg.worker!r} at {leg.address}")
        self.leg = leg


class RouterSilent(Exception):
    """The router at `address` was asked for a place, and neither answers nor shows that it lives."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} is silent, and does not answer either")
        self.address = address


def being_cancelled() -> bool:
    """Whether it is the task that runs which is to end, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Paths:
    """One client's ways.

    Args:
        addresses: routers, the preferred one first.
        direct: whether to ask for placements at all.
        now_s: a monotonic clock.

    Attributes:
        authorization: metadata of every call to a router.
        reaches_workers: a worker has streamed to here.
    """

    def __init__(self, addresses: Sequence[str], key: str, *, direct: bool, now_s: Callable[[], float]) -> None:
        # HTTP/2 lets no value end in a blank: without a key it must still be one that is refused as such.
        self.authorization = ("authorization", f"Bearer {key}".rstrip())
        self.reaches_workers = False
        self._addresses = addresses
        self._routers = [router_channel(each) for each in addresses]
        self._stubs: list[Any] = [rpc.RouterStub(each) for each in self._routers]  # type: ignore[no-untyped-call]  # generated
        self._current = 0
        self._silent = 0  # routers in a row that could not serve
        self._direct = direct
        self._relay_until_s = float("-inf")
        self._now_s = now_s
        self._workers = Channels()
        self._pulse = Pulse()
        self._routers[0].get_state(try_to_connect=True)

    @property
    def address(self) -> str:
        """Of the router asked at present."""
        return self._addresses[self._current]

    @property
    def router(self) -> Any:
        """Its stub."""
        return self._stubs[self._current]

    @property
    def routers(self) -> Sequence[Any]:
        """All stubs, that of the router asked at present first."""
        return [*self._stubs[self._current :], *self._stubs[: self._current]]

    @property
    def channel(self) -> grpc.aio.Channel:
        return self._routers[self._current]

    async def open(
        self,
        request: wire.GenerateRequest,
        traceparent: str,
        timeout_s: float,
        *,
        relayed: bool,
        calling: Callable[[Any], None],
    ) -> Leg:
        """Begins a leg.

        Args:
            relayed: through the router, whatever else is possible.
            calling: gets the call that is waited for, so that it can be cancelled.

        Raises:
            grpc.aio.AioRpcError: the router placed nothing.
            RouterSilent: it says nothing, and there is another one.
            WorkerUnreachable: it named a worker that can't be reached from here.
        """
        metadata = (self.authorization, (TRACEPARENT, traceparent))
        if relayed or not self._direct or self._now_s() < self._relay_until_s:
            call = self.router.Generate(request, timeout=timeout_s, metadata=metadata)
            calling(call)
            leg = Leg(call, Asked.A_ROUTER, request.resume_from, address=self.address)
            self._listen(leg, self.channel)
            return leg
        request.deadline_ms = min(_MOST_DEADLINE_MS, max(1, round(timeout_s * 1000)))
        asking = self.router.Place(request, timeout=min(timeout_s, _PLACE_WITHIN_S), metadata=metadata)
        calling(asking)
        placement = await self._placement(asking)
        self._silent = 0
        address = placement.address
        leg = Leg(
            asking,
            Asked.A_WORKER,
            request.resume_from,
            placement.worker,
            placement.accelerator,
            placement.tokenizer,
            address,
            release=lambda: self._workers.give_back(address),
        )
        channel = self._workers.take(address)
        if not await connected(channel, _CONNECT_WITHIN_S):
            raise WorkerUnreachable(leg)
        stream = channel.unary_stream(
            _GENERATE,
            request_serializer=wire.GenerateRequest.SerializeToString,
            response_deserializer=wire.GenerateResponse.FromString,
        )
        leg.call = stream(
            request, timeout=timeout_s, metadata=((PLACEMENT, placement.token), (TRACEPARENT, traceparent))
        )
        calling(leg.call)
        self._listen(leg, channel)
        return leg

    def answered(self, leg: Leg) -> None:
        """The first message of a leg came."""
        leg.answered = True
        if leg.asked is Asked.A_WORKER:
            self.reaches_workers = True
        else:
            self._silent = 0

    def no_placements(self) -> None:
        """Placements lead nowhere from here: requests are relayed for a while."""
        self._relay_until_s = self._now_s() + _RELAY_FOR_S

    def next_router(self, failed: str) -> bool:
        """The router at that address could not serve: the next is asked from here on, unless another stream has seen
        to it; False when all of them were asked lately."""
        if failed == self.address:
            self._current = (self._current + 1) % len(self._addresses)
            self._silent += 1
        return self._silent < len(self._addresses)

    async def _placement(self, asking: Any) -> wire.Placement:
        """The router's answer, as long as it lives; where it is the only one, it is waited for in any case."""
        if len(self._addresses) == 1:
            alone: wire.Placement = await asking
            return alone
        address, left = self.address, False

        def leave() -> None:
            nonlocal left
            left = True
            asking.cancel()

        heart = self._pulse.begin(address, self.channel, leave)
        try:
            placement: wire.Placement = await asking
        except asyncio.CancelledError:
            if left and not being_cancelled():
                raise RouterSilent(address) from None
            raise
        finally:
            self._pulse.end(address, leave)
        heart.heard += 1
        return placement

    def _listen(self, leg: Leg, channel: grpc.aio.Channel) -> None:
        """Watches over the other end of a leg until it is released."""
        leg.heart = self._pulse.begin(leg.address, channel, leg.give_up)
        release = leg.release

        def end() -> None:
            self._pulse.end(leg.address, leg.give_up)
            release()

        leg.release = end

    async def close(self) -> None:
        for each in self._routers:
            await each.close(None)
        await self._workers.close()
