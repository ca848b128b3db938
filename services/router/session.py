"""One worker's `Session`: all of this router's requests there share one stream, one frame per engine step.

In: streams to open and to cancel. Out: each stream's chunks to its recipient, in order, and its loss when the session
breaks. A session is opened when its worker is first heard of and opened again, with growing pauses, whenever it breaks;
so a request finds it warm. Nothing here knows what a request is.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import grpc

from services.mesh.errors import InvariantBroken, TokenworksError, WorkerLost
from services.mesh.rpc import MESH_SECRET, error_of, open_channel
from tokenworks.v1 import inference_pb2 as wire

log = logging.getLogger(__name__)

ROUTER_ID: Final = "x-tokenworks-router"
_EOF: Final = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in its stubs
_METHOD: Final = "/tokenworks.v1.Worker/Session"
_CONNECT_TIMEOUT_S: Final = 2.0
_WRITE_TIMEOUT_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class Recipient(Protocol):
    """Who a stream's chunks are for. Neither method awaits or raises."""

    def chunk(self, chunk: wire.StreamChunk) -> None:
        """The next chunk; none follows one that is `last`."""

    def lost(self, error: TokenworksError) -> None:
        """The session broke; no chunk follows."""


class WorkerSession:
    """The session to one worker at one address.

    Args:
        on_link: called with True when the session stands and with False when it broke or could not be opened.
    """

    def __init__(self, worker: str, address: str, router: str, secret: str, on_link: Callable[[bool], None]) -> None:
        self.worker = worker
        self.address = address
        self._metadata = ((ROUTER_ID, router), *(((MESH_SECRET, secret),) if secret else ()))
        self._on_link = on_link
        self._recipients: dict[int, Recipient] = {}
        self._last_number = 0
        # Bounded by what the router admits: a request is in here at most as one open and one cancel.
        self._outgoing: deque[wire.SessionRequest] = deque()
        self._something_to_say = asyncio.Event()

    @property
    def recipients(self) -> list[Recipient]:
        """Those with a stream here."""
        return list(self._recipients.values())

    def open(self, recipient: Recipient, stream: wire.OpenStream) -> int:
        """Opens a stream and gives it its number; if the worker can't be reached, the recipient loses it."""
        self._last_number += 1
        stream.stream = self._last_number
        self._recipients[self._last_number] = recipient
        self._say(wire.SessionRequest(open=stream))
        return self._last_number

    def cancel(self, number: int, reason: str) -> None:
        """Ends a stream; its recipient gets nothing more. A stream that has ended is left alone."""
        if self._recipients.pop(number, None) is not None:
            self._say(wire.SessionRequest(cancel=wire.CancelStream(stream=number, reason=reason)))

    async def run(self) -> None:
        """Keeps the session open until cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            stood = False
            try:
                channel = open_channel(self.address)
                try:
                    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                        call = await self._connect(channel)
                    stood = True
                    self._on_link(True)
                    await self._converse(call)
                    error: TokenworksError = WorkerLost(f"worker {self.worker!r} closed its session")
                finally:
                    await channel.close(None)
            except TimeoutError:
                error = WorkerLost(f"worker {self.worker!r} at {self.address} does not answer")
            except grpc.RpcError as failure:
                error = WorkerLost(
                    f"the session to worker {self.worker!r} at {self.address} broke: {error_of(failure)}"
                )
            except asyncio.CancelledError:
                # Reading a call that `_talk` has given up raises this as well.
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
                error = WorkerLost(f"worker {self.worker!r} at {self.address} takes no more of what is sent to it")
            log.log(logging.INFO if stood else logging.DEBUG, "%s", error)
            pause_s = _FIRST_PAUSE_S if stood else min(_LONGEST_PAUSE_S, pause_s * 2)
            self._on_link(False)
            self.lose_all(error)
            await asyncio.sleep(pause_s)

    def lose_all(self, error: TokenworksError) -> None:
        """Every recipient loses its stream to `error`; only when the session has broken or will not be used again."""
        lost, self._recipients = self._recipients, {}
        self._outgoing.clear()
        self._last_number = 0
        for recipient in lost.values():
            recipient.lost(error)

    async def _connect(self, channel: grpc.aio.Channel) -> Any:
        method: Any = channel.stream_stream(
            _METHOD,
            request_serializer=wire.SessionRequest.SerializeToString,
            response_deserializer=wire.StepFrame.FromString,
        )
        call = method(metadata=self._metadata)
        await call.wait_for_connection()
        return call

    async def _converse(self, call: Any) -> None:
        talking = asyncio.create_task(self._talk(call))
        try:
            while (frame := await call.read()) is not _EOF:
                for chunk in frame.chunks:
                    self._deliver(chunk)
        finally:
            talking.cancel()
            call.cancel()
            await asyncio.gather(talking, return_exceptions=True)

    async def _talk(self, call: Any) -> None:
        try:
            while True:
                while self._outgoing:
                    async with asyncio.timeout(_WRITE_TIMEOUT_S):
                        await call.write(self._outgoing.popleft())
                self._something_to_say.clear()
                await self._something_to_say.wait()
        finally:
            call.cancel()  # a side that can't be written to is broken for reading too

    def _deliver(self, chunk: wire.StreamChunk) -> None:
        number = chunk.stream
        recipient = self._recipients.get(number)
        if recipient is None:
            return  # cancelled while this was on its way
        if chunk.last:
            del self._recipients[number]
        try:
            recipient.chunk(chunk)
        except Exception:
            log.exception("a defect with stream %d of worker %s", number, self.worker)
            self._recipients.pop(number, None)
            recipient.lost(InvariantBroken("an internal error; the router's log has the details"))

    def _say(self, request: wire.SessionRequest) -> None:
        self._outgoing.append(request)
        self._something_to_say.set()
