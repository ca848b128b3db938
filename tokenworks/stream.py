"""One request's stream, as a program reads it: an async iterator of pieces, then the result.

In: a way to open the call. Out: pieces whose token indexes start at 0 and have no gaps, and at the end what was used,
what it costs and who made it. A failure before the first token that waiting can mend is retried here with the same
request id; any other ends the iteration with `GenerateError`.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import grpc

from tokenworks.errors import GenerateError, error_of
from tokenworks.tracing import RequestTrace
from tokenworks.v1 import inference_pb2 as wire

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0

OpenCall = Callable[[wire.GenerateRequest, str, float], Any]  # request, traceparent, timeout in seconds


class Piece(NamedTuple):
    """Tokens `first_index` to `first_index + token_count - 1`; `token_ids` is empty where the engine reports none."""

    first_index: int
    token_count: int
    text: str
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that one worker made."""

    worker: str
    accelerator: str
    from_index: int
    count: int


@dataclass(frozen=True, slots=True)
class Result:
    """How a stream ended; the price is in nano-dollars, as the tenant pays it."""

    request_id: str
    trace_id: str
    reason: str
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    price_nusd: int
    segments: tuple[Segment, ...]


class Generation:
    """A running request. Iterate it; leaving it early (`aclose`, or the end of `async with`) cancels the request.

    Attributes:
        request_id, trace_id: known from the start.
        result: set once the iteration has ended by itself.
        attempts: calls made so far, 1 when nothing was retried.
    """

    def __init__(
        self,
        open_call: OpenCall,
        request: wire.GenerateRequest,
        trace: RequestTrace,
        *,
        deadline_s: float,
        max_attempts: int,
    ) -> None:
        self.request_id = request.request_id
        self.trace_id = trace.trace_id
        self.result: Result | None = None
        self.attempts = 0
        self._open_call = open_call
        self._request = request
        self._trace = trace
        self._max_attempts = max_attempts
        self._loop = asyncio.get_running_loop()
        self._ends_at_s = self._loop.time() + deadline_s
        self._call: Any = None
        self._next_index = 0
        self._over = False
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        """Raises GenerateError: the stream failed."""
        while not self._over:
            if self._call is None:
                self._open()
            try:
                message = await self._call.read()
            except grpc.aio.AioRpcError as error:
                await self._retry_or_raise(error)
                continue
            except asyncio.CancelledError:
                if self._closed and not _being_cancelled():
                    break  # another task closed this stream
                await self.aclose()
                raise
            if not isinstance(message, wire.GenerateResponse):  # grpc.aio.EOF
                self._check_finished()
                break
            if message.HasField("finish"):
                self._take(message.finish)
            if message.token_count:
                self._check_contiguous(message)
                return Piece(message.first_index, message.token_count, message.text, message.token_ids)
        raise StopAsyncIteration

    async def text(self) -> str:
        """The rest of the stream's text. Raises GenerateError: the stream failed."""
        return "".join([piece.text async for piece in self])

    async def aclose(self) -> None:
        """Cancels the request if it still runs; the engine drops it at its next step."""
        self._closed = True
        if not self._over:
            self._end("cancelled", "the program closed the stream")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self) -> None:
        left_s = self._ends_at_s - self._loop.time()
        if left_s <= 0:
            raise self._failed("RequestTimedOut", "the deadline passed", grpc.StatusCode.DEADLINE_EXCEEDED, None)
        self.attempts += 1
        self._call = self._open_call(self._request, self._trace.traceparent, left_s)

    async def _retry_or_raise(self, error: grpc.aio.AioRpcError) -> None:
        named = error_of(error)
        backoff_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (self.attempts - 1))
        delay_s = max(backoff_s, named.retry_after_s or 0.0) * random.uniform(1.0, 1.25)
        in_time = self._loop.time() + delay_s < self._ends_at_s
        if not named.passing or not in_time or self._next_index or self.attempts >= self._max_attempts:
            raise self._failed(named.reason, named.message, named.code, named.retry_after_s) from error
        self._call = None
        await asyncio.sleep(delay_s)

    def _take(self, finish: wire.Finish) -> None:
        usage = finish.usage
        self.result = Result(
            self.request_id,
            self.trace_id,
            finish.reason,
            usage.prompt_tokens,
            usage.cached_prompt_tokens,
            usage.completion_tokens,
            finish.price_nusd,
            tuple(Segment(each.worker, each.accelerator, each.from_index, each.count) for each in finish.segments),
        )

    def _check_contiguous(self, message: wire.GenerateResponse) -> None:
        if message.first_index != self._next_index:
            raise self._failed(
                "StreamBroken",
                f"token {self._next_index} was due and token {message.first_index} came",
                grpc.StatusCode.DATA_LOSS,
                None,
            )
        self._next_index += message.token_count

    def _check_finished(self) -> None:
        result = self.result
        if result is None:
            raise self._failed("StreamBroken", "the stream ended without saying why", grpc.StatusCode.DATA_LOSS, None)
        self._over = True
        self._trace.finished(
            result.reason,
            result.prompt_tokens,
            result.cached_prompt_tokens,
            result.completion_tokens,
            result.price_nusd,
        )

    def _failed(self, reason: str, message: str, code: grpc.StatusCode, retry_after_s: float | None) -> GenerateError:
        self._end(reason, message)
        return GenerateError(
            reason,
            message,
            code=code,
            retry_after_s=retry_after_s,
            request_id=self.request_id,
            trace_id=self.trace_id,
            next_index=self._next_index,
        )

    def _end(self, reason: str, message: str) -> None:
        self._over = True
        if self._call is not None:
            self._call.cancel()
        self._trace.failed(reason, message)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
