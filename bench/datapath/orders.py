"""What the load is told to do, what one request looks like to its client, and what came of all of them."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from bench.datapath.fit import percentile

Kind = Literal["http", "grpc", "direct", "client"]


@dataclass(frozen=True, slots=True)
class Order:
    """What to do.

    Attributes:
        address: host:port. key: sent as Bearer where it is not empty.
        tokens: per request. step_ms: between them; 0: back to back.
        streams: at once. requests: to start in all; 0: as many as `limit_s` allows.
        spread_s: the first requests of the streams start evenly over this time.
        rate: requests a second, whatever becomes of them; 0: a new one when one has ended.
        limit_s: then what still runs is broken off.
        slow_readers: so many of the streams read `slow_bytes_s` bytes a second only, of an answer of `slow_tokens`
            tokens every `slow_step_ms`.
        streams_per_connection: of gRPC; HTTP/1.1 has one.
    """

    kind: Kind
    address: str
    key: str = ""
    model: str = ""
    tokens: int = 1
    step_ms: float = 0.0
    streams: int = 1
    requests: int = 0
    spread_s: float = 0.0
    rate: float = 0.0
    limit_s: float = 60.0
    slow_readers: int = 0
    slow_bytes_s: int = 1024
    slow_tokens: int = 3000
    slow_step_ms: float = 2.0
    streams_per_connection: int = 1


class Reading:
    """One request as its client sees it."""

    __slots__ = ("done", "ended", "failure", "first_s", "gaps_s", "last_s", "sent_s", "slow", "tokens")

    def __init__(self, sent_s: float, *, slow: bool = False) -> None:
        self.sent_s = sent_s
        self.slow = slow
        self.first_s = 0.0
        self.last_s = 0.0
        self.tokens = 0
        self.gaps_s: list[float] = []
        self.ended = False
        self.failure = ""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def came(self, count: int, now_s: float) -> None:
        """`count` tokens arrived together: one gap, from the arrival before."""
        if self.tokens:
            self.gaps_s.append(now_s - self.last_s)
        else:
            self.first_s = now_s
        self.last_s = now_s
        self.tokens += count

    def end(self, failure: str = "") -> None:
        """The answer is over. The first end counts."""
        if not self.ended:
            self.ended, self.failure = True, failure
        if not self.done.done():
            self.done.set_result(None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an order; gaps are those of readers that are not slow, None where there were none.

    Attributes:
        requests: started. whole: answered in full. unfinished: broken off by the limit, or by their own slowness.
        tokens: received, those of unfinished requests included.
        failures: why requests failed, and how often.
    """

    requests: int
    whole: int
    unfinished: int
    failed: int
    tokens: int
    took_s: float
    client_cpu_s: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    gap_p50_ms: float | None
    gap_p99_ms: float | None
    gap_max_ms: float | None
    failures: dict[str, int] = field(default_factory=dict)


class Client(Protocol):
    """Requests of one kind; keeps its connections."""

    async def request(self, order: Order, reading: Reading) -> None:
        """Sends one request and returns when its answer is over. Cancelled, it breaks it off.

        Raises:
            OSError: no connection.
        """

    async def close(self) -> None: ...


def outcome_of(readings: Sequence[Reading], took_s: float, client_cpu_s: float) -> Outcome:
    ttfts_ms = [(each.first_s - each.sent_s) * 1000 for each in readings if each.tokens and not each.slow]
    gaps_ms = [gap_s * 1000 for each in readings if not each.slow for gap_s in each.gaps_s]
    failures = Counter(each.failure for each in readings if each.failure)
    ended = sum(each.ended for each in readings)
    return Outcome(
        requests=len(readings),
        whole=ended - failures.total(),
        unfinished=len(readings) - ended,
        failed=failures.total(),
        tokens=sum(each.tokens for each in readings),
        took_s=took_s,
        client_cpu_s=client_cpu_s,
        ttft_p50_ms=percentile(ttfts_ms, 50),
        ttft_p99_ms=percentile(ttfts_ms, 99),
        gap_p50_ms=percentile(gaps_ms, 50),
        gap_p99_ms=percentile(gaps_ms, 99),
        gap_max_ms=max(gaps_ms, default=None),
        failures=dict(failures.most_common(5)),
    )
