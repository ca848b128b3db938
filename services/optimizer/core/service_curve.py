"""What a pool can do for a workload class while it keeps the class's promise, and what that takes.

In: a pool's timing and bounds, the class's mean request, its promise. Out: `Service`: feasible or why not, the batch
to run at, device-seconds per request.

Take one worker that serves only this class, `B` requests at a time. A request has P prompt tokens of which some are
cached, computed in k chunks that take prefill_s in all, then D = C - 1 decode steps. Chunks travel in steps that decode
too, so the weights are read once for both, and a request takes

    device_s(B) = prefill_s + decode_base_s * max(0, D / B - k) + D * ride_s
    ride_s      = decode_s_per_sequence + decode_s_per_kv_token * (P + C / 2)

seconds of the device. B requests share the device, and what is not decoding in it is prefill of others:

    step_s(B)    = decode_base_s + B * ride_s
    psi(B)       = 1 - D * step_s(B) / (B * device_s(B))         the part of a busy device's time that prefill adds
    tpot_s(B, u) = step_s(B) / (1 - u * psi(B))                  u: the part of time that the device is busy

Full all the time, tpot_s(B, 1) = B * device_s(B) / D. It grows with B, and device_s falls with B: the cheapest batch is
the largest one that keeps the promised TPOT, the KV cache and the engine's batch limit. This is why a cost per token is
a curve over interactivity, and why the order of accelerators by cost differs from class to class. "Keeps" leaves room
for fluctuations: the batch is sized for target_utilisation * the promised TPOT. Where even a batch of one would meet
too many prefills of others (short answers to long prompts), the promise bounds u.

The first token waits for the step under way, for its own chunks (with the others riding along), and for prefills that
came before. The last is a queue whose utilisation q is the part of time that goes to prefills; at a wait of
`_LATE` times the mean of an M/M/1 queue (its 95th percentile is three times the mean), shared by the pool's workers:

    ttft_s = step_s + own_s + _LATE * own_s / workers * q / (1 - q)

So the promised TTFT bounds u too. Where a bound lies below the planned utilisation, the class keeps part of the device
waiting for it, and that part counts against capacity (`held_s`) but is not use.
"""

import math
from dataclasses import dataclass
from typing import Final

from services.mesh.timing import Timing

_LATE: Final = 3.0
_LEAST_USE: Final = 0.05  # a class that needs the rest of the device idle is not feasible


@dataclass(frozen=True, slots=True)
class Promise:
    """TTFT within `ttft_s + ttft_s_per_prompt_token * prompt tokens`, TPOT within `tpot_s`; a miss costs `miss_usd`."""

    ttft_s: float
    ttft_s_per_prompt_token: float
    tpot_s: float
    miss_usd: float


@dataclass(frozen=True, slots=True)
class Station:
    """One pool as it serves one model; a bound of 0 is not known and does not bind.

    Attributes:
        workers: >= 1; how many share what arrives.
    """

    timing: Timing
    workers: int
    max_batch: int
    kv_capacity_tokens: int
    context_tokens: int
    prefill_chunk_tokens: int


@dataclass(frozen=True, slots=True)
class Work:
    """The mean request of a class."""

    prompt_tokens: float
    completion_tokens: float
    cached_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Service:
    """How one pool serves one class.

    Attributes:
        because: empty when feasible, else what binds: "context", "memory", "tpot" or "ttft".
        batch: requests at a time on a worker.
        device_s: seconds of a worker that a request uses at that batch.
        held_s: seconds of a worker's planned capacity that a request takes, >= device_s.
        ttft_s, tpot_s: predicted at that batch and the planned load.
    """

    because: str
    batch: int
    device_s: float
    held_s: float
    ttft_s: float
    tpot_s: float

    @property
    def feasible(self) -> bool:
        return not self.because


def service(station: Station, work: Work, promise: Promise, target_utilisation: float) -> Service:
    """The cheapest way for the pool to serve the class within its promise; where there is none, the fullest batch.

    Args:
        target_utilisation: 0 to 1, above 0; how full the plan fills a device, and a step the promised TPOT.
    """
    curve = _Curve(station, work, promise, target_utilisation)
    room = _room(station, work)
    if station.context_tokens and work.prompt_tokens + work.completion_tokens > station.context_tokens:
        return curve.at(max(1, room), "context")
    if room < 1:
        return curve.at(1, "memory")
    batch = max(1, int(min(room, curve.largest_batch())))
    best = curve.at(batch)
    # A smaller batch makes the first token sooner: worth it only while it holds less of the device in all.
    while batch > 1 and (not best.feasible or best.held_s > best.device_s):
        batch //= 2
        smaller = curve.at(batch)
        if smaller.feasible and (not best.feasible or smaller.held_s < best.held_s):
            best = smaller
    return best if best.feasible else curve.at(room, best.because)


def _room(station: Station, work: Work) -> int:
    """Requests that fit at a time."""
    room = station.max_batch or 4096
    if station.kv_capacity_tokens:
        room = min(room, int(station.kv_capacity_tokens / max(1.0, work.prompt_tokens + work.completion_tokens)))
    return room


class _Curve:
    """The formulas above for one station and one class."""

    def __init__(self, station: Station, work: Work, promise: Promise, target_utilisation: float) -> None:
        timing = station.timing
        self._timing = timing
        self._workers = max(1, station.workers)
        self._target = target_utilisation
        prompt_tokens = max(1, round(work.prompt_tokens))
        # The last prompt token is always computed: it makes the first answer token.
        cached_tokens = min(prompt_tokens - 1, int(prompt_tokens * work.cached_fraction))
        self._prefill_s = timing.prefill_s(prompt_tokens, cached_tokens, station.prefill_chunk_tokens)
        self._chunks = math.ceil((prompt_tokens - cached_tokens) / station.prefill_chunk_tokens)
        self._gaps = max(0.0, work.completion_tokens - 1)
        self._kv_tokens = prompt_tokens + work.completion_tokens / 2
        self._ride_s = timing.decode_s_per_sequence + timing.decode_s_per_kv_token * self._kv_tokens
        self._tpot_s = promise.tpot_s * target_utilisation
        self._ttft_s = promise.ttft_s + promise.ttft_s_per_prompt_token * work.prompt_tokens

    def device_s(self, batch: float) -> float:
        shared_steps = max(0.0, self._gaps / batch - self._chunks)
        return self._prefill_s + self._timing.decode_base_s * shared_steps + self._gaps * self._ride_s

    def largest_batch(self) -> float:
        """The batch at which tpot_s(B, 1) is the planned part of the promise; infinite for answers of one token."""
        if self._gaps <= 0:
            return math.inf
        base_s = self._timing.decode_base_s
        per_request_s = self._ride_s + (self._prefill_s - self._chunks * base_s) / self._gaps
        spare_s = self._tpot_s - base_s
        if spare_s <= 0:
            return 0.0
        # Up to D / k requests, some steps carry no chunk and read the weights for decoding only.
        if per_request_s <= 0 or spare_s / per_request_s <= self._gaps / self._chunks:
            return spare_s / max(per_request_s, 1e-12)
        return self._tpot_s / (self._ride_s + self._prefill_s / self._gaps)

    def at(self, batch: int, because: str = "") -> Service:
        device_s = self.device_s(batch)
        riders_s = batch * self._ride_s
        step_s = self._timing.decode_base_s + riders_s
        own_s = self._prefill_s + self._chunks * riders_s
        late_s = _LATE * own_s / self._workers
        spare_s = max(0.0, self._ttft_s - step_s - own_s)
        prefilling = min(1.0, self._prefill_s / device_s)
        by_ttft = spare_s / (spare_s + late_s) / prefilling
        added, by_tpot = 0.0, math.inf
        if self._gaps > 0:
            added = max(0.0, 1 - self._gaps * step_s / (batch * device_s))
            by_tpot = max(0.0, 1 - step_s / self._tpot_s) / max(added, 1e-9)
        use = min(self._target, by_ttft, by_tpot)
        if not because and use < _LEAST_USE * self._target:
            because = "tpot" if by_tpot < by_ttft else "ttft"
        busy = min(0.99, use * prefilling)
        return Service(
            because=because,
            batch=batch,
            device_s=device_s,
            held_s=device_s * self._target / use if use > 0 else device_s,
            ttft_s=step_s + own_s + late_s * busy / (1 - busy),
            tpot_s=step_s / (1 - use * added) if self._gaps > 0 else 0.0,
        )
