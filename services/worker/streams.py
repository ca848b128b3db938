"""The requests that run on this worker, from their opening to their last token.

In: orders with where their tokens go, the engine's steps, cancellations. Out: chunks to the readers, accounts and
latencies to the reporter, spans and metrics. `on_step` runs for every engine step and touches every sequence that got a
token, so it does no more than it must: no await, no message, no span.

A request that the engine has taken is accounted for to its end, whoever stops listening: its last entry is reported
once, with everything it took.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import (
    DeadlinePassed,
    DuplicateRequest,
    EngineFailed,
    NoWorker,
    OutboxFull,
    TokenworksError,
    UnknownModel,
    WorkerLost,
    from_reason,
)
from services.mesh.events import Outcome, RunawayFound
from services.mesh.telemetry import traceparent_of
from services.worker.account import account_of
from services.worker.engine import EngineInfo, FinishReason, SequenceOutput, StepOutput
from services.worker.engine_life import EngineLife
from services.worker.funding import AT_ONCE, NEVER, Funded, StreamFunds
from services.worker.identity import Identity
from services.worker.instruments import Ended, Instruments
from services.worker.outgoing import Outgoing
from services.worker.prefixes import Prefixes
from services.worker.reporter import Reporter
from services.worker.requests import Order
from services.worker.runaways import Runaways, falls_under
from services.worker.running import RunningStreams
from services.worker.stream import Stream

log = logging.getLogger(__name__)

_LEAST_OUTBOX_FREE: Final = 0.1  # below it no new request is taken
_SUBMIT_TIMEOUT_S: Final = 10.0


class Streams:
    """All streams of one worker.

    Attributes:
        refusal: what new requests are refused with; None while they are taken.
        info: fixed facts of the engine; None before it has started.
        generated_tokens: since the start.
    """

    def __init__(
        self,
        identity: Identity,
        engine: EngineLife,
        *,
        clock: Clock,
        reporter: Reporter,
        instruments: Instruments,
        bus: Bus,
        prefixes: Prefixes,
        runaways: Runaways,
    ) -> None:
        """`bus`: where the reporter's events go; while it takes no more, no request is taken."""
        self.refusal: TokenworksError | None = NoWorker(f"worker {identity.worker!r} is starting")
        self.generated_tokens = 0
        self.info: EngineInfo | None = None
        self._draining = False
        self._identity = identity
        self._engine = engine
        self._clock = clock
        self._reporter = reporter
        self._instruments = instruments
        self._bus = bus
        self._prefixes = prefixes
        self._runaways = runaways
        self._sequences = count(1)
        self._running = RunningStreams()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def requests(self) -> Iterable[str]:
        """Ids of those that run and that nobody has cancelled."""
        return self._running.requests

    @property
    def context_tokens(self) -> int:
        """The most that prompt and answer may have together."""
        return self.info.context_tokens if self.info else 1

    def begin(self, info: EngineInfo) -> None:
        """An engine is ready: requests are taken from here on, unless the worker drains."""
        self.info = info
        if not self._draining:
            self.refusal = None

    def new_sequence(self) -> int:
        """The handle of the next order's sequence."""
        return next(self._sequences)

    async def open(
        self, order: Order, outgoing: Outgoing, number: int, ask: Callable[[Stream, int, int], None] | None = None
    ) -> Stream:
        """Hands the request to the engine; its tokens go to `outgoing` as stream `number`.

        Args:
            ask: asks for more of it to be paid for, where the order says what is; see `StreamFunds`.

        Raises:
            NoWorker, EngineFailed: the worker is starting, draining, or its engine has failed.
            OutboxFull: what it would make could not be counted.
            UnknownModel, DuplicateRequest: not served here; running here already.
            PromptTooLong, QueueFull, Unsupported: says the engine.
        """
        self._check(order)
        span = self._instruments.begin(order)
        request, now_s = order.engine, self._clock.monotonic_s()
        stream = Stream(
            order=order,
            number=number,
            outgoing=outgoing,
            span=span,
            opened_s=now_s,
            next_index=request.resume_from,
            repetition=self._runaways.watched(order),
            account=account_of(order, traceparent_of(span) if span is not None else order.traceparent),
        )
        if order.funded is not None and ask is not None:
            most_tokens = request.sampling.max_tokens
            stream.funds = StreamFunds(order.funded, request.resume_from, most_tokens, partial(ask, stream))
            stream.ask_at = stream.funds.ask_at
            stream.account.funding = order.funded.funding
        # Before the engine has it: it may report a step while it is being asked.
        self._running.add(stream)
        try:
            async with asyncio.timeout(_SUBMIT_TIMEOUT_S):
                await self._engine.submit(request)
        except TimeoutError:
            self._engine.cancel(request.sequence)
            refused = EngineFailed(f"the engine took no request for {_SUBMIT_TIMEOUT_S:g} s")
            self._refused(stream, refused)
            raise refused from None
        except TokenworksError as error:
            self._refused(stream, error)
            raise
        except BaseException:
            self._engine.cancel(request.sequence)
            self._refused(stream, EngineFailed("the request was given up while the engine was asked"))
            raise
        if order.time_left_s is not None and not stream.ended:
            stream.deadline = asyncio.get_running_loop().call_later(order.time_left_s, self._late, stream)
        return stream

    def cancel(self, stream: Stream, reason: str) -> None:
        """Ends a stream within one engine step; `reason`, a member of `events.Outcome`, is what its last chunk says."""
        if stream.cancelled or stream.ended:
            return
        stream.cancelled = reason
        self._running.cancelled(stream)
        self._engine.cancel(stream.order.engine.sequence)
        if stream.funds is not None and (kept := stream.funds.kept):
            made = kept[-1]
            kept.clear()  # given to nobody
            stream.ask_at = AT_ONCE
            if made.finish is not None:  # the engine has said its last word, and will not say another
                self._finish(stream, replace(made, finish=FinishReason.CANCELLED), 0, self._clock.monotonic_s())
                if stream.outgoing is not None:
                    stream.outgoing.wake()

    def end_runaways(self, found: RunawayFound) -> int:
        """Ends the streams of what the mesh has stopped; how many those were."""
        ended = [each for each in self._running.wanted if falls_under(each.order, found)]
        for stream in ended:
            self.cancel(stream, Outcome.RUNAWAY)
        return len(ended)

    def abandon(self, stream: Stream, error: TokenworksError | None = None) -> None:
        """Nobody listens any more, or nobody should: the reader gets `error` now, and the sequence is cancelled."""
        if stream.outgoing is not None and error is not None:
            stream.end_chunk(self._identity, None, error)
            stream.outgoing.wake()
        stream.outgoing = None
        self.cancel(stream, Outcome.CANCELLED)

    def _late(self, stream: Stream) -> None:
        late = f"its caller's deadline passed, {stream.order.time_left_s:g} s after it came; allow it more time"
        made = f"{stream.made_tokens} tokens were made here"
        self.abandon(stream, DeadlinePassed(f"request {stream.order.engine.request_id!r} was ended: {late} ({made})"))

    async def drained(self, grace_s: float, wait_s: float = 2.0) -> int:
        """Takes no more; waits until the last stream has ended, and ends the rest after `grace_s`.

        Args:
            wait_s: how long the engine may take to end them; it is not waited for longer.

        Returns:
            How many had to be ended; their readers got an error that lets them go on elsewhere.
        """
        self._draining = True
        self.refusal = NoWorker(f"worker {self._identity.worker!r} is draining; ask another")
        if await self._running.emptied(grace_s):
            return 0
        left = list(self._running)
        for stream in left:
            self.abandon(stream, WorkerLost(f"worker {self._identity.worker!r} stops; go on elsewhere"))
        if not await self._running.emptied(wait_s):
            self._close_all(WorkerLost(f"worker {self._identity.worker!r} has stopped"))
        return len(left)

    def fail(self, reason: str) -> None:
        """The engine is dead: every stream ends with `EngineFailed`, and no request is taken until another is ready."""
        error = EngineFailed(reason)
        if not self._draining:
            self.refusal = error
        self._close_all(error)

    def on_step(self, steps: Sequence[StepOutput]) -> None:
        """Takes what the engine's steps made; called by the engine."""
        now_s = self._clock.monotonic_s()
        touched: set[Outgoing] = set()
        circling: list[Stream] = []
        running = self._running.by_sequence
        for step in steps:
            self._reporter.step(step, now_s)
            for output in step.outputs:
                stream = running.get(output.sequence)
                if stream is None:
                    continue  # it was closed for good before the engine came to it
                account, made = stream.account, output.token_count
                account.device_ns += output.device_ns
                account.modelled_uj += output.energy_uj
                if stream.next_index + made >= stream.ask_at and not self._paid_for(stream, output, now_s):
                    continue
                account.count += made
                if not account.noted:
                    account.prompt_tokens = output.prompt_tokens
                    account.cached_prompt_tokens = output.cached_prompt_tokens
                    self._reporter.note(account)
                    if output.prompt_token_ids:
                        self._prefixes.prompted(stream.order, output.prompt_token_ids)
                outgoing = stream.outgoing
                if outgoing is not None and (made or output.text or output.tool_calls_json):
                    chunk = outgoing.chunk(stream.number, account.request_id, stream.next_index)
                    chunk.token_count += made
                    chunk.token_ids += output.token_ids
                    chunk.text += output.text
                    if output.logprobs or output.tool_calls_json:
                        chunk.add(output.logprobs, output.tool_calls_json)
                    touched.add(outgoing)
                if made:
                    self.generated_tokens += made
                    stream.next_index += made
                    if stream.first_s is None:
                        stream.first_s, stream.queue_s = now_s, output.queue_s
                    elif now_s - stream.newest_s > stream.worst_gap_s:
                        stream.worst_gap_s = now_s - stream.newest_s
                    stream.newest_s = now_s
                    repetition = stream.repetition
                    if repetition is not None and repetition.add(output.token_ids, output.text) and repetition.loop:
                        circling.append(stream)
                if output.finish is not None:
                    if outgoing is not None:
                        touched.add(outgoing)
                    self._finish(stream, output, len(step.outputs), now_s)
        for outgoing in touched:
            outgoing.wake()
        for stream in circling:
            if not stream.ended and self._runaways.found(stream):
                self.cancel(stream, Outcome.RUNAWAY)

    def funded(self, stream: Stream) -> Funded | None:
        """What of a stream is paid for; None where it has ended, or nothing bounds it."""
        return None if stream.funds is None or stream.ended else stream.funds.funded

    def fund(self, stream: Stream, funded: Funded, *, final: bool) -> None:
        """More of a stream is paid for; with `final`, no more than this will be."""
        funds = stream.funds
        if funds is None or stream.ended:
            return
        stream.account.funding = funded.funding
        self._reporter.note(stream.account)
        funds.grow(funded, stream.next_index, final=final)
        if (kept := funds.take_kept(stream.next_index)) is not None:
            stream.ask_at = NEVER
            self.on_step((StepOutput(step_s=0.0, outputs=(kept,), model=stream.order.engine.model),))
        if stream not in self._running:
            return  # what was kept held its end
        funds.ask_for_kept(stream.next_index)
        stream.ask_at = funds.ask_at
        if funds.over(stream.next_index):
            self._end_unfunded(stream)

    def _paid_for(self, stream: Stream, output: SequenceOutput, now_s: float) -> bool:
        """Whether the stream's reader may have the output; asks for more where it is time to."""
        funds = stream.funds
        assert funds is not None, "only streams with funds are looked at"
        if stream.cancelled:
            # What is made from here on is nobody's; its end passes.
            funds.kept.clear()
            if output.finish is not None:
                self._finish(stream, output, 0, now_s)
                if stream.outgoing is not None:
                    stream.outgoing.wake()
            return False
        passes = funds.passes(output, stream.next_index)
        stream.ask_at = funds.ask_at
        if funds.over(stream.next_index + (output.token_count if passes else 0)) and output.finish is None:
            self._end_unfunded(stream)
        return passes

    def _end_unfunded(self, stream: Stream) -> None:
        """The stream ends at its last funded token; what was kept of it is given to nobody."""
        self.cancel(stream, Outcome.BUDGET)
        stream.ask_at = AT_ONCE

    def _finish(self, stream: Stream, output: SequenceOutput, batch: int, now_s: float) -> None:
        """The engine has said its last word about the sequence."""
        account = stream.account
        account.prompt_tokens, account.cached_prompt_tokens = output.prompt_tokens, output.cached_prompt_tokens
        if stream.funds is not None:
            # An engine that counts the prompt at the end only may find more than is paid for: the house pays the rest.
            account.prompt_tokens = min(account.prompt_tokens, stream.funds.funded.prompt_tokens)
            account.cached_prompt_tokens = min(account.cached_prompt_tokens, account.prompt_tokens)
        error, outcome = None, str(output.finish)
        if output.finish is FinishReason.ERROR:
            error = from_reason(*(output.error or ("EngineFailed", "the engine gave up the request without a reason")))
        elif output.finish is FinishReason.CANCELLED and stream.cancelled:
            outcome = stream.cancelled
        stream.end_chunk(self._identity, outcome, error)
        self._close(stream, outcome, error, batch, now_s)

    def _close(self, stream: Stream, outcome: str, error: TokenworksError | None, batch: int, now_s: float) -> None:
        """Out of the tables; the last entry, the latencies and the span say how it was."""
        self._remove(stream)
        stream.account.last = True
        self._reporter.note(stream.account)
        latency = stream.latency(batch, self._engine.stats().kv_cache_usage)
        if latency.completion_tokens:
            self._reporter.finished(stream.order.engine.model, latency)
        self._instruments.end(stream.order, stream.span, Ended(outcome, latency, now_s - stream.opened_s, error))

    def _close_all(self, error: TokenworksError) -> None:
        """Ends every stream without the engine, which will not."""
        now_s = self._clock.monotonic_s()
        for stream in self._running:
            outgoing = stream.outgoing
            stream.end_chunk(self._identity, None, error)
            self._close(stream, Outcome.ERROR, error, 0, now_s)
            if outgoing is not None:
                outgoing.wake()

    def _check(self, order: Order) -> None:
        request = order.engine
        if self.refusal is not None:
            # A new one each time: an exception that is raised again keeps the frames of every time.
            raise from_reason(self.refusal.reason, str(self.refusal), self.refusal.retry_after_s)
        if self.info is not None and request.model not in self.info.models:
            served = ", ".join(self.info.models)
            raise UnknownModel(f"worker {self._identity.worker!r} does not serve {request.model!r}; it serves {served}")
        if self._bus.outbox_free < _LEAST_OUTBOX_FREE:
            raise OutboxFull(
                f"worker {self._identity.worker!r} cannot report its work to the bus, so it takes no more; ask another"
            )
        running = self._running.of(request.request_id)
        if running is None:
            return
        if not request.resume_from or running.order.tenant != order.tenant:
            raise DuplicateRequest(f"request {request.request_id!r} runs on worker {self._identity.worker!r} already")
        # Whoever goes on with it lost the way to what runs here, before that was noticed here.
        self.abandon(running, DuplicateRequest(f"request {request.request_id!r} goes on in another call"))

    def _refused(self, stream: Stream, error: TokenworksError) -> None:
        """The engine did not take it: nothing was made, nothing is reported."""
        if stream.ended:
            return  # the engine failed meanwhile
        self._remove(stream)
        duration_s = self._clock.monotonic_s() - stream.opened_s
        self._instruments.end(
            stream.order, stream.span, Ended(Outcome.ERROR, stream.latency(0, 0.0), duration_s, error)
        )

    def _remove(self, stream: Stream) -> None:
        stream.ended = True
        if stream.deadline is not None:
            stream.deadline.cancel()
        self._running.remove(stream)
