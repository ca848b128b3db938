"""One request's stream, as a program reads it: an async iterator of pieces, then the result.

In: the ways to its tokens. Out: pieces whose token indexes start at 0 and have no gaps, and at the end what was used,
what it costs and who made it. A stream that breaks is gone on with where it broke, at another worker or through another
router, a bounded number of times; a failure before the first token that waiting can mend is tried again with the same
request id. Any other ends the iteration with `GenerateError`.
"""

import asyncio
import json
import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import grpc

from tokenworks.errors import CallError, GenerateError, error_of
from tokenworks.mending import Asked, Mend, mend
from tokenworks.paths import Leg, Paths, RouterSilent, WorkerUnreachable, being_cancelled
from tokenworks.tracing import RequestTrace
from tokenworks.v1 import inference_pb2 as wire

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0
_ANOTHER_ROUTER_MAY: Final = frozenset({"Unreachable", "RequestTimedOut", "NoWorker", "OutboxFull"})
_MOST_BREAKS: Final = 8
_MEND_FOR_S: Final = 15.0  # after a break, until the next token


class TokenLogprob(NamedTuple):
    """How likely a token was, as a natural logarithm, and the likeliest in its place, best first."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Piece(NamedTuple):
    """Tokens `first_index` to `first_index + token_count - 1`.

    Attributes:
        token_ids: empty where the engine reports none.
        logprobs: one per token, where they were asked for.
        tool_calls: OpenAI's `delta.tool_calls`, where the model calls a tool.
    """

    first_index: int
    token_count: int
    text: str
    token_ids: Sequence[int]
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()


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


def _piece(message: wire.GenerateResponse) -> Piece:
    if not message.logprobs and not message.tool_calls_json:
        return Piece(message.first_index, message.token_count, message.text, message.token_ids)
    logprobs = tuple(
        TokenLogprob(each.text, each.logprob, tuple((other.text, other.logprob) for other in each.top))
        for each in message.logprobs
    )
    tool_calls = tuple(json.loads(message.tool_calls_json)) if message.tool_calls_json else ()
    return Piece(message.first_index, message.token_count, message.text, message.token_ids, logprobs, tool_calls)


class _Answer:
    """What has arrived of an answer, in the form that lets another worker go on with it."""

    def __init__(self) -> None:
        self.next_index = 0
        self._ids = array("I")
        self._tokenizer: str | None = None
        self._same_tokenizer = True
        self._texts: list[str] = []

    def add(self, message: wire.GenerateResponse, tokenizer: str) -> None:
        """Takes the message that begins with token `next_index`."""
        self.next_index += message.token_count
        self._ids.extend(message.token_ids)
        self._texts.append(message.text)
        if self._tokenizer is None:
            self._tokenizer = tokenizer
        self._same_tokenizer = self._same_tokenizer and self._tokenizer == tokenizer

    def put_into(self, request: wire.GenerateRequest) -> None:
        """Asks for what is missing."""
        request.resume_from = self.next_index
        request.resumed_text = "".join(self._texts)
        if len(self._ids) == self.next_index and self._same_tokenizer:
            request.resumed_token_ids.ids.extend(self._ids)
            request.resumed_tokenizer = self._tokenizer or ""


class Generation:
    """A running request. Iterate it; leaving it early (`aclose`, or the end of `async with`) cancels the request.

    Attributes:
        request_id, trace_id: known from the start.
        result: set once the iteration has ended by itself.
        attempts: calls made so far, 1 when nothing was retried and nothing broke.
    """

    def __init__(
        self,
        paths: Paths,
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
        self._paths = paths
        self._request = request
        self._trace = trace
        self._max_attempts = max_attempts
        self._loop = asyncio.get_running_loop()
        self._ends_at_s = self._loop.time() + deadline_s
        self._call: Any = None  # the one that is waited for
        self._leg: Leg | None = None
        self._answer = _Answer()
        self._segments: list[Segment] = []  # of legs that broke
        self._relayed = False
        self._avoided: list[str] = []
        self._place_lost = False
        self._router = ""  # whom the last call asked, for a place or for tokens
        self._left: set[str] = set()  # routers, for their silence
        self._breaks = 0
        self._broke_at_s: float | None = None  # None while it runs
        self._waits = 0
        self._sent_at_s = 0.0
        self._first_at_s = 0.0
        self._over = False
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        """Raises GenerateError: the stream failed."""
        while not self._over:
            try:
                if self._leg is None:
                    self._leg = await self._open()
                    if self._closed:  # meanwhile, by another task
                        self._leg.end()
                        break
                message = await self._leg.call.read()
            except WorkerUnreachable as error:
                self._leg = error.leg
                await self._mend(CallError("Unreachable", str(error), code=grpc.StatusCode.UNAVAILABLE), error)
                continue
            except RouterSilent as error:
                self._left.add(error.address)
                await self._mend(_silent(error.address), error)
                continue
            except grpc.aio.AioRpcError as error:
                await self._mend(error_of(error), error)
                continue
            except asyncio.CancelledError:
                if self._closed and not being_cancelled():
                    break  # another task closed this stream
                if self._leg is not None and self._leg.given_up and not being_cancelled():
                    silent = _silent(self._leg.address)
                    await self._mend(silent, silent)
                    continue
                await self.aclose()
                raise
            if not isinstance(message, wire.GenerateResponse):  # grpc.aio.EOF
                self._check_finished()
                break
            if not self._leg.answered:
                self._paths.answered(self._leg)
            if self._leg.heart is not None:
                self._leg.heart.heard += 1
            if message.HasField("finish"):
                self._take(message.finish, self._leg)
            if message.token_count or message.tool_calls_json:
                self._check_contiguous(message)
                self._note(message, self._leg)
                return _piece(message)
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

    async def _open(self) -> Leg:
        now_s = self._loop.time()
        if self._ends_at_s <= now_s:
            raise self._failed("RequestTimedOut", "the deadline passed", grpc.StatusCode.DEADLINE_EXCEEDED, None)
        self._sent_at_s = self._sent_at_s or now_s
        self.attempts += 1
        self._router = self._paths.address
        return await self._paths.open(
            self._what_is_missing(now_s),
            self._trace.traceparent,
            self._ends_at_s - now_s,
            relayed=self._relayed,
            calling=self._waits_for,
        )

    def _waits_for(self, call: Any) -> None:
        self._call = call

    def _what_is_missing(self, now_s: float) -> wire.GenerateRequest:
        """The request, less what has arrived of its answer."""
        if not self._answer.next_index and not self._avoided and not self._place_lost:
            return self._request
        request = wire.GenerateRequest()
        request.CopyFrom(self._request)
        request.avoid_workers.extend(self._avoided)
        request.place_lost = self._place_lost
        if self._answer.next_index:
            self._answer.put_into(request)
            request.resumed_ttft_s = self._first_at_s - self._sent_at_s
            request.resumed_s = now_s - self._sent_at_s
        return request

    async def _mend(self, named: CallError, error: Exception) -> None:
        """Makes the next call possible after one failed. Raises GenerateError: nothing can."""
        leg, self._leg = self._leg, None
        begun = self._answer.next_index > 0
        asked = leg.asked if leg is not None else Asked.FOR_A_PLACE
        how = mend(named, asked, begun=begun)
        if asked is Asked.FOR_A_PLACE and how is Mend.WAIT:
            self._place_lost = True  # it may have been placed, and the answer lost
        if leg is not None:
            leg.end()
            await self._keep_segment(leg)
            if asked is Asked.A_WORKER and how is not Mend.GIVE_UP:
                how = self._broke(leg, named, how)
        now_s = self._loop.time()
        if begun and self._broke_at_s is None:
            self._broke_at_s = now_s
        mending = self._broke_at_s is not None
        tried_enough = (
            self._breaks > _MOST_BREAKS or now_s > (self._broke_at_s or now_s) + _MEND_FOR_S
            if mending
            # One that is only slow would have answered in the end: that it was left costs no attempt.
            else how is Mend.WAIT and self.attempts >= self._max_attempts + len(self._left)
        )
        if how is Mend.GIVE_UP or tried_enough:
            raise self._failed(named.reason, named.message, named.code, named.retry_after_s) from error
        if how is Mend.RELAY:
            self._relayed = True
            if leg is None:  # the router hands out no placements: nothing was tried yet
                self._paths.no_placements()
                self.attempts -= 1
        elif how is Mend.WAIT:
            relay_broke = begun and asked is Asked.A_ROUTER
            another = relay_broke or named.reason in _ANOTHER_ROUTER_MAY
            if not another or not self._paths.next_router(self._router):
                await self._wait(named, error, mending=mending)

    def _broke(self, leg: Leg, named: CallError, how: Mend) -> Mend:
        """A worker failed the stream: what that says of it, and of the ways to workers."""
        self._breaks += 1
        self._broke_at_s = self._broke_at_s or self._loop.time()
        if leg.worker not in self._avoided:
            self._avoided.append(leg.worker)
        unreachable = named.reason == "Unreachable" and not leg.answered
        if not self._paths.reaches_workers and (unreachable or how is Mend.RELAY):
            self._paths.no_placements()
            return Mend.RELAY
        return how

    async def _wait(self, named: CallError, error: Exception, *, mending: bool) -> None:
        """Waits as long as it makes sense to."""
        self._avoided.clear()  # those that failed may be back
        delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**self._waits)
        self._waits += 1
        delay_s = max(delay_s, named.retry_after_s or 0.0) * random.uniform(1.0, 1.25)
        if mending:
            delay_s = min(delay_s, 1.0)
        if self._loop.time() + delay_s >= self._ends_at_s:
            raise self._failed(named.reason, named.message, named.code, named.retry_after_s) from error
        await asyncio.sleep(delay_s)

    async def _keep_segment(self, leg: Leg) -> None:
        """Notes who made the tokens of a leg that broke."""
        made = self._answer.next_index - leg.first_index
        if made > 0:
            self._segments.append(Segment(await leg.serving(), leg.accelerator, leg.first_index, made))

    def _note(self, message: wire.GenerateResponse, leg: Leg) -> None:
        self._first_at_s = self._first_at_s or self._loop.time()
        self._answer.add(message, leg.tokenizer)
        self._broke_at_s = None
        self._waits = 0

    def _take(self, finish: wire.Finish, leg: Leg) -> None:
        usage = finish.usage
        last = [Segment(each.worker, each.accelerator, each.from_index, each.count) for each in finish.segments]
        self.result = Result(
            self.request_id,
            self.trace_id,
            finish.reason,
            usage.prompt_tokens,
            usage.cached_prompt_tokens,
            usage.completion_tokens,
            finish.price_nusd,
            (*self._segments, *(each for each in last if each.from_index >= leg.first_index and each.count)),
        )

    def _check_contiguous(self, message: wire.GenerateResponse) -> None:
        if message.first_index != self._answer.next_index:
            raise self._failed(
                "StreamBroken",
                f"token {self._answer.next_index} was due and token {message.first_index} came",
                grpc.StatusCode.DATA_LOSS,
                None,
            )

    def _check_finished(self) -> None:
        result = self.result
        if result is None:
            raise self._failed("StreamBroken", "the stream ended without saying why", grpc.StatusCode.DATA_LOSS, None)
        self._over = True
        if self._leg is not None:
            self._leg.end()
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
            next_index=self._answer.next_index,
        )

    def _end(self, reason: str, message: str) -> None:
        self._over = True
        if self._call is not None:
            self._call.cancel()
        if self._leg is not None:
            self._leg.end()
        self._trace.failed(reason, message)


def _silent(address: str) -> CallError:
    return CallError(
        "Unreachable", f"{address} is silent, and does not answer either", code=grpc.StatusCode.UNAVAILABLE
    )
