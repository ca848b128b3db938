"""Where a request goes, by the rules that other routers use: what the mesh's own policy is compared with.

Each is given exact knowledge that a real router would have to estimate: which workers can serve a class at all, what
is in flight where, and (where the rule wants it) the mean answer. Sources: round robin and least requests are every
load balancer's; two choices is Mitzenmacher's; the KV-block cost is NVIDIA Dynamo's (new blocks to compute + blocks
in use); outstanding tokens over throughput is the weighting by device speed that heterogeneous fleets start with.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final, Protocol

from services.mesh.events import LatencyObserved, ReplicaTarget, WorkerHeartbeat
from services.optimizer.core.demand import PROMPT_EDGES, bucket
from services.optimizer.core.service_curve import Promise, Station, Work, service
from services.twin.requests import TwinRequest
from services.twin.worker import TwinWorker
from services.worker.core.kv_cache import BLOCK_TOKENS, blocks_for

_FIRST_MEAN: Final = 200.0
_UTILISATION: Final = 0.85


class Verdict(Enum):
    """What becomes of a request that is not sent to a worker."""

    WAITS = 1
    REFUSED = 2


class Policy(Protocol):
    """Told of everything a router hears; asked where requests go.

    Attributes:
        waiting: requests that it has let wait.
        targets: how many replicas there should be of elastic pools; none where it does not say.
    """

    name: str
    targets: Sequence[ReplicaTarget]

    @property
    def waiting(self) -> int: ...

    def heard(self, event: WorkerHeartbeat | LatencyObserved, now_s: float) -> None: ...
    def tick(self, now_s: float) -> None:
        """Four times a second."""
        ...

    def admit(self, request: TwinRequest, now_s: float) -> str | Verdict | None:
        """The worker that a new request is sent to, or that it waits or is refused; None where none takes it."""
        ...

    def settle(self, now_s: float) -> Iterable[tuple[TwinRequest, str | Verdict]]:
        """Requests that wait no more: sent to a worker, or refused."""
        ...

    def pick(self, request: TwinRequest, avoid: Sequence[str], now_s: float) -> str | None:
        """The worker for a request that goes on; None where none takes it. It is not sent before `placed`."""
        ...

    def placed(self, request: TwinRequest, worker: str, now_s: float) -> None: ...
    def first_token(self, request: TwinRequest, worker: str, now_s: float) -> None: ...
    def left(self, request: TwinRequest, worker: str, now_s: float) -> None:
        """The request ended there, or broke off."""
        ...

    def finished(self, request: TwinRequest, now_s: float) -> None:
        """The request is over."""
        ...


@dataclass(slots=True)
class _InFlight:
    """What a router has sent to one worker."""

    worker: TwinWorker
    requests: int = 0
    prompt_tokens: int = 0  # not computed yet
    blocks: int = 0
    tokens: float = 0.0


class Baseline:
    """What the simple rules share: exact counts of what is in flight, and who is feasible."""

    name = "baseline"

    def __init__(self, workers: Sequence[TwinWorker], seed: int) -> None:
        self._all = {each.name: _InFlight(each) for each in workers}
        self.targets: Sequence[ReplicaTarget] = ()
        self._rng = Random(f"{seed}/{self.name}")
        self._down: set[str] = set()
        self._mean = _FIRST_MEAN
        self._feasible = _Feasible()

    @property
    def waiting(self) -> int:
        return 0

    def admit(self, request: TwinRequest, now_s: float) -> str | Verdict | None:
        worker = self.pick(request, (), now_s)
        if worker is not None:
            self.placed(request, worker, now_s)
        return worker

    def settle(self, now_s: float) -> Iterable[tuple[TwinRequest, str | Verdict]]:
        return ()

    def heard(self, event: WorkerHeartbeat | LatencyObserved, now_s: float) -> None:
        if isinstance(event, WorkerHeartbeat):
            (self._down.discard if event.state == "ready" else self._down.add)(event.worker)

    def tick(self, now_s: float) -> None:
        pass

    def pick(self, request: TwinRequest, avoid: Sequence[str], now_s: float) -> str | None:
        open_ = [each for name, each in self._all.items() if name not in self._down and name not in avoid]
        able = [each for each in open_ if self._feasible(each.worker, request, self._mean)] or open_
        return self._choose(able, request).worker.name if able else None

    def placed(self, request: TwinRequest, worker: str, now_s: float) -> None:
        each = self._all[worker]
        each.requests += 1
        each.prompt_tokens += request.prompt_tokens
        each.blocks += blocks_for(request.prompt_tokens)
        each.tokens += request.prompt_tokens + self._mean

    def first_token(self, request: TwinRequest, worker: str, now_s: float) -> None:
        self._all[worker].prompt_tokens -= request.prompt_tokens

    def left(self, request: TwinRequest, worker: str, now_s: float) -> None:
        each = self._all[worker]
        each.requests -= 1
        each.blocks -= blocks_for(request.prompt_tokens)
        each.tokens = max(0.0, each.tokens - request.prompt_tokens - self._mean) if each.requests else 0.0
        if not request.first_s:
            each.prompt_tokens -= request.prompt_tokens

    def finished(self, request: TwinRequest, now_s: float) -> None:
        self._mean += 0.02 * (request.completion_tokens - self._mean)

    def _choose(self, able: Sequence[_InFlight], request: TwinRequest) -> _InFlight:
        raise NotImplementedError


class RoundRobin(Baseline):
    name = "round-robin"

    def __init__(self, workers: Sequence[TwinWorker], seed: int) -> None:
        super().__init__(workers, seed)
        self._turn = 0

    def _choose(self, able: Sequence[_InFlight], request: TwinRequest) -> _InFlight:
        self._turn += 1
        return able[self._turn % len(able)]


class TwoChoices(Baseline):
    name = "two-choices"

    def _choose(self, able: Sequence[_InFlight], request: TwinRequest) -> _InFlight:
        first, second = self._rng.choice(able), self._rng.choice(able)
        return first if first.requests <= second.requests else second


class LeastRequests(Baseline):
    name = "least-requests"

    def _choose(self, able: Sequence[_InFlight], request: TwinRequest) -> _InFlight:
        least = min(each.requests for each in able)
        return self._rng.choice([each for each in able if each.requests == least])


class KvBlockCost(Baseline):
    """Dynamo's: prompt blocks to compute there, and blocks in use there, after the request."""

    name = "kv-block-cost"

    def _choose(self, able: Sequence[_InFlight], request: TwinRequest) -> _InFlight:
        mine = blocks_for(request.prompt_tokens)
        costs = [blocks_for(each.prompt_tokens) + mine + each.blocks for each in able]
        least = min(costs)
        return self._rng.choice([each for each, cost in zip(able, costs, strict=True) if cost == least])


class TokensOverThroughput(Baseline):
    """Outstanding tokens over what the device makes of them in a second, by its catalogue's figures."""

    name = "tokens-over-throughput"

    def __init__(self, workers: Sequence[TwinWorker], seed: int) -> None:
        super().__init__(workers, seed)
        self._tokens_per_s = {each.name: _throughput(each) for each in workers}

    def _choose(self, able: Sequence[_InFlight], request: TwinRequest) -> _InFlight:
        mine = request.prompt_tokens + self._mean
        return min(able, key=lambda each: (each.tokens + mine) / self._tokens_per_s[each.worker.name])


BASELINES: Final[tuple[type[Baseline], ...]] = (
    RoundRobin,
    TwoChoices,
    KvBlockCost,
    LeastRequests,
    TokensOverThroughput,
)


class _Feasible:
    """Which workers can serve a class within its promises at all, by the optimizer's service curves."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], bool] = {}

    def __call__(self, worker: TwinWorker, request: TwinRequest, mean_tokens: float) -> bool:
        promise = request.promise
        prompt_bucket = bucket(PROMPT_EDGES, request.prompt_tokens)
        key = worker.device.key, promise.name, prompt_bucket
        known = self._known.get(key)
        if known is None:
            limits = worker.limits
            station = Station(
                timing=worker.timing,
                workers=1,
                max_batch=limits.max_batch,
                kv_capacity_tokens=limits.kv_blocks * BLOCK_TOKENS,
                context_tokens=worker.context_tokens,
                prefill_chunk_tokens=limits.prefill_chunk_tokens,
            )
            planned = Promise(promise.ttft_s, promise.ttft_s_per_prompt_token, promise.tpot_s, promise.miss_usd)
            found = service(station, Work(request.prompt_tokens, mean_tokens), planned, _UTILISATION)
            known = self._known[key] = found.feasible
        return known


def _throughput(worker: TwinWorker) -> float:
    """Tokens per second, prompt and answer alike, of requests of 1,000 and 200 tokens at a batch of 32."""
    timing = worker.timing
    batch, prompt, answer = 32, 1000, 200
    decode_s = timing.decode_s(batch, batch * (prompt + answer // 2)) / batch
    request_s = timing.prefill_s(prompt, 0, worker.limits.prefill_chunk_tokens) + answer * decode_s
    return (prompt + answer) / request_s
