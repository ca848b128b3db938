"""What waits to go out to one reader: one chunk per stream at most, so a slow reader gets larger ones, never a gap.

In: tokens as steps make them, ends. Out: frames, each with what every stream has made since the frame before. A reader
that keeps up gets one frame per engine step; for one that lags, the tokens of several steps grow together in their
chunk. So what waits is bounded by the answers' own length.
"""

import asyncio
from typing import Final

from services.mesh.errors import TokenworksError
from services.worker.engine import TokenLogprob, joined_lists
from tokenworks.v1 import inference_pb2 as pb

_FRAME_BYTES: Final = 1 << 20  # about; the rest waits for the next frame
_FEW_TOKENS: Final = 8


class Chunk:
    """Consecutive tokens of one stream; `finish` or `error` is set where it is the `last`."""

    __slots__ = (
        "error",
        "finish",
        "first_index",
        "last",
        "logprobs",
        "request_id",
        "text",
        "token_count",
        "token_ids",
        "tool_calls_json",
    )

    def __init__(self, request_id: str, first_index: int) -> None:
        self.request_id = request_id
        self.first_index = first_index
        self.token_count = 0
        self.token_ids: tuple[int, ...] = ()
        self.text = ""
        self.finish: pb.Finish | None = None
        self.error: TokenworksError | None = None
        self.last = False
        self.logprobs: tuple[TokenLogprob, ...] = ()
        self.tool_calls_json = ""

    def add(self, logprobs: tuple[TokenLogprob, ...], tool_calls_json: str) -> None:
        """What few answers have beside their tokens."""
        self.logprobs += logprobs
        self.tool_calls_json = joined_lists(self.tool_calls_json, tool_calls_json)

    def end(self, end: "pb.Finish | TokenworksError") -> None:
        """Makes it the stream's last."""
        self.last = True
        if isinstance(end, TokenworksError):
            self.error = end
        else:
            self.finish = end


class Outgoing:
    """Chunks by the reader's number of the stream."""

    def __init__(self) -> None:
        self._chunks: dict[int, Chunk] = {}
        self._asks: list[pb.FundsAsked] = []
        self._changed = asyncio.Event()
        self._closed = False
        self._response = pb.GenerateResponse()

    def chunk(self, number: int, request_id: str, next_index: int) -> Chunk:
        """The chunk that the next tokens of stream `number` belong into; `wake` sends what was put in.

        Args:
            next_index: index of the stream's next token, for a chunk that begins with it.
        """
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = Chunk(request_id, next_index)
        return chunk

    def ask(self, asked: pb.FundsAsked) -> None:
        """The reader is asked for a stream's funds, with the next frame."""
        self._asks.append(asked)
        self._changed.set()

    @property
    def is_empty(self) -> bool:
        return not self._chunks

    def wake(self) -> None:
        """Lets the writer send what was added."""
        self._changed.set()

    def close(self) -> None:
        """Nothing comes any more: the writer ends when it has sent what waits."""
        self._closed = True
        self._changed.set()

    async def wait(self) -> bool:
        """Waits until there is something to send; False when there is not and never will be."""
        while not self._chunks and not self._asks:
            if self._closed:
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def take(self) -> list[tuple[int, Chunk]]:
        """The chunks of one frame, removed from here; those that waited longest first."""
        left = _FRAME_BYTES
        taken = list(self._chunks.items())
        for index, (_, chunk) in enumerate(taken):
            if chunk.token_count > _FEW_TOKENS:  # else too small to matter, however many streams there are
                left -= len(chunk.text) + 5 * chunk.token_count
                if left <= 0:
                    del taken[index + 1 :]
                    break
        if len(taken) == len(self._chunks):
            self._chunks.clear()
        else:
            for number, _ in taken:
                del self._chunks[number]
        return taken

    def response(self, chunk: Chunk) -> pb.GenerateResponse:
        """The chunk as a client sees it; the same message each time, to be serialised before the next."""
        # Filling one message again costs half of making one, and this is done for every token.
        response = self._response
        response.request_id = chunk.request_id
        response.first_index = chunk.first_index
        response.token_ids[:] = chunk.token_ids
        response.text = chunk.text
        response.token_count = chunk.token_count
        if chunk.logprobs or response.logprobs:
            del response.logprobs[:]
            response.logprobs.extend(map(_logprob, chunk.logprobs))
        response.tool_calls_json = chunk.tool_calls_json
        if chunk.finish is not None:
            response.finish.CopyFrom(chunk.finish)
        elif response.HasField("finish"):
            response.ClearField("finish")
        return response

    def take_frame(self) -> tuple[pb.StepFrame, list[int]]:
        """The next frame of a session, and the numbers of the streams that end with it."""
        frame = pb.StepFrame()
        ended = []
        add, response_of = frame.chunks.add, self.response
        for number, chunk in self.take():
            if chunk.last:
                ended.append(number)
                self._add_last(frame, number, chunk)
            else:
                add(
                    stream=number,
                    response=response_of(chunk).SerializeToString(),
                    first_index=chunk.first_index,
                    token_count=chunk.token_count,
                )
        if self._asks:
            frame.asks.extend(self._asks)
            self._asks.clear()
        return frame, ended

    def _add_last(self, frame: pb.StepFrame, number: int, chunk: Chunk) -> None:
        added = frame.chunks.add(stream=number, first_index=chunk.first_index, token_count=chunk.token_count, last=True)
        if chunk.token_count or chunk.text or chunk.tool_calls_json or chunk.finish is not None:
            added.response = self.response(chunk).SerializeToString()
        if chunk.error is not None:
            retry_after_s = chunk.error.retry_after_s or 0.0
            added.error.CopyFrom(
                pb.StreamError(
                    reason=chunk.error.reason, message=str(chunk.error), retry_after_ms=round(retry_after_s * 1000)
                )
            )


def _logprob(told: TokenLogprob) -> pb.TokenLogprob:
    top = [pb.TokenLogprob.Alternative(text=text, logprob=logprob) for text, logprob in told.top]
    return pb.TokenLogprob(text=told.text, logprob=told.logprob, top=top)
