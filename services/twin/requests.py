"""Requests of a simulated run: what they ask, where they are, how they fared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.router.core.request import Promise
from services.twin.traces import BLOCK_TOKENS as TRACE_BLOCK_TOKENS
from services.twin.traces import TraceRequest
from services.worker.core.kv_cache import BLOCK_TOKENS

_PER_TRACE_BLOCK: Final = TRACE_BLOCK_TOKENS // BLOCK_TOKENS


@dataclass(slots=True, eq=False)
class TwinRequest:
    """One request from arrival to end.

    Attributes:
        completion_tokens: that its answer will have; only the engine knows.
        max_tokens, exact: what its client says of the answer's length, see `TraceRequest`.
        prefix: identifies what its prompt starts with: chained hashes of its 512-token blocks, or of its session.
        delivered: tokens that its client has.
        priority: at its worker; lower is sooner.
        legs: workers that made tokens of it, in order.
        outcome: empty while it runs, "length", or the error that ended it.
    """

    index: int
    promise: Promise
    arrival_s: float
    prompt_tokens: int
    completion_tokens: int
    workload: str
    tenant: str
    session_id: str
    max_tokens: int = 0
    exact: bool = False
    prefix: tuple[int, ...] = ()
    delivered: int = 0
    cached_tokens: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    legs: list[str] = field(default_factory=list)
    tries: int = 0
    priority: int = 0
    outcome: str = ""

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Mean seconds between tokens; 0 for answers of one."""
        return (self.last_s - self.first_s) / (self.delivered - 1) if self.delivered > 1 else 0.0

    @property
    def slo_met(self) -> bool:
        """It ended whole, within its promises."""
        promise = self.promise
        return (
            self.outcome == "length"
            and self.ttft_s <= promise.ttft_promise_s(self.prompt_tokens)
            and self.tpot_s <= promise.tpot_s
        )

    def hashes(self) -> Sequence[int]:
        """Hashes of the prompt's full 16-token blocks, as far as the trace tells them apart from others'."""
        full = self.prompt_tokens // BLOCK_TOKENS
        hashes = [hash((block, part)) for block in self.prefix for part in range(_PER_TRACE_BLOCK)]
        return hashes[:full]


def requests_of(
    trace: Sequence[TraceRequest], classes: Sequence[str], promises: dict[str, Promise], speed: float
) -> Iterator[TwinRequest]:
    """The trace's requests, at their arrivals divided by `speed`."""
    for index, (each, name) in enumerate(zip(trace, classes, strict=True)):
        yield TwinRequest(
            index=index,
            promise=promises[name],
            arrival_s=each.arrival_s / speed,
            prompt_tokens=max(1, each.prompt_tokens),
            completion_tokens=each.completion_tokens,
            workload=each.workload or "trace",
            tenant=each.tenant or "trace",
            session_id=each.session_id,
            max_tokens=each.max_tokens,
            exact=each.exact,
            prefix=_prefix(each),
            priority=promises[name].priority,
        )


def _prefix(request: TraceRequest) -> tuple[int, ...]:
    """Chained over the blocks: equal up to a block means equal up to there."""
    link = 0
    chained = []
    blocks: Sequence[int] = request.blocks
    if not blocks and request.session_id:
        seed = hash(request.session_id)
        blocks = [hash((seed, place)) for place in range(request.prompt_tokens // TRACE_BLOCK_TOKENS)]
    for block in blocks:
        link = hash((link, block))
        chained.append(link)
    return tuple(chained)
