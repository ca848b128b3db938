"""A router's session: all its requests on this worker, in one call each way.

In: streams to open and to cancel, numbered by the router. Out: step frames. A stream that is refused, or breaks off,
ends with an error of its own; the session goes on. When the session itself breaks, everything it opened is cancelled at
once: the router goes on elsewhere, from the token after the last it has.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc

from services.mesh.errors import InvalidRequest, InvariantBroken, TokenworksError
from services.mesh.events import Outcome
from services.worker.outgoing import Outgoing
from services.worker.requests import funded_of, relayed
from services.worker.stream import Stream
from services.worker.streams import Streams
from tokenworks.v1 import inference_pb2 as pb

log = logging.getLogger(__name__)

_REASONS = frozenset({Outcome.CANCELLED, Outcome.BUDGET, Outcome.RUNAWAY})


class RouterSession:
    """One call of `Worker.Session`."""

    def __init__(self, router: str, streams: Streams) -> None:
        """`router`: its id, for the log."""
        self._router = router
        self._streams = streams
        self._outgoing = Outgoing()
        self._open: dict[int, Stream] = {}
        self._asked_all = False
        self._failure: TokenworksError | None = None

    def close(self) -> None:
        """The session ends when what waits has been sent."""
        self._outgoing.close()

    async def serve(
        self,
        requests: AsyncIterator[pb.SessionRequest],
        context: grpc.aio.ServicerContext[pb.SessionRequest, pb.StepFrame],
    ) -> None:
        """Runs until the router hangs up, or has no stream and will open none, or `close`.

        Raises:
            InvalidRequest: the router does not keep to the protocol.
        """
        # The router waits for this to know that the session stands.
        await context.send_initial_metadata(())
        reading = asyncio.create_task(self._read(requests), name=f"session of {self._router}")
        try:
            while await self._outgoing.wait():
                frame, ended = self._outgoing.take_frame()
                for number in ended:
                    self._open.pop(number, None)
                await context.write(frame)
                if self._asked_all and not self._open:
                    self.close()
        finally:
            reading.cancel()
            for stream in list(self._open.values()):
                self._streams.abandon(stream)
            self._open.clear()
            await asyncio.gather(reading, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def _read(self, requests: AsyncIterator[pb.SessionRequest]) -> None:
        """Does what the router asks, in order. When it will ask for nothing more, what is open may end."""
        try:
            async for request in requests:
                action = request.WhichOneof("action")
                if action == "open":
                    await self._open_stream(request.open)
                elif action == "cancel":
                    self._cancel_stream(request.cancel)
                elif action == "fund":
                    self._fund_stream(request.fund)
                else:
                    raise InvalidRequest("a SessionRequest without an action; set open, cancel or fund")
        except TokenworksError as error:
            self._failure = error
        except Exception:
            log.exception("a defect in the session of router %s", self._router)
            self._failure = InvariantBroken("an internal error; the worker's log has the details")
        self._asked_all = True
        if self._failure is not None or not self._open:
            self.close()

    async def _open_stream(self, opened: pb.OpenStream) -> None:
        number = opened.stream
        if number in self._open:
            raise InvalidRequest(f"stream {number} of the session is open already; number streams from 1 upward")
        try:
            order = relayed(opened, self._streams.new_sequence(), self._streams.context_tokens)
            stream = await self._streams.open(order, self._outgoing, number, self._ask)
            if not stream.ended:
                self._open[number] = stream
        except TokenworksError as error:
            self._outgoing.chunk(number, opened.request.request_id, opened.request.resume_from).end(error)
            self._outgoing.wake()

    def _ask(self, stream: Stream, prompt_tokens: int, completion_tokens: int) -> None:
        self._outgoing.ask(
            pb.FundsAsked(stream=stream.number, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        )

    def _fund_stream(self, fund: pb.FundStream) -> None:
        stream = self._open.get(fund.stream)
        if stream is not None:  # else its last chunk is on its way
            self._streams.fund(stream, funded_of(fund.funds), final=fund.final)

    def _cancel_stream(self, cancelled: pb.CancelStream) -> None:
        stream = self._open.get(cancelled.stream)
        if stream is not None:  # else its last chunk is on its way
            reason = cancelled.reason if cancelled.reason in _REASONS else Outcome.CANCELLED
            self._streams.cancel(stream, reason)
