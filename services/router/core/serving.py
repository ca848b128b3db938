"""One worker serving one model: the timing in force, how slow it is, what keeps arriving; and the figures that follow.

`Serving.row_of` derives the row of the model's table (`table`) from the worker's corrected heartbeat, in plain
arithmetic, once per change and not once per request that is scored.
"""

from dataclasses import dataclass
from math import exp, inf
from typing import Final

from services.mesh.timing import Timing
from services.router.core.floors import BUCKETS, late_probability, least_risk_usd
from services.router.core.known_worker import KnownWorker
from services.router.core.promises import Promises

SLOW_DECAY_S: Final = 3.0
ARRIVALS_DECAY_S: Final = 5.0
HOP_S: Final = 0.002  # router to worker and back
_SLOW_RANGE: Final = (0.02, 1000.0)
_SAMPLE_WEIGHT: Final = 0.35  # of one step sample, in the logarithm
_LEAST_S: Final = 1e-9  # a fit may find that one more sequence adds nothing
_BUSIEST: Final = 0.9  # share of time that arriving prefills may be taken to occupy


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
        row: in the model's table.
        slow, slow_s: step seconds observed over predicted, and when that was observed.
        arriving_tokens, arriving_s: prompt tokens placed recently, decaying, and when that was updated.
        tried_s: when it last got a request of ours.
        at_stake_usd: per band, what the TPOT promises of our requests running there are worth.
    """

    worker: KnownWorker
    model: str
    timing: Timing
    price: DevicePrice
    slow: float
    slow_s: float
    at_stake_usd: list[float]
    row: int = -1
    arriving_tokens: float = 0.0
    arriving_s: float = 0.0
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

    def arrive(self, fresh_tokens: int, now_s: float) -> None:
        """A prompt with so many tokens to compute was placed here."""
        self.arriving_tokens = self._arriving(now_s) + fresh_tokens
        self.arriving_s = self.tried_s = now_s

    def _arriving(self, now_s: float) -> float:
        if not self.arriving_tokens:
            return 0.0
        return self.arriving_tokens * exp(-max(0.0, now_s - self.arriving_s) / ARRIVALS_DECAY_S)

    def row_of(self, promises: Promises, now_s: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The row's bounds and figures, see `table`."""
        # Comparisons stand in place of `max` and `min`, which take thrice as long: this runs for every heartbeat.
        worker, beat, timing = self.worker, self.worker.beat, self.timing
        slow = self.decayed_slow(now_s)
        token_s, attended_s = slow * timing.prefill_s_per_token, slow * timing.prefill_s_per_attended_token
        overhead_s, weights_s = slow * timing.prefill_overhead_s, slow * timing.decode_base_s
        read_s, sequence_s = slow * timing.decode_s_per_kv_token, slow * timing.decode_s_per_sequence + _LEAST_S
        chunk, max_batch, capacity = beat.prefill_chunk_tokens or 1, beat.max_batch or 1, beat.kv_capacity_tokens or 1
        running, waiting = beat.running, beat.waiting + worker.requests
        kv_tokens = beat.kv_cache_usage * capacity + worker.kv_tokens
        waiting, kv_tokens = waiting if waiting > 0 else 0, kv_tokens if kv_tokens > 0.0 else 0.0
        takes = waiting < (beat.max_waiting or 1) and not worker.closed_because
        wanted = running + waiting + 1
        batch = wanted if wanted < max_batch else max_batch

        reading_s = read_s * (kv_tokens if kv_tokens < capacity else capacity)
        riding_s = sequence_s * running + reading_s
        step_s = weights_s + sequence_s * batch + reading_s
        chunk_s = overhead_s + token_s * chunk
        ahead_s = ((chunk_s if chunk_s > weights_s else weights_s) + riding_s) / chunk
        begins_s = step_s / 2 + HOP_S if running else HOP_S
        queues_s: list[float] = []
        short_slots: list[float] = []
        for ahead, before in worker.ahead():
            # Of the prompts ahead only the total is known: each is taken to attend to half of their mean length.
            attending_s = attended_s * ahead * ahead / (2 * (before or 1)) if ahead else 0.0
            queues_s.append(begins_s + ahead_s * ahead + attending_s)
            over = running + before + 1 - max_batch
            short_slots.append(over / max_batch if over > 0 else 0.0)
        busy = token_s * self._arriving(now_s) / ARRIVALS_DECAY_S
        sureness = 1.0 - (busy if busy < _BUSIEST else _BUSIEST)
        stretch = 1.0 / sureness
        there_tpot_s = (weights_s + riding_s) * stretch
        usd_per_s = self.price.usd_per_s
        floors: list[float] = []
        for lenient in promises.lenient if takes else ():
            floors += least_risk_usd(lenient, queues_s[0], token_s, step_s * stretch)
        bounds = (
            token_s * usd_per_s,
            attended_s * usd_per_s,
            overhead_s * usd_per_s,
            read_s * usd_per_s,
            sequence_s * usd_per_s,
            weights_s * usd_per_s,
            usd_per_s * sureness,
            capacity,
            max_batch,
            batch,
            0.0 if takes else inf,
            *(floors or [inf] * (len(promises.lenient) * len(BUCKETS))),
        )
        figures = (
            token_s,
            attended_s,
            1.0 / chunk,
            overhead_s,
            weights_s,
            sequence_s,
            read_s,
            step_s,
            riding_s,
            *queues_s,
            *short_slots,
            kv_tokens + (worker.growth_tokens if worker.growth_tokens > 0.0 else 0.0) - capacity,
            capacity,
            batch,
            max_batch,
            stretch,
            sureness,
            there_tpot_s,
            usd_per_s,
            min(beat.context_tokens, beat.kv_capacity_tokens) if takes else 0,
            worker.heard_s,
            self.tried_s,
            worker.linked,
            *self.at_stake_usd,
            *[
                late_probability(there_tpot_s, tpot_s) if usd else 0.0
                for tpot_s, usd in zip(promises.band_tpots_s, self.at_stake_usd, strict=True)
            ],
        )
        return bounds, figures


def bounded_slow(slow: float) -> float:
    return min(_SLOW_RANGE[1], max(_SLOW_RANGE[0], slow))
