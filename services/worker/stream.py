"""One request on this worker: who listens, what it has made, how long it took. Its end, as its reader is told."""

import asyncio
from dataclasses import dataclass

from opentelemetry.trace import Span

from services.mesh.errors import TokenworksError
from services.mesh.events import RequestLatency, RunawayGrade
from services.worker.account import Account
from services.worker.core.repetition import Repetition
from services.worker.funding import NEVER, StreamFunds
from services.worker.identity import Identity
from services.worker.outgoing import Outgoing
from services.worker.requests import Order
from tokenworks.v1 import inference_pb2 as pb


@dataclass(slots=True, eq=False, kw_only=True)
class Stream:
    """One request on this worker.

    Attributes:
        number: the reader's number of it in `outgoing`.
        outgoing: where its tokens go; None from when nobody listens any more.
        next_index: index of the token that comes next.
        first_s, newest_s, worst_gap_s: when its tokens came, as the engine's steps were reported.
        repetition: watches whether it goes in circles; None where nobody wants to know.
        runaway: what was said of that.
        funds: what of it is paid for; None where no budget bounds it.
        ask_at: it is looked at whether more is paid for once it has so many tokens.
        deadline: ends it when its caller's time is over; None where that is not told.
        cancelled: why, as the last chunk says; empty while nobody has cancelled it.
    """

    order: Order
    number: int
    outgoing: Outgoing | None
    account: Account
    span: Span | None
    opened_s: float
    next_index: int
    repetition: Repetition | None = None
    runaway: RunawayGrade = RunawayGrade.NONE
    first_s: float | None = None
    newest_s: float = 0.0
    worst_gap_s: float = 0.0
    queue_s: float = 0.0
    funds: StreamFunds | None = None
    ask_at: int = NEVER
    deadline: asyncio.TimerHandle | None = None
    cancelled: str = ""
    ended: bool = False

    @property
    def made_tokens(self) -> int:
        """Tokens that this worker made of it."""
        return self.next_index - self.order.engine.resume_from

    def latency(self, batch: int, kv_cache_usage: float) -> RequestLatency:
        """How it went, as far as it got.

        Args:
            batch: sequences in its last step.
            kv_cache_usage: 0 to 1, at its end.
        """
        made, account = self.made_tokens, self.account
        first_s = self.opened_s if self.first_s is None else self.first_s
        return RequestLatency(
            request_id=account.request_id,
            slo_class=account.slo_class,
            prompt_tokens=account.prompt_tokens,
            cached_prompt_tokens=account.cached_prompt_tokens,
            completion_tokens=made,
            queue_s=self.queue_s,
            ttft_s=first_s - self.opened_s,
            tpot_s=(self.newest_s - first_s) / (made - 1) if made > 1 else 0.0,
            worst_gap_s=self.worst_gap_s,
            batch=batch,
            kv_cache_usage=kv_cache_usage,
            traceparent=account.traceparent,
        )

    def end_chunk(self, identity: Identity, outcome: str | None, error: TokenworksError | None) -> None:
        """Puts the end into its last chunk: an error, or else how it finished and what it used."""
        if self.outgoing is None:
            return
        chunk = self.outgoing.chunk(self.number, self.account.request_id, self.next_index)
        if error is not None:
            chunk.end(error)
            return
        segment = pb.Segment(
            worker=identity.worker,
            accelerator=identity.accelerator.key,
            from_index=self.order.engine.resume_from,
            count=self.made_tokens,
        )
        finish = pb.Finish(
            reason=outcome,
            usage=pb.Usage(
                prompt_tokens=self.account.prompt_tokens,
                cached_prompt_tokens=self.account.cached_prompt_tokens,
                completion_tokens=self.next_index,
            ),
            segments=(segment,),
        )
        chunk.end(finish)
