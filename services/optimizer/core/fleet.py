"""Who is there to work: workers by heartbeat, and the pools they make.

In: `WorkerHeartbeat` with the second it arrived at. Out: the workers that count, by pool, with what they cost and
hold. A worker counts while it is ready, was heard lately, and its steps move whenever something runs on it.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from services.mesh.accelerators import Catalogue
from services.mesh.confines import Site
from services.mesh.events import WorkerHeartbeat, WorkerState
from services.mesh.money import NUSD_PER_USD
from services.optimizer.core.power import Power

STALLED_S: Final = 3.0  # longer than the router waits: one long step must not make the plan flap
FORGET_S: Final = 600.0
_MOST_MEMBERS: Final = 16_384  # as many as a router knows
_DEFAULT_CHUNK_TOKENS: Final = 2048


@dataclass(slots=True)
class Member:
    """One worker as last heard.

    Attributes:
        heard_s: when the last heartbeat arrived.
        moved_s: when its step counter last moved, or nothing ran.
    """

    beat: WorkerHeartbeat
    heard_s: float
    moved_s: float
    power: Power


@dataclass(frozen=True, slots=True)
class Roster:
    """The workers of one pool that count, and what the least of them offers; 0 where a bound is not known.

    Attributes:
        workers: at least one.
        sites: with the part of the workers that stand there; the parts add up to 1.
        spot: part of the workers that may be taken away, 0 to 1.
        at_unix_ms: by the clock of the worker that is furthest.
    """

    pool: str
    accelerator: str
    workers: tuple[str, ...]
    models: tuple[str, ...]
    rate_usd_per_hour: float
    idle_w: float
    loaded_w: float
    max_batch: int
    kv_capacity_tokens: int
    context_tokens: int
    prefill_chunk_tokens: int
    sites: tuple[tuple[Site, float], ...]
    spot: float
    at_unix_ms: int


class Fleet:
    """All workers heard in the last `FORGET_S` seconds."""

    def __init__(self, catalogue: Catalogue, heartbeat_timeout_s: float) -> None:
        self._catalogue = catalogue
        self._timeout_s = heartbeat_timeout_s
        self._members: dict[str, Member] = {}

    def heard(self, beat: WorkerHeartbeat, now_s: float) -> None:
        """Folds one heartbeat; one that is older than the last of its epoch is ignored, and a worker more than
        `_MOST_MEMBERS`, until others were silent for long enough."""
        member = self._members.get(beat.worker)
        if member is None and len(self._members) >= _MOST_MEMBERS:
            return
        if member is None or member.beat.accelerator != beat.accelerator:
            self._members[beat.worker] = Member(beat, now_s, now_s, self._power(beat.accelerator))
            return
        before = member.beat
        if beat.epoch == before.epoch:
            if beat.sequence <= before.sequence:
                return
            member.power.observe(before, beat)
        if beat.steps != before.steps or beat.running == 0 or beat.epoch != before.epoch:
            member.moved_s = now_s
        member.beat, member.heard_s = beat, now_s

    def counting(self, now_s: float) -> Iterator[Member]:
        """The workers that work can be planned for."""
        for member in self._members.values():
            if (
                member.beat.state == WorkerState.READY
                and now_s - member.heard_s <= self._timeout_s
                and now_s - member.moved_s <= STALLED_S
            ):
                yield member

    def signature(self, now_s: float) -> frozenset[tuple[object, ...]]:
        """Changes exactly when who counts, where, for what, for whom or at which rate does."""
        return frozenset(
            (
                member.beat.worker,
                member.beat.pool,
                member.beat.models,
                member.beat.rate_nusd_per_hour,
                _site(member.beat),
                member.beat.spot,
            )
            for member in self.counting(now_s)
        )

    def workers(self) -> Collection[str]:
        """All known ones, counting or not."""
        return self._members.keys()

    def models(self) -> set[str]:
        """Every model that a known worker serves or served, counting or not."""
        return {model for member in self._members.values() for model in member.beat.models}

    def rosters(self, now_s: float) -> tuple[Roster, ...]:
        """The pools with at least one worker that counts, by name."""
        pools: dict[str, list[Member]] = {}
        for member in self.counting(now_s):
            pools.setdefault(member.beat.pool, []).append(member)
        return tuple(self._roster(pool, members) for pool, members in sorted(pools.items()))

    def rate_usd_per_hour(self, worker: str, accelerator: str) -> float:
        """What the worker costs: its own rate, else the catalogue's for its accelerator, else 0."""
        member = self._members.get(worker)
        if member is not None and member.beat.rate_nusd_per_hour > 0:
            return member.beat.rate_nusd_per_hour / NUSD_PER_USD
        known = self._catalogue.find(accelerator)
        return known.rate_nusd_per_hour / NUSD_PER_USD if known else 0.0

    def unborn(self, pool: str, accelerator: str, models: tuple[str, ...]) -> Roster:
        """One worker as it would be, by the catalogue; of nobody knows where."""
        device = self._catalogue.accelerator(accelerator)
        shapes = [self._catalogue.model(model) for model in models]
        return Roster(
            pool=pool,
            accelerator=accelerator,
            workers=("",),
            models=models,
            rate_usd_per_hour=self.rate_usd_per_hour("", accelerator),
            idle_w=device.idle_w,
            loaded_w=device.tdp_w,
            max_batch=0,
            kv_capacity_tokens=min((self._catalogue.kv_capacity_tokens(device, each) for each in shapes), default=0),
            context_tokens=min((each.context_tokens for each in shapes), default=0),
            prefill_chunk_tokens=_DEFAULT_CHUNK_TOKENS,
            sites=((Site("", device.vendor, ()), 1.0),),
            spot=0.0,
            at_unix_ms=0,
        )

    def forget_gone(self, now_s: float) -> list[str]:
        """Drops workers not heard for `FORGET_S`; their names."""
        gone = [worker for worker, member in self._members.items() if now_s - member.heard_s > FORGET_S]
        for worker in gone:
            del self._members[worker]
        return gone

    def _roster(self, pool: str, members: list[Member]) -> Roster:
        beats = [member.beat for member in members]
        count = len(members)
        rates = [self.rate_usd_per_hour(beat.worker, beat.accelerator) for beat in beats]
        return Roster(
            pool=pool,
            accelerator=beats[0].accelerator,
            workers=tuple(beat.worker for beat in beats),
            models=tuple(sorted({model for beat in beats for model in beat.models})),
            rate_usd_per_hour=sum(rates) / count,
            idle_w=sum(member.power.idle_w for member in members) / count,
            loaded_w=sum(member.power.loaded_w for member in members) / count,
            max_batch=_least(beat.max_batch for beat in beats),
            kv_capacity_tokens=_least(beat.kv_capacity_tokens for beat in beats),
            context_tokens=_least(beat.context_tokens for beat in beats),
            prefill_chunk_tokens=_least(beat.prefill_chunk_tokens for beat in beats) or _DEFAULT_CHUNK_TOKENS,
            sites=tuple((site, many / count) for site, many in sorted(Counter(map(_site, beats)).items())),
            spot=sum(beat.spot for beat in beats) / count,
            at_unix_ms=max(beat.at_unix_ms for beat in beats),
        )

    def _power(self, accelerator: str) -> Power:
        known = self._catalogue.find(accelerator)
        return Power(known.idle_w, known.tdp_w) if known else Power(0.0, 0.0)


def _site(beat: WorkerHeartbeat) -> Site:
    return Site(beat.region, beat.vendor, beat.data_classes)


def _least(values: Iterator[int]) -> int:
    """The least of the bounds that are known; 0 when none is."""
    return min((value for value in values if value > 0), default=0)
