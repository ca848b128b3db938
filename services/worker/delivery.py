"""One stream delivered straight to its client: what the client took, when, and how it ended.

In: the chunks of one `Outgoing`, and what the edge says it has handed over. Out: messages for the client, the last one
with its price; and `RequestFinished`, the deliverer's witness. Times are those at which the edge handed tokens over. A
client that resumes brings the times of what it had before (`resumed_ttft_s`, `resumed_s`); who leaves them out is
timed from its arrival here.
"""

from math import isfinite
from typing import Final

from services.mesh.errors import CallerError, CapacityError, TokenworksError, WorkerLost
from services.mesh.events import Funding, Outcome, PlacementEnded, RequestAdmitted, RequestFinished
from services.mesh.placement import PlacementClaims
from services.mesh.telemetry import trace_id_of
from services.worker.identity import Identity
from services.worker.outgoing import Chunk, Outgoing
from services.worker.stream import Stream
from tokenworks.v1 import inference_pb2 as pb

_LONGEST_S: Final = 1e6  # of what a client says; longer is taken for nonsense


class Delivery:
    """Mutable; lives from the opening of a direct stream until its client has the end, or is gone.

    Attributes:
        announced: its RequestAdmitted is published, or was at its first placement.
        outcome: why it ended, as its client knows; empty while it runs.
        price_nusd: of the whole answer; 0 before its end.
    """

    def __init__(
        self,
        identity: Identity,
        claims: PlacementClaims,
        request: pb.GenerateRequest,
        stream: Stream,
        outgoing: Outgoing,
        *,
        traceparent: str,
        opened_s: float,
    ) -> None:
        self.claims = claims
        self.stream = stream
        self.traceparent = traceparent
        self.announced = claims.resume_from > 0
        self.outcome = ""
        self.price_nusd = 0
        self._identity = identity
        self._session_id = request.session_id
        self._outgoing = outgoing
        self._opened_s = opened_s
        self._resumed_ttft_s = _plausible(request.resumed_ttft_s) if claims.resume_from else 0.0
        self._before_s = _plausible(request.resumed_s) if claims.resume_from else claims.waited_s
        self._error: TokenworksError | None = None
        self._tokens = 0
        self._first_s = 0.0
        self._last_s = 0.0

    async def take(self) -> pb.GenerateResponse | None:
        """What has come since the last call, once something has; None after the end. Valid until the next call.

        Raises:
            TokenworksError: the stream could not be finished here.
        """
        while self._error is None:
            if self.outcome or not await self._outgoing.wait():
                return None
            for _, chunk in self._outgoing.take():
                self._note_end(chunk)
                if chunk.token_count or chunk.text or chunk.finish is not None:
                    return self._outgoing.response(chunk)
        raise self._error

    def delivered(self, message: pb.GenerateResponse, now_s: float) -> None:
        """The client has the message."""
        if message.token_count:
            if not self._tokens:
                self._first_s = now_s
            self._last_s = now_s
            self._tokens += message.token_count
        if message.HasField("finish"):
            self.outcome = message.finish.reason

    def recall(self) -> None:
        """What was noted as delivered did not reach the client after all."""
        self._tokens, self.outcome = 0, ""

    def end(self) -> None:
        """The client has the end, or is gone."""
        if not self.outcome:
            self.outcome = Outcome.ERROR if self._error is not None else Outcome.CANCELLED

    @property
    def refused(self) -> bool:
        """Nothing was made of the request, and nothing will be: it leaves no trace."""
        return isinstance(self._error, CallerError | CapacityError) and not self.stream.made_tokens

    def _note_end(self, chunk: Chunk) -> None:
        if chunk.finish is not None and chunk.finish.reason == Outcome.CANCELLED:
            # Nobody here asked for that: the worker is going away.
            chunk.finish, chunk.error = None, WorkerLost(f"worker {self._identity.worker!r} gave the request up")
        if chunk.error is not None:
            self._error = chunk.error
        elif chunk.finish is not None:
            usage = chunk.finish.usage
            cached_tokens = min(usage.cached_prompt_tokens, usage.prompt_tokens)
            price_nusd = self.claims.rates.price_nusd(usage.prompt_tokens, cached_tokens, usage.completion_tokens)
            unpaid = chunk.finish.reason == Outcome.BUDGET and not usage.completion_tokens  # then the prompt was not
            self.price_nusd = 0 if unpaid else price_nusd
            chunk.finish.price_nusd = self.price_nusd

    # What the mesh is told of it.

    def admitted_event(self) -> RequestAdmitted:
        claims = self.claims
        return RequestAdmitted(
            request_id=claims.request_id,
            router=claims.router,
            tenant=claims.tenant,
            workload=claims.workload,
            model=claims.model,
            slo_class=claims.slo_class,
            prompt_tokens=claims.prompt_tokens,
            max_tokens=claims.funded_tokens,
            worker=self._identity.worker,
            pool=self._identity.pool,
            plan=claims.plan,
            at_unix_ms=claims.admitted_unix_ms,
            price_book=claims.price_book,
            session_id=self._session_id,
            funding=self._funding,
            key=claims.key,
            team=claims.team,
            conversation=claims.conversation,
            within=claims.within,
        )

    def finished_event(self, now_s: float, now_unix_ms: int) -> RequestFinished:
        """What its client has of the answer, from the first token on, whoever made and delivered the earlier ones."""
        claims, account = self.claims, self.stream.account
        ttft_s, tpot_s = self._ttft_s(), self._tpot_s()
        promise_s = claims.ttft_promise_s + claims.ttft_promise_s_per_prompt_token * account.prompt_tokens
        kept = ttft_s <= promise_s and tpot_s <= claims.tpot_promise_s
        return RequestFinished(
            request_id=claims.request_id,
            router=claims.router,
            tenant=claims.tenant,
            workload=claims.workload,
            model=claims.model,
            slo_class=claims.slo_class,
            worker=self._identity.worker,
            pool=self._identity.pool,
            accelerator=self._identity.accelerator.key,
            delivered_from=0,
            delivered_count=self._delivered_tokens,
            prompt_tokens=account.prompt_tokens,
            cached_prompt_tokens=account.cached_prompt_tokens,
            outcome=self.outcome,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            e2e_s=self._before_s + now_s - self._opened_s,
            slo_met=self.outcome in (Outcome.STOP, Outcome.LENGTH) and kept,
            trace_id=trace_id_of(self.traceparent),
            at_unix_ms=now_unix_ms,
            admitted_unix_ms=claims.admitted_unix_ms,
            price_book=claims.price_book,
            plan=claims.plan,
            funding=self._funding,
        )

    def placement_ended(self) -> PlacementEnded:
        account = self.stream.account
        return PlacementEnded(
            request_id=self.claims.request_id,
            outcome=self.outcome,
            delivered_tokens=self._delivered_tokens,
            prompt_tokens=account.prompt_tokens,
            cached_prompt_tokens=account.cached_prompt_tokens,
        )

    @property
    def _funding(self) -> tuple[Funding, ...]:
        return () if self.stream.funds is None else self.stream.funds.funded.funding

    @property
    def _delivered_tokens(self) -> int:
        return self.claims.resume_from + self._tokens

    def _ttft_s(self) -> float:
        """Seconds from the request to its client's first token; 0 when none came."""
        if self._resumed_ttft_s:
            return self._resumed_ttft_s
        return self._before_s + self._first_s - self._opened_s if self._tokens else 0.0

    def _tpot_s(self) -> float:
        """Mean seconds per token after the first; 0 when fewer than two came, or none here."""
        if self._delivered_tokens < 2 or not self._tokens:
            return 0.0
        last_s = self._before_s + self._last_s - self._opened_s
        return max(0.0, last_s - self._ttft_s()) / (self._delivered_tokens - 1)


def _plausible(seconds: float) -> float:
    return seconds if isfinite(seconds) and 0.0 <= seconds <= _LONGEST_S else 0.0
