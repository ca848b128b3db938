"""Whether a decision is carried out now, or better waits: what it would gain against what it would break. Pure.

In: a decision of the policy. Out: a `Prospect`, and whether it `goes`. Two things let a request wait at the router
rather than go:

    its worker is predicted to queue it for longer than a short while. A queue at a worker can't be put in order by
    tenant, nor given up when it turns out too long; so workers get just enough to be busy, and the rest waits where
    it can.

    keeping its promise is worth less than what it is expected to break of the promises of those it joins: then the
    worker is at its best already, and one more makes it worse.

Where another worker has room, it goes there, which may cost the more the longer it has waited; unless waiting for the
best one keeps its promise more probably: a long prompt waits for a fast device rather than be late on a slow one at
once, and batch work waits for a cheap one rather than take a dear one from those who can't wait.

A request whose promise is broken anyway and that breaks nobody else's goes: it only costs itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from services.mesh.errors import QueueFull
from services.mesh.priorities import YIELDING, rank_of
from services.router.core.fairness import Standing
from services.router.core.policy import Decision
from services.router.core.request import Promise

_OF_NO_MATTER: Final = 0.02  # of what the request's promise is worth
_LEAST_SPARE: Final = 0.1  # of KV cache and batch slots, kept for tenants within their share
_FAVOUR: Final = 3.0  # how much longer a queue may be for one of them
_SOME_HARM: Final = 0.3  # of what is kept, that may be broken where tenants within their share may be who suffers
_QUEUED_PART: Final = 0.02  # of what its class promises for which a request may always be queued
_AS_PROBABLE: Final = 0.8
_OLDEST_BEAT_S: Final = 0.5
_ABOUT_AS_GOOD: Final = 1.25
_DEARER: Final = 4.0
_LEAST_LEFT: Final = 0.1
_PATIENT_S: Final = 10.0  # a class that promises its first token no sooner can wait


@dataclass(slots=True)  # not frozen: every request has one made
class Prospect:
    """What becomes of a request if it goes now.

    Attributes:
        queue_s: until it would be computed.
        own_s: from then to its first token.
        kept_usd: what its promise is worth, times the probability that it is kept.
        harm_usd: what it is expected to break of others' promises.
        of_no_matter_usd: so much harm is none.
        device_usd: what it is expected to cost in device-seconds.
        score_usd: what it is expected to cost in all.
        most_queue_s: the longest predicted queue for it to go.
        pool: the worker's.
        spare: the part of the worker's KV cache or batch slots that it would leave free, the lesser of both.
    """

    queue_s: float
    own_s: float
    kept_usd: float
    harm_usd: float
    of_no_matter_usd: float
    device_usd: float
    score_usd: float
    most_queue_s: float
    spare: float
    pool: str

    @property
    def ttft_s(self) -> float:
        return self.queue_s + self.own_s

    def goes(self, standing: Standing) -> bool:
        """Whether it goes now."""
        if standing is Standing.WITHIN:
            return self.queue_s <= self.most_queue_s * _FAVOUR
        if self.queue_s > self.most_queue_s or self.spare < _LEAST_SPARE:
            return False
        worth_usd = self.kept_usd * (_SOME_HARM if standing is Standing.ABOVE else 1.0)
        return self.harm_usd <= max(worth_usd, self.of_no_matter_usd)


def prospect(decision: Decision, most_queue_s: float, now_s: float) -> Prospect:
    """The prospect of a request at the worker that was picked for it."""
    terms, worker, promise = decision.outlook, decision.worker, decision.shortlist.ask.promise
    rank = rank_of(promise.priority)
    ahead = worker.ahead()[1][rank]
    shown = min(ahead, sum(worker.beat.prefill_tokens_by_priority[: rank + 1]) or worker.beat.waiting_prefill_tokens)
    # What the last heartbeat showed as queued is being worked off; what was placed since is counted as it ends.
    worked_off_s = min(max(0.0, now_s - worker.made_s), _OLDEST_BEAT_S) * shown / ahead if shown > 0 else 0.0
    return Prospect(
        queue_s=max(0.0, terms.queue_s - worked_off_s),
        own_s=terms.ttft_s - terms.queue_s,
        kept_usd=promise.miss_usd * (1.0 - terms.miss),
        harm_usd=terms.harm_usd,
        of_no_matter_usd=promise.miss_usd * _OF_NO_MATTER,
        device_usd=max(0.0, terms.score_usd - terms.risk_usd),
        score_usd=terms.score_usd,
        most_queue_s=most_queue_s,
        spare=_spare(decision),
        pool=worker.pool,
    )


def _spare(decision: Decision) -> float:
    worker, ask = decision.worker, decision.shortlist.ask
    beat = worker.beat
    capacity = max(1, beat.kv_capacity_tokens)
    taken = beat.kv_cache_usage * capacity + worker.kv_tokens + worker.growth_tokens
    slots = max(1, beat.max_batch)
    used = beat.running + beat.waiting + worker.requests + 1
    return min(1.0 - (taken + ask.prompt_tokens + ask.completion_tokens / 2) / capacity, 1.0 - used / slots)


def foresee(
    decide: Callable[[float, float], Decision],
    waited_s: float,
    *,
    most_queue_s: float,
    max_queue_s: float,
    now_s: float,
    standing: Standing,
) -> tuple[Decision, Prospect]:
    """The decision for a request and its prospect: the best worker, or one with room where that is about as good, or
    where room at the best one did not come about.

    Args:
        decide: picks among the workers that are predicted to queue it no longer than so many seconds, and to have
            so much of their KV cache and batch slots left.
        waited_s: how long it has waited for room.

    Raises:
        TokenworksError: as `policy.decide`.
    """
    best = decide(max_queue_s, 0.0)
    most_queue_s = max(most_queue_s, best.shortlist.ask.promise.ttft_s * _QUEUED_PART)
    foreseen = prospect(best, most_queue_s, now_s)
    if foreseen.goes(standing):
        return best, foreseen
    try:
        roomy = decide(most_queue_s + _OLDEST_BEAT_S / 2, 0.0 if standing is Standing.WITHIN else _LEAST_SPARE)
    except QueueFull:
        return best, foreseen
    there = prospect(roomy, most_queue_s, now_s)
    if there.kept_usd < foreseen.kept_usd * _AS_PROBABLE:
        return best, foreseen
    # The longer it has waited of what its class promises, the dearer may be the worker that has room.
    part = waited_s / (waited_s + best.shortlist.ask.promise.ttft_promise_s(best.shortlist.ask.prompt_tokens))
    if there.score_usd > foreseen.score_usd * (_ABOUT_AS_GOOD + _DEARER * part):
        return best, foreseen
    return roomy, there


def as_it_stands(promise: Promise, waited_s: float, standing: Standing, urgency: int) -> Promise:
    """What is left of a promise for a request that has waited; its priority, lower is sooner, is its `urgency`
    (`Promises.urgency`), and puts those who take more than their share after all others in their worker's queue."""
    priority = urgency + YIELDING if standing is Standing.ABOVE else urgency
    if not waited_s and priority == promise.priority:
        return promise
    return replace(promise, ttft_s=max(promise.ttft_s - waited_s, promise.ttft_s * _LEAST_LEFT), priority=priority)


def is_patient(promise: Promise) -> bool:
    """Whether a class promises its first token so late that its requests can wait."""
    return promise.ttft_s >= _PATIENT_S
