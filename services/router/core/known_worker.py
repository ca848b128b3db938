"""One worker as its heartbeats tell, corrected by what happened since the last of them was made.

A heartbeat is up to 250 ms old, and a router places dozens of requests in that time: without correction a burst goes
to the one worker that looked idle. So each of our placements is a correction (one request, its prompt to be computed)
until a heartbeat made after it arrives, which shows it; a request that ends after it was shown is a correction the
other way round. Past that, a running request still counts with the KV cache that its answer will need.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from operator import add
from typing import Final

from services.mesh.confines import Site
from services.mesh.events import WorkerHeartbeat, WorkerState
from services.mesh.priorities import RANKS

SHOWN_AFTER_S: Final = 0.02  # a heartbeat shows what was placed this long before it was made
STALLED_AFTER_S: Final = 1.0
# A real engine may take seconds for one chunk of a prompt on a busy host; a simulated one keeps its modelled time.
_REAL_ENGINE_PATIENCE: Final = 5.0
_LAG_DRIFT_MS: Final = 1.0  # per heartbeat: how fast the least lag forgets, for clocks that drift
MOST_CORRECTIONS: Final = 65_536  # of one worker, until a heartbeat shows them
_LONGEST_LAG_S: Final = 5.0
_COMPACT_AT: Final = 256  # corrections


@dataclass(slots=True)
class Correction:
    """A difference to the last heartbeat, from `at_s` on (router's monotonic seconds).

    Attributes:
        rank: of the requests' priority, see `mesh/priorities`; the most urgent where it is not known.
    """

    at_s: float
    requests: int
    prefill_tokens: int
    kv_tokens: int
    rank: int = 0


@dataclass(slots=True, eq=False)
class Placed:
    """One request of ours on one worker; handed out by `Fleet.place`, given back with `Fleet.finished`.

    Attributes:
        yields: its tenant took more than its share when it was placed.
    """

    worker: "KnownWorker"
    model: str
    slo_class: str
    prompt_tokens: int
    completion_tokens: int
    correction: Correction
    yields: bool
    done: bool = False


@dataclass(slots=True, eq=False)
class KnownWorker:
    """What is known of one epoch of one worker.

    Attributes:
        incarnation: the router's own number for this epoch of this worker.
        slot: a small number that no other worker has while this epoch of it is known.
        beat: the latest heartbeat.
        heard_s, made_s: when it arrived and when it was made, router's monotonic seconds.
        stepped_s: when its engine was last seen stepping, or idle.
        epoch_before: the one that this took the place of; empty for the first.
        linked: the session to it stands.
        unreachable: a session was tried and does not stand.
        requests, kv_tokens: sums of the corrections.
        waiting, prefill_tokens: the same by rank of priority, see `mesh/priorities`.
        growth_tokens: KV tokens that our running requests are still expected to add, on average half their answers.
    """

    incarnation: int
    slot: int
    beat: WorkerHeartbeat
    heard_s: float
    made_s: float
    stepped_s: float
    epoch_before: str = ""
    linked: bool = False
    unreachable: bool = False
    requests: int = 0
    kv_tokens: int = 0
    waiting: list[int] = field(default_factory=lambda: [0] * RANKS)
    prefill_tokens: list[int] = field(default_factory=lambda: [0] * RANKS)
    growth_tokens: float = 0.0
    _corrections: deque[Correction] = field(default_factory=deque)
    _compact_at: int = _COMPACT_AT
    _least_lag_ms: float | None = None

    @property
    def name(self) -> str:
        return self.beat.worker

    @property
    def pool(self) -> str:
        return self.beat.pool

    @property
    def site(self) -> Site:
        return Site(self.beat.region, self.beat.vendor, self.beat.data_classes)

    def fold(self, beat: WorkerHeartbeat, now_s: float, now_unix_ms: int) -> None:
        """Takes a later heartbeat of the same epoch."""
        stepping = beat.steps != self.beat.steps or beat.running == 0
        self.beat = beat
        self.heard_s = now_s
        self.made_s = now_s - self._lag_s(beat.at_unix_ms, now_unix_ms)
        if stepping:
            self.stepped_s = self.made_s
        while self._corrections and self._corrections[0].at_s + SHOWN_AFTER_S <= self.made_s:
            self._take(self._corrections.popleft())

    def correct(self, correction: Correction) -> None:
        """Adds a correction; times do not decrease from one call to the next."""
        if len(self._corrections) >= self._compact_at:  # heartbeats may stay away for long
            self._corrections = deque(each for each in self._corrections if each.requests)
            self._compact_at = 2 * len(self._corrections) + _COMPACT_AT
        while len(self._corrections) >= MOST_CORRECTIONS:  # others may tell of any number of requests
            oldest = self._corrections.popleft()
            self._take(oldest)
            oldest.requests = oldest.prefill_tokens = oldest.kv_tokens = 0
        self._corrections.append(correction)
        self.requests += correction.requests
        self.waiting[correction.rank] += correction.requests
        self.prefill_tokens[correction.rank] += correction.prefill_tokens
        self.kv_tokens += correction.kv_tokens

    def undo(self, correction: Correction) -> bool:
        """Makes a correction void; False when a heartbeat shows it already."""
        if correction.at_s + SHOWN_AFTER_S <= self.made_s:
            return False
        self._take(correction)
        correction.requests = correction.prefill_tokens = correction.kv_tokens = 0
        return True

    def ahead(self) -> tuple[list[int], list[int]]:
        """For each rank of priority, the urgent first: requests that wait and would go before one that came now, and
        prompt tokens that would be computed before its own; below 0 while a heartbeat lags behind what ended.
        """
        beat = self.beat
        waiting, tokens = beat.waiting_by_priority, beat.prefill_tokens_by_priority
        if len(tokens) == len(waiting) == RANKS:
            return (
                list(accumulate(map(add, waiting, self.waiting))),
                list(accumulate(map(add, tokens, self.prefill_tokens))),
            )
        # Where an engine does not tell them apart, all go first.
        before = list(accumulate(self.waiting, initial=beat.waiting))
        return before[1:], list(accumulate(self.prefill_tokens, initial=beat.waiting_prefill_tokens))[1:]

    def prefilled(self, correction: Correction) -> None:
        """The placement's first token came, so its prompt is computed, whatever the last heartbeat says."""
        if correction.at_s + SHOWN_AFTER_S > self.made_s:
            self.prefill_tokens[correction.rank] -= correction.prefill_tokens
            correction.prefill_tokens = 0

    @property
    def stalled_s(self) -> float:
        """How long the engine has stood still with requests running, as of the last heartbeat; 0 while it steps."""
        return self.made_s - self.stepped_s

    def stands_still(self, after_s: float) -> bool:
        """Whether the engine has stood still for longer than `after_s` seconds of a simulated engine's time."""
        return self.stalled_s > after_s * (1.0 if self.beat.simulated else _REAL_ENGINE_PATIENCE)

    @property
    def closed_because(self) -> str:
        """Why it takes no new requests; empty when it does, as far as it is heard at all."""
        if self.beat.state != WorkerState.READY:
            return f"failed: {self.beat.failed_because}" if self.beat.state == WorkerState.FAILED else self.beat.state
        if self.unreachable:
            return f"no connection to {self.beat.address}"
        return f"stalled: no step for {self.stalled_s:.1f} s" if self.stands_still(STALLED_AFTER_S) else ""

    def _take(self, correction: Correction) -> None:
        self.requests -= correction.requests
        self.waiting[correction.rank] -= correction.requests
        self.prefill_tokens[correction.rank] -= correction.prefill_tokens
        self.kv_tokens -= correction.kv_tokens

    @property
    def clock_behind_ms(self) -> int:
        """By how much its host's clock is behind ours, but for the least delay of a heartbeat; negative: ahead."""
        return round(self._least_lag_ms or 0.0)

    def _lag_s(self, made_unix_ms: int, now_unix_ms: int) -> float:
        # Clocks differ by an unknown constant: the least lag seen stands for it, what is above it is true delay.
        lag_ms = float(now_unix_ms - made_unix_ms)
        least = lag_ms if self._least_lag_ms is None else min(lag_ms, self._least_lag_ms + _LAG_DRIFT_MS)
        self._least_lag_ms = least
        return min(_LONGEST_LAG_S, (lag_ms - least) / 1000)
