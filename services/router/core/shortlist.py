"""The best workers of one decision, kept as they were: their cases are worked out when somebody asks.

In: workers with their figures and prices at the time of a pick. Out: a `Candidate` each, in dollars by term, for the
record of why a request went where it went.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.router.core.known_worker import KnownWorker
from services.router.core.scores import Ask, terms_of
from services.router.core.serving import DevicePrice
from services.router.core.table import Singles


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One worker's case; dollars for this one request.

    Attributes:
        rejected_because: empty when it was feasible.
        harm_usd: of `slo_risk_usd`, what it is expected to break of the promises of those it joins.
    """

    worker: str
    pool: str
    accelerator: str
    rejected_because: str
    score_usd: float
    use_usd: float
    energy_usd: float
    shadow_usd: float
    slo_risk_usd: float
    harm_usd: float
    prefix_saving_usd: float
    queue_s: float
    ttft_s: float
    tpot_s: float
    miss_probability: float
    cached_tokens: int


@dataclass(slots=True)
class Shortlist:
    """Candidates, best first, as their figures were: what follows from them is worked out when somebody asks.

    Attributes:
        workers, prices: each worker, and what it cost then.
        reasons: why those that were not feasible were not, by their place.
        figures: (columns, candidates) of the model's table then.
    """

    workers: list[KnownWorker]
    prices: list[DevicePrice]
    reasons: dict[int, str]
    figures: Singles
    ask: Ask
    band_tpots_s: Sequence[float]

    def __len__(self) -> int:
        return len(self.workers)

    def candidate(self, place: int) -> Candidate:
        """The terms of the candidate at `place`, 0 being the best."""
        worker, price = self.workers[place], self.prices[place]
        terms = terms_of(self.figures[:, place].tolist(), self.ask, self.band_tpots_s)
        use_usd = terms.device_s * price.use_usd_per_s
        energy_usd = terms.device_s * price.energy_usd_per_s
        shadow_usd = terms.device_s * (terms.usd_per_s - price.use_usd_per_s - price.energy_usd_per_s)
        saving_usd = terms.saved_s * terms.usd_per_s
        return Candidate(
            worker=worker.name,
            pool=worker.pool,
            accelerator=worker.beat.accelerator,
            rejected_because=self.reasons.get(place, ""),
            score_usd=use_usd + energy_usd + shadow_usd + terms.risk_usd - saving_usd,
            use_usd=use_usd,
            energy_usd=energy_usd,
            shadow_usd=shadow_usd,
            slo_risk_usd=terms.risk_usd,
            harm_usd=terms.harm_usd,
            prefix_saving_usd=saving_usd,
            queue_s=terms.queue_s,
            ttft_s=terms.ttft_s,
            tpot_s=terms.tpot_s,
            miss_probability=terms.miss,
            cached_tokens=self.cached_tokens(place),
        )

    def cached_tokens(self, place: int) -> int:
        """Tokens of the prompt that the candidate at `place` is expected to have in its cache."""
        return int(self.figures.item(-1, place))
