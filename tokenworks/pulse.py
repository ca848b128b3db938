"""Whether the other end of running streams still lives, where nothing has come from it for a while.

A process that is frozen, or whose host is cut off, keeps its connections and sends nothing; so does one whose engine is
slow, or whose queue is long. The latter answers when it is asked: every server of the mesh has gRPC's health service,
and any answer of it will do. So an address that has sent nothing for `SILENT_LOOKS` is asked, and one that neither
answers nor sends anything for `ANSWER_LOOKS` more is given up, with every stream from there: within 4 s, where HTTP/2's
own pings take 10. Looks are counted, not seconds: a program that keeps its event loop busy misses looks, and gives
nobody up for what it could not hear.

In: addresses with the streams from there, and what is heard. Out: streams given up, each told by its own callback.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import grpc

LOOK_EVERY_S: Final = 0.25
SILENT_LOOKS: Final = 4
ANSWER_LOOKS: Final = 12
_FORGET_AFTER_S: Final = 30.0  # much longer than it is waited for
_CHECK: Final = "/grpc.health.v1.Health/Check"


class Heart:
    """One address; whoever hears from it adds to `heard`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.heard = 0
        self._channel = channel
        self._give_up: set[Callable[[], None]] = set()
        self._known = 0
        self._looks = 0  # since something was heard, or answered
        self._asking: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Streams from there."""
        return len(self._give_up)

    def add(self, give_up: Callable[[], None]) -> None:
        """A stream begins; `give_up` is called when nothing more is to be expected of it."""
        if not self._give_up:
            self._looks = 0
        self._give_up.add(give_up)

    def remove(self, give_up: Callable[[], None]) -> None:
        """A stream is over."""
        self._give_up.discard(give_up)
        if not self._give_up:
            self._ask_no_more()

    def look(self) -> None:
        """Asks where it has been silent for long, and gives up where that was in vain; called at even intervals."""
        asking = self._asking
        if self.heard != self._known or (asking is not None and asking.done()):
            self._known, self._looks = self.heard, 0
            self._ask_no_more()
            return
        self._looks += 1
        if asking is None:
            if self._looks >= SILENT_LOOKS:
                self._asking = asyncio.get_running_loop().create_task(_ask(self._channel))
        elif self._looks >= SILENT_LOOKS + ANSWER_LOOKS:
            self._ask_no_more()
            self._looks = 0
            for give_up in list(self._give_up):
                give_up()

    def _ask_no_more(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None


class Pulse:
    """All addresses that streams come from. Make it inside the event loop that uses it."""

    def __init__(self) -> None:
        self._hearts: dict[str, Heart] = {}
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._hearts)

    def begin(self, address: str, channel: grpc.aio.Channel, give_up: Callable[[], None]) -> Heart:
        """A stream from `address` begins; end it with `end`."""
        heart = self._hearts.get(address)
        if heart is None:
            heart = self._hearts[address] = Heart(channel)
        heart.add(give_up)
        if self._looking is None:
            self._looking = self._loop.call_later(LOOK_EVERY_S, self._look)
        return heart

    def end(self, address: str, give_up: Callable[[], None]) -> None:
        heart = self._hearts.get(address)
        if heart is not None:
            heart.remove(give_up)
            if not heart:
                del self._hearts[address]

    def _look(self) -> None:
        self._looking = None
        for heart in list(self._hearts.values()):
            heart.look()
        if self._hearts:
            self._looking = self._loop.call_later(LOOK_EVERY_S, self._look)


async def _ask(channel: grpc.aio.Channel) -> None:
    """Returns when there is an answer, whichever."""
    check: Any = channel.unary_unary(_CHECK, request_serializer=bytes, response_deserializer=bytes)
    with suppress(grpc.aio.AioRpcError):  # it refuses, or the connection broke, which its streams notice by themselves
        await check(b"", timeout=_FORGET_AFTER_S)  # an empty message asks for the server as a whole
