"""The plan in force for one model, in the shape a pick needs: timing and shadow price by pool, shares by class.

In: `RoutingPlan`. Out: lookups. How the realised shares deviate from the planned ones is kept here, with forgetting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from hashlib import blake2b
from typing import Final

from services.mesh.events import RoutingPlan, TimingCoefficients, WorkloadClass
from services.mesh.timing import Timing

_MEMORY_REQUESTS: Final = 100.0
_LARGE: Final = 1e9

_Buckets = dict[tuple[int, int], list[tuple[int, int, int]]]


def timing_of(coefficients: TimingCoefficients) -> Timing:
    return Timing(
        prefill_overhead_s=coefficients.prefill_overhead_s,
        prefill_s_per_token=coefficients.prefill_s_per_token,
        prefill_s_per_attended_token=coefficients.prefill_s_per_attended_token,
        decode_base_s=coefficients.decode_base_s,
        decode_s_per_sequence=coefficients.decode_s_per_sequence,
        decode_s_per_kv_token=coefficients.decode_s_per_kv_token,
    )


def _plausible(coefficients: TimingCoefficients) -> bool:
    """Whether steps take some time by them, none of it negative or beyond all measure."""
    every = astuple(coefficients)
    return coefficients.decode_base_s > 0 and min(every) >= 0 and max(every) < _LARGE


def _holds(start: int, end: int, value: int) -> bool:
    return start <= value and (end == 0 or value < end)


@dataclass(frozen=True, slots=True)
class PlannedPool:
    timing: Timing | None
    shadow_usd_per_s: float


class _Placed:
    """Where the requests of one class went, with forgetting: later ones count for more, so that earlier ones fade.

    Attributes:
        counts, total: by pool, and of all; in the same unit, whatever it is by now.
    """

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}
        self.total = 0.0
        self._one = 1.0

    def add(self, pool: str) -> None:
        self._one /= 1.0 - 1.0 / _MEMORY_REQUESTS
        self.counts[pool] = self.counts.get(pool, 0.0) + self._one
        self.total += self._one
        if self._one > _LARGE:
            self.counts = {each: count / self._one for each, count in self.counts.items()}
            self.total /= self._one
            self._one = 1.0


class PlanInForce:
    """One version of one model's plan.

    Attributes:
        traceparent: context of the span that published it.
        since_s: when it arrived, router's monotonic seconds.
        left: workload classes with the pools that had work of theirs by earlier plans and have none by this one, which
            has it elsewhere.
    """

    def __init__(self, plan: RoutingPlan, traceparent: str, since_s: float, before: "PlanInForce | None") -> None:
        self.name = plan.name
        self.version = plan.version
        self.made_unix_ms = plan.made_unix_ms
        self.traceparent = traceparent
        self.since_s = since_s
        self.pools: Mapping[str, PlannedPool] = {
            pool.pool: PlannedPool(
                # A pool that was never observed may come without a timing.
                timing_of(pool.timing) if _plausible(pool.timing) else None,
                min(_LARGE, max(0.0, pool.shadow_usd_per_device_s)),
            )
            for pool in plan.pools
        }
        self._classes = plan.classes
        # By SLO class and confines: prompt lengths, each with its answer lengths.
        self._by_promise: dict[tuple[str, str], _Buckets] = {}
        for index, each in enumerate(plan.classes):
            prompts = self._by_promise.setdefault((each.slo_class, each.within), {})
            answers = prompts.setdefault((each.prompt_tokens_from, each.prompt_tokens_to), [])
            answers.append((each.completion_tokens_from, each.completion_tokens_to, index))
        self._shares: list[dict[str, float]] = [{} for _ in plan.classes]
        for share in plan.shares:
            if 0 <= share.workload_class < len(self._shares):
                self._shares[share.workload_class][share.pool] = share.share
        same = before is not None and before._bounds() == self._bounds()
        self._realised: list[_Placed] = before._realised if before and same else [_Placed() for _ in plan.classes]
        self.left = self._left(before) if before else frozenset()

    def class_of(self, slo_class: str, prompt_tokens: int, completion_tokens: int, within: str = "") -> int | None:
        """The workload class a request falls into; None when the plan has none for it."""
        for (prompt_from, prompt_to), answers in self._by_promise.get((slo_class, within), {}).items():
            if _holds(prompt_from, prompt_to, prompt_tokens):
                for answer_from, answer_to, index in answers:
                    if _holds(answer_from, answer_to, completion_tokens):
                        return index
        return None

    def deficit(self, workload_class: int, pool: str) -> float:
        """Planned minus realised share of a pool, -1 to 1: positive where the plan wants more."""
        placed = self._realised[workload_class]
        realised = placed.counts.get(pool, 0.0) / placed.total if placed.total else 0.0
        return self._shares[workload_class].get(pool, 0.0) - realised

    def placed(self, workload_class: int, pool: str) -> None:
        """Notes where a request of a class went."""
        self._realised[workload_class].add(pool)

    def _left(self, before: "PlanInForce") -> frozenset[tuple[int, str]]:
        index_of = {bounds: index for index, bounds in enumerate(self._bounds())}
        now = [index_of.get(bounds) for bounds in before._bounds()]  # classes come and go
        had = {(index, pool) for index, shares in enumerate(before._shares) for pool, share in shares.items() if share}
        left = {(found, pool) for index, pool in had | before.left if (found := now[index]) is not None}
        served = {index for index, shares in enumerate(self._shares) if any(shares.values())}
        return frozenset((index, pool) for index, pool in left if index in served and not self._shares[index].get(pool))

    def _bounds(self) -> list[tuple[object, ...]]:
        return [_bounds(each) for each in self._classes]


class Trial:
    """A plan that a part of the requests follows, beside the one in force.

    Attributes:
        plan: counts where its own requests went.
        version: of the plan.
    """

    def __init__(self, plan: RoutingPlan, traceparent: str, since_s: float, standing: PlanInForce) -> None:
        self.plan = PlanInForce(plan, traceparent, since_s, None)
        self.version = plan.version
        self._below = plan.canary_share * 2.0**32
        self._standing = standing
        self._differences: dict[str, float] = {}

    def has(self, request_id: str) -> bool:
        """Whether a request follows it: by its id, so that every router says the same of it."""
        return int.from_bytes(blake2b(request_id.encode(), digest_size=4).digest(), "big") < self._below

    def dearer_usd_per_s(self, pools: Sequence[str]) -> Sequence[float]:
        """By pool, how much dearer a device-second is by this plan than by the one in force; below 0: cheaper."""
        known = self._differences
        for pool in pools:
            if pool not in known:
                here, there = self.plan.pools.get(pool), self._standing.pools.get(pool)
                known[pool] = (here.shadow_usd_per_s if here else 0.0) - (there.shadow_usd_per_s if there else 0.0)
        return [known[pool] for pool in pools]


def _bounds(each: WorkloadClass) -> tuple[object, ...]:
    return (
        each.slo_class,
        each.within,
        each.prompt_tokens_from,
        each.prompt_tokens_to,
        each.completion_tokens_from,
        each.completion_tokens_to,
    )
