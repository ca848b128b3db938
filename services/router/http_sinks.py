"""A client's side on HTTP: a worker's messages as server-sent events, or as one answer.

In: messages, as they come. Out: bytes on the client's connection, written within the call that brought the message. A
connection that is full takes nothing more until it has drained; `Relay.flush` then offers what has grown together.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from services.mesh.errors import TokenworksError
from services.mesh.http_call import EVENT_STREAM, HttpCall
from services.mesh.openai.answers import Answer, error_event
from tokenworks.v1 import inference_pb2 as wire

_parse: Final = wire.GenerateResponse.FromString


class EventStream:
    """One call's events, of one answer or of several that go out beside each other.

    Its head waits for the first message of every answer, so that what a worker refuses still has its own status.

    Args:
        fields: gives the headers of the answer, once it begins.
        answers: how many.
    """

    def __init__(self, call: HttpCall, fields: Callable[[], bytes], answers: int = 1) -> None:
        self.call = call
        self.open = False
        self._fields = fields
        self._silent = self._left = answers
        self._opening: list[Callable[[], None]] = []
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def began(self, flush: Callable[[], None]) -> None:
        """An answer has its first message, which `flush` offers again once the events may go out."""
        self._silent -= 1
        if self._silent:
            self._opening.append(flush)
            return
        self.open = True
        self.call.begin(EVENT_STREAM, self._fields())
        opening, self._opening = self._opening, []
        for each in opening:
            each()

    def ended(self, error: TokenworksError | None) -> None:
        """An answer is complete, or `error` ended it."""
        self._left -= 1
        if error is not None and not self.open:
            if not self._end.done():
                self._end.set_exception(error)
            return
        last = b"" if error is None else error_event(error)
        if not self._left:
            self.call.end(last)
            if not self._end.done():  # else its client is gone
                self._end.set_result(None)
        elif last:
            self.call.push(last)

    async def complete(self) -> None:
        """Until everything is written. Raises what ended an answer before anything was."""
        await self._end


class EventSink:
    """One answer's events.

    Args:
        flush: has what is held offered again.
    """

    def __init__(self, answer: Answer, stream: EventStream, flush: Callable[[], None]) -> None:
        self._answer = answer
        self._stream = stream
        self._call = stream.call
        self._flush = flush
        self._began = False

    def message(self, data: bytes) -> bool:
        call = self._call
        if not self._stream.open:
            if not self._began:
                self._began = True
                self._stream.began(self._flush)
            if not self._stream.open:
                return False
        if not call.has_room:
            call.tell_of_room(self._flush)
            return False
        events = self._answer.events(_parse(data))
        return call.push(events) if events else True

    def ended(self, error: TokenworksError | None) -> None:
        self._stream.ended(error)


class WholeSink:
    """One answer in one piece."""

    def __init__(self) -> None:
        self._messages: list[wire.GenerateResponse] = []
        self._end: asyncio.Future[TokenworksError | None] = asyncio.get_running_loop().create_future()

    async def all(self) -> Sequence[wire.GenerateResponse]:
        """Every message, once the last has come. Raises what the stream ended with."""
        if (error := await self._end) is not None:
            raise error
        return self._messages

    def message(self, data: bytes) -> bool:
        # Its times are those at which the answer grew here; whether it reaches the client shows at the end.
        self._messages.append(_parse(data))
        return True

    def ended(self, error: TokenworksError | None) -> None:
        if not self._end.done():  # else its client is gone
            self._end.set_result(error)
