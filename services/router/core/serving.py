"""One worker serving one model: the timing in force, how slow it is, what keeps arriving; and its row of the table.

A row holds what was told and counted, corrected by what was placed since; what follows from it stands in `scores`, so
that a heartbeat costs no more than writing it down.
"""

from dataclasses import dataclass, field
from math import exp
from typing import Final

from services.mesh.timing import Timing
from services.router.core.arrivals import Arrivals
from services.router.core.known_worker import KnownWorker
from services.router.core.request import Promise
from services.router.core.table import ModelTable

SLOW_DECAY_S: Final = 3.0
_SLOW_RANGE: Final = (0.02, 1000.0)
_LEAST_S: Final = 1e-9
_LEAST_USD: Final = 1e-9
_UNLIMITED_S: Final = 1e6  # a step that is bounded by tokens alone
_SAMPLE_WEIGHT: Final = 0.35  # of one step sample, in the logarithm


@dataclass(frozen=True, slots=True)
class DevicePrice:
    """What a device-second of a worker costs, in dollars."""

    use_usd_per_s: float
    energy_usd_per_s: float
    shadow_usd_per_s: float

    @property
    def usd_per_s(self) -> float:
        return self.use_usd_per_s + self.energy_usd_per_s + self.shadow_usd_per_s


@dataclass(slots=True, eq=False)
class Serving:
    """Mutable; `Fleet` writes it.

    Attributes:
        table, row: of the model.
        slow, slow_s: step seconds observed over predicted, and when that was observed.
        arrivals: what was placed there lately.
        tried_s: when it last got a request of ours.
        at_stake_usd: per band, what the TPOT promises of our requests running there are worth.
        yielding_usd: of it, what is of requests whose tenants took more than their shares.
        ours, yielding: our requests there, and those of them whose tenants did.
    """

    worker: KnownWorker
    table: ModelTable
    timing: Timing
    price: DevicePrice
    slow: float
    slow_s: float
    at_stake_usd: list[float]
    yielding_usd: float = 0.0
    ours: int = 0
    yielding: int = 0
    row: int = -1
    arrivals: Arrivals = field(default_factory=Arrivals)
    tried_s: float = float("-inf")

    def decayed_slow(self, now_s: float) -> float:
        """Slowness now: what was observed, on its way back to 1."""
        if self.slow == 1.0:
            return 1.0
        return 1.0 + (self.slow - 1.0) * exp(-max(0.0, now_s - self.slow_s) / SLOW_DECAY_S)

    def observe(self, seen_s: float, predicted_s: float, samples: int, now_s: float) -> None:
        """Folds `samples` steps that took `seen_s` together where `predicted_s` was predicted; both > 0."""
        weight = 1.0 - (1.0 - _SAMPLE_WEIGHT) ** samples
        slow = self.decayed_slow(now_s) ** (1.0 - weight) * (seen_s / predicted_s) ** weight
        self.slow, self.slow_s = bounded_slow(slow), now_s

    def arrive(
        self,
        promise: Promise,
        *,
        priority: int,
        fresh_tokens: int,
        prompt_tokens: int,
        completion_tokens: int,
        now_s: float,
    ) -> None:
        """A request was placed here; of its prompt `fresh_tokens` are to be computed."""
        timing, beat = self.timing, self.worker.beat
        slow = 1.0 if self.slow == 1.0 else self.decayed_slow(now_s)
        length = prompt_tokens + completion_tokens / 2
        each_s = timing.decode_s_per_sequence + timing.decode_s_per_kv_token * length
        batch = (promise.tpot_s / slow - timing.decode_base_s) / (each_s + _LEAST_S)
        batch = max(1.0, min(batch, (beat.kv_capacity_tokens or 1) / length, beat.max_batch or 1))
        attended = prompt_tokens - fresh_tokens / 2
        device_s = fresh_tokens * (timing.prefill_s_per_token + timing.prefill_s_per_attended_token * attended)
        device_s += (completion_tokens - 1) * (timing.decode_base_s / batch + each_s)
        self.arrivals.add(priority, fresh_tokens, slow * device_s, now_s)
        self.tried_s = now_s

    def begins(self, band: int, usd: float, yields: bool) -> None:
        """A request of ours begins there, whose promise is worth `usd`."""
        self._count(1, band, usd, yields)

    def ends(self, band: int, usd: float, yields: bool) -> None:
        """One that began there is there no longer."""
        self._count(-1, band, -usd, yields)

    def _count(self, requests: int, band: int, usd: float, yields: bool) -> None:
        self.ours += requests
        self.at_stake_usd[band] = _not_below(self.at_stake_usd[band] + usd)
        if yields:
            self.yielding += requests
            self.yielding_usd = _not_below(self.yielding_usd + usd)

    def write_offer(self) -> None:
        """Writes what the row says of the device, its settings and the plan."""
        timing = self.timing
        figures = (
            timing.prefill_s_per_token,
            timing.prefill_s_per_attended_token,
            timing.prefill_overhead_s,
            timing.decode_base_s,
            timing.decode_s_per_sequence,
            timing.decode_s_per_kv_token,
            self.worker.beat.prefill_chunk_tokens or 1,
            self.price.usd_per_s,
        )
        self.table.write_offer(self.row, figures)

    def write(self, now_s: float) -> None:
        """Writes the row anew, but for its offer."""
        worker = self.worker
        beat = worker.beat
        capacity, waiting = beat.kv_capacity_tokens, beat.waiting + worker.requests
        before, ahead_tokens = worker.ahead()
        # Comparisons stand in place of `max` and `min`, which take thrice as long: this runs for every heartbeat.
        room = beat.context_tokens if beat.context_tokens < capacity else capacity
        self.table.write_load(
            self.row,
            (
                1.0 if self.slow == 1.0 else self.decayed_slow(now_s),
                beat.running,
                waiting,
                *before,
                *ahead_tokens,
                beat.kv_cache_usage * capacity + worker.kv_tokens,
                worker.growth_tokens,
                *self.arrivals.figures(now_s),
                capacity or 1,
                beat.max_batch or 1,
                beat.step_s or _UNLIMITED_S,
                room if waiting < (beat.max_waiting or 1) and not worker.closed_because else 0,
                self.yielding_usd / sum(self.at_stake_usd) if self.yielding_usd else 0.0,
                self.yielding / self.ours if self.yielding else 0.0,
                *self.at_stake_usd,
            ),
            heard_s=worker.heard_s,
            tried_s=self.tried_s,
            linked=worker.linked,
        )


def _not_below(usd: float) -> float:
    """Sums of floats end near zero."""
    return usd if usd > _LEAST_USD else 0.0


def bounded_slow(slow: float) -> float:
    return min(_SLOW_RANGE[1], max(_SLOW_RANGE[0], slow))
