"""One admitted request: the workers that serve it one after the other, what has come, and what its client has taken.

In: chunks from a session. Out: one contiguous stream of messages for the client, and the figures that its end is
reported with. What to do when a worker fails it is decided by its `Owner`, the dispatcher.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from services.mesh.errors import CallerError, CapacityError, EngineFailed, TokenworksError, from_reason
from services.mesh.holds import RequestCredit
from services.router.core.known_worker import KnownWorker, Placed
from services.router.core.records import DecisionRecord
from services.router.core.request import Asked, Promise
from services.router.funds import funds_of
from services.router.messages import Journal, Mailbox, Sink, Unread
from services.router.session import WorkerSession
from tokenworks.v1 import inference_pb2 as wire


class Owner(Protocol):
    def started(self, relay: "Relay") -> None:
        """A worker's first chunk for the request came."""

    def completed(self, relay: "Relay", last: wire.GenerateResponse) -> None:
        """A worker ended the answer; `last` holds its Finish."""

    def funds_asked(self, relay: "Relay", asked: wire.FundsAsked) -> None:
        """A worker needs credit for the next part of the answer."""

    def failed(self, relay: "Relay", error: TokenworksError) -> None:
        """The worker refused the request or broke off."""

    def overflowed(self, relay: "Relay") -> None:
        """Its client does not read, and more waits for it than may."""


@dataclass(slots=True)
class Segment:
    """The part of an answer that one worker made; `count` tokens from index `first`."""

    worker: KnownWorker
    first: int
    count: int = 0


@dataclass(slots=True)
class Usage:
    """As the worker that ended the answer counted, and its price; zeros before."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    price_nusd: int = 0


class Relay:
    """Mutable; lives from admission until its client is done with it.

    Attributes:
        prompt_tokens, completion_tokens, cached_tokens: as expected when it was placed.
        traceparent: context of the span it is served under.
        admitted_s, admitted_unix_ms: when it was let in; the former is when it was first sent, where its client goes on
            with it after a break.
        resumed_tokens: how many tokens its client brought along.
        segments: one per worker that made tokens of it, or is about to.
        excluded: names of workers that failed it lately.
        placements: how many times it was placed.
        retry_until_s: give up looking for another worker then; None while it is served.
        credit: what is held for it; None where no budget bounds it.
        deadline_s: its caller's, by this router's monotonic clock; None where there is none.
        announced: its RequestAdmitted is published.
        outcome: why its stream ended; empty while it runs.
        delivered_tokens, first_s, last_s: what the client has, and when it took its first and latest tokens.
    """

    def __init__(
        self,
        owner: Owner,
        asked: Asked,
        request: wire.GenerateRequest,
        promise: Promise,
        record: DecisionRecord,
        *,
        traceparent: str,
        unread: Unread,
        now: Callable[[], float],
    ) -> None:
        self.asked = asked
        self.request = request
        self.promise = promise
        self.record = record
        self.resumed_tokens = asked.resume_from
        self.prompt_tokens = record.prompt_tokens - self.resumed_tokens
        self.completion_tokens = record.completion_tokens
        self.cached_tokens = 0
        self.traceparent = traceparent
        self.admitted_s = now() - request.resumed_s
        self.admitted_unix_ms = record.decided_unix_ms
        self.segments: list[Segment] = []
        self.placed: Placed | None = None
        self.session: WorkerSession | None = None
        self.number = 0
        self.excluded: set[str] = set(request.avoid_workers)
        self.placements = 0
        self.retry_until_s: float | None = None
        self.deadline_s: float | None = None
        self.credit: RequestCredit | None = None
        self.announced = False
        self.usage = Usage()
        self.outcome = ""
        self.error: TokenworksError | None = None
        self.delivered_tokens = self.resumed_tokens
        self.first_s = self.admitted_s + request.resumed_ttft_s if request.resumed_ttft_s else None
        self.last_s = 0.0
        self.journal = Journal(unread, request.resumed_token_ids.ids, request.resumed_text, self.resumed_tokens)
        request.ClearField("resumed_token_ids")
        request.ClearField("resumed_text")
        self._now = now
        self._owner = owner
        self._mailbox = Mailbox(self._sent)

    def attach(self, sink: Sink) -> None:
        """Gives the client what came, and from now on what comes."""
        self._mailbox.attach(sink)

    def flush(self) -> None:
        """The client takes more again."""
        self._mailbox.flush()

    def recall(self) -> None:
        """What was noted as delivered did not reach the client after all."""
        self.delivered_tokens = self.resumed_tokens

    def _sent(self, tokens: int) -> None:
        if tokens:
            self.last_s = self._now()
            if self.first_s is None:
                self.first_s = self.last_s
            self.delivered_tokens += tokens

    def served_by(self, worker: KnownWorker, placed: Placed) -> None:
        """From here on another worker makes its tokens."""
        if self.segments and self.segments[-1].count == 0:
            self.segments.pop()
        self.segments.append(Segment(worker, self.journal.next_index))
        self.placed = placed

    def put(self, data: bytes, tokens: int) -> bool:
        """Passes a serialised GenerateResponse on to the client, whose `tokens` begin with the one expected next. False
        when too much waits for it."""
        self.journal.add(data, tokens)
        self.segments[-1].count += tokens
        return self._mailbox.put(data, tokens)

    def open_stream(self, plan: str) -> wire.SessionRequest:
        """The order to a worker: the request, and the tokens that exist already."""
        order = wire.SessionRequest()
        stream = order.open  # written where it is sent from: prompts are long, and made up apart it would be copied
        stream.request.CopyFrom(self.request)
        stream.tenant = self.asked.tenant
        stream.traceparent = self.traceparent
        stream.plan = plan
        stream.ttft_promise_s = self.promise.ttft_promise_s(self.prompt_tokens)
        stream.tpot_promise_s = self.promise.tpot_s
        stream.priority = self.promise.priority
        if self.deadline_s is not None:
            stream.deadline_ms = max(1, round((self.deadline_s - self._now()) * 1000))
        if self.credit is not None:
            stream.funds.CopyFrom(funds_of(self.credit))
        if self.journal.next_index:
            ids, text = self.journal.resumed()
            # Ids mean nothing to another tokenizer; those of several tokenizers, nothing to any.
            brought = {self.request.resumed_tokenizer} if self.resumed_tokens else set()
            tokenizers = sorted(brought | {each.worker.beat.tokenizer for each in self.segments if each.count})
            stream.request.resume_from = self.journal.next_index
            stream.resumed_token_ids.ids.extend(ids if len(tokenizers) == 1 else ())
            stream.resumed_tokenizer = ",".join(tokenizers)
            stream.resumed_text = text
        return order

    def wire_segments(self, last_tokens: int) -> Iterator[wire.Segment]:
        """Who made which tokens, the `last_tokens` of the message to come included."""
        for each in self.segments:
            count = each.count + (last_tokens if each is self.segments[-1] else 0)
            if count:
                yield wire.Segment(
                    worker=each.worker.name,
                    accelerator=each.worker.beat.accelerator,
                    from_index=each.first,
                    count=count,
                )

    def end(self, outcome: str, error: TokenworksError | None = None) -> None:
        """Nothing more will come. The first end counts."""
        if not self.outcome:
            self.outcome, self.error = outcome, error
            self._mailbox.close(error)

    def give_up(self, error: TokenworksError) -> None:
        """It ends with an error, which says how far the answer got."""
        if self.journal.next_index:
            message = f"after {self.journal.next_index} tokens the answer could not be continued: {error}"
            error = type(error)(message, retry_after_s=error.retry_after_s)
        self.end("error", error)

    def refused_by(self, error: TokenworksError | None) -> bool:
        """Whether nothing was made of the request, and the error says that nothing will be."""
        return isinstance(error, CallerError | CapacityError) and self.journal.next_index == self.resumed_tokens

    def chunk(self, chunk: wire.StreamChunk) -> None:
        if not chunk.last and self.segments[-1].count and chunk.first_index == self.journal.next_index:
            # As nearly all are; what stands below says the same and more.
            if not self.put(chunk.response, chunk.token_count):
                self._owner.overflowed(self)
            return
        broke = chunk.last and chunk.HasField("error")
        if broke and not chunk.token_count:
            self._owner.failed(self, _error_of(chunk.error))
            return
        if chunk.first_index != self.journal.next_index:
            self._owner.failed(
                self,
                EngineFailed(
                    f"worker {self.segments[-1].worker.name!r} sent token {chunk.first_index} where"
                    f" {self.journal.next_index} comes next"
                ),
            )
            return
        if self.segments[-1].count == 0:
            self._owner.started(self)
        if broke:
            self.put(chunk.response, chunk.token_count)
            self._owner.failed(self, _error_of(chunk.error))
        elif chunk.last:
            self._owner.completed(self, wire.GenerateResponse.FromString(chunk.response))
        elif not self.put(chunk.response, chunk.token_count):
            self._owner.overflowed(self)

    def asks(self, asked: wire.FundsAsked) -> None:
        self._owner.funds_asked(self, asked)

    def lost(self, error: TokenworksError) -> None:
        self._owner.failed(self, error)

    @property
    def worker(self) -> KnownWorker:
        """The one that serves it, or did last."""
        return self.segments[-1].worker

    @property
    def ttft_s(self) -> float:
        """Seconds from admission to the client's first token; 0 when none came."""
        return 0.0 if self.first_s is None else self.first_s - self.admitted_s

    @property
    def tpot_s(self) -> float:
        """Mean seconds per token after the first; 0 when fewer than two came."""
        if self.delivered_tokens < 2 or self.first_s is None:
            return 0.0
        return max(0.0, self.last_s - self.first_s) / (self.delivered_tokens - 1)

    @property
    def slo_met(self) -> bool:
        """It ended by itself, and the promises of its class were kept."""
        return (
            self.outcome in ("stop", "length")
            and self.ttft_s <= self.promise.ttft_promise_s(self.usage.prompt_tokens or self.prompt_tokens)
            and self.tpot_s <= self.promise.tpot_s
        )


def _error_of(error: wire.StreamError) -> TokenworksError:
    return from_reason(error.reason, error.message, error.retry_after_ms / 1000 or None)
