"""One worker's `Session`: all of this router's requests there share one stream, one frame per engine step.

In: streams to open and to cancel. Out: each stream's chunks to its recipient, in order and within the turn of the loop
that they came in, and its loss when the session breaks. A session is opened when its worker is first heard of and
opened again, with growing pauses, whenever it breaks; so a request finds it warm. Nothing here knows what a request is.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from services.mesh.errors import InvariantBroken, TokenworksError, WorkerLost
from services.mesh.grpc_stream import GrpcStream
from services.mesh.rpc import MESH_SECRET
from tokenworks.v1 import inference_pb2 as wire

log = logging.getLogger(__name__)

ROUTER_ID: Final = "x-tokenworks-router"
_METHOD: Final = "/tokenworks.v1.Worker/Session"
_CONNECT_TIMEOUT_S: Final = 2.0
_LARGEST_FRAME_BYTES: Final = 64 << 20
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class Recipient(Protocol):
    """Who a stream's chunks are for. No method awaits or raises."""

    def chunk(self, chunk: wire.StreamChunk) -> None:
        """The next chunk; none follows one that is `last`."""

    def asks(self, asked: wire.FundsAsked) -> None:
        """Its worker needs credit for the next part of the answer."""

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
        self._unsent: deque[wire.SessionRequest] = deque()
        self._call: GrpcStream | None = None

    @property
    def recipients(self) -> list[Recipient]:
        """Those with a stream here."""
        return list(self._recipients.values())

    def open(self, recipient: Recipient, order: wire.SessionRequest) -> int:
        """Opens a stream and gives it its number; if the worker can't be reached, the recipient loses it."""
        self._last_number += 1
        order.open.stream = self._last_number
        self._recipients[self._last_number] = recipient
        self._say(order)
        return self._last_number

    def cancel(self, number: int, reason: str) -> None:
        """Ends a stream; its recipient gets nothing more. A stream that has ended is left alone."""
        if self._recipients.pop(number, None) is not None:
            self._say(wire.SessionRequest(cancel=wire.CancelStream(stream=number, reason=reason)))

    def fund(self, number: int, fund: wire.FundStream) -> None:
        """Tells the worker what is held for a stream. One that has ended is left alone."""
        if number in self._recipients:
            self._say(wire.SessionRequest(fund=fund))

    async def run(self) -> None:
        """Keeps the session open until cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            stood = False
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    call = await self._connect()
                try:
                    stood = True
                    self._call = call
                    self._on_link(True)
                    for request in self._unsent:
                        self._send(request)
                    self._unsent.clear()
                    error = await call.ended()
                finally:
                    self._call = None
                    call.close()
                why = f"broke: {error}" if error else "was closed by it"
                lost = WorkerLost(f"the session to worker {self.worker!r} at {self.address} {why}")
            except TimeoutError:
                lost = WorkerLost(f"worker {self.worker!r} at {self.address} does not answer")
            except (OSError, TokenworksError) as failure:
                lost = WorkerLost(f"there is no session to worker {self.worker!r} at {self.address}: {failure}")
            log.log(logging.INFO if stood else logging.DEBUG, "%s", lost)
            pause_s = _FIRST_PAUSE_S if stood else min(_LONGEST_PAUSE_S, pause_s * 2)
            self._on_link(False)
            self.lose_all(lost)
            await asyncio.sleep(pause_s)

    def lose_all(self, error: TokenworksError) -> None:
        """Every recipient loses its stream to `error`; only when the session has broken or will not be used again."""
        lost, self._recipients = self._recipients, {}
        self._unsent.clear()
        self._last_number = 0
        for recipient in lost.values():
            recipient.lost(error)

    async def _connect(self) -> GrpcStream:
        return await GrpcStream.connect(
            self.address, _METHOD, self._metadata, self._frame, limit_bytes=_LARGEST_FRAME_BYTES
        )

    def _frame(self, data: bytes) -> None:
        try:
            frame = wire.StepFrame.FromString(data)
        except DecodeError as error:
            log.error("worker %s sent a frame that can't be parsed: %s", self.worker, error)
            if self._call is not None:
                self._call.abort("a frame can't be parsed")
            return
        for chunk in frame.chunks:
            self._deliver(chunk)
        for asked in frame.asks:
            if (recipient := self._recipients.get(asked.stream)) is not None:
                recipient.asks(asked)

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
        if self._call is not None:
            self._send(request)
        else:
            self._unsent.append(request)

    def _send(self, request: wire.SessionRequest) -> None:
        assert self._call is not None, "sent only while the session stands"
        self._call.send(request.SerializeToString())
