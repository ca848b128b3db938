"""Running requests leave a worker that does not do as it should, or a pool that a plan wants for other work: relayed
ones at once; direct ones when their worker has been told to end them, with an error upon which their clients come back
to be placed elsewhere.

In: the view of the fleet and the plans in force, look after look. Out: relays placed anew; `MoveStreams` to workers.
From a worker that stands still or is silent everything relayed leaves that another one takes (its direct streams it
sends away by itself where it stands still, and a silent one cannot be told). From one that is much slower than it
should be only what breaks its promise there and would keep it elsewhere.

Where the optimizer's plan takes a class of work from a pool and has it in others, requests of that class that run there
leave, as far as it pays: by the formulas of a pick, what is left of the answer costs clearly less elsewhere, its replay
and the risk to promises included, and its client waits for the next token no longer than for a first one. Each plan
moves a few, and so do direct ones in any case: where those went is seen before more follow.
"""

import logging
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import TokenworksError, WorkerLost
from services.mesh.events import MoveStreams
from services.router.core.fleet import Fleet, Slow
from services.router.core.known_worker import KnownWorker
from services.router.core.open_placements import At, OpenPlacement
from services.router.core.plans import PlanInForce
from services.router.core.policy import Decision
from services.router.core.records import DecisionRecord
from services.router.core.request import Asked
from services.router.core.scores import Ask
from services.router.direct import Direct
from services.router.dispatch import Dispatcher
from services.router.placing import Placing
from services.router.relay import Relay

log = logging.getLogger(__name__)

_MOST_MOVES: Final = 4  # placements of a request from which it may still be moved because it is late
_AT_ONCE: Final = 16  # direct streams of one worker
_MOST_TRIED: Final = 64  # of those that are late, at each look
_ANSWER_WITHIN_S: Final = 2.0
_LEAST_S: Final = 1e-6
_CLEARLY: Final = 0.8  # of what going on where it runs costs, a move may cost at most: estimates err
_SLOW: Final = "is slower than the streams' class was promised"
_REPLANNED: Final = "has other work by the plan in force"


class Moves:
    """The moves of one router's requests; somebody calls `look` a few times a second."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        direct: Direct,
        *,
        fleet: Fleet,
        placing: Placing,
        bus: Bus,
        clock: Clock,
        rng: Random,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        """`spawn`: runs a task beside."""
        self._dispatcher = dispatcher
        self._direct = direct
        self._fleet = fleet
        self._placing = placing
        self._bus = bus
        self._clock = clock
        self._rng = rng
        self._spawn = spawn
        self._telling: set[str] = set()
        self._followed: dict[str, int] = {}  # by model, the version of the plan that was followed last

    def look(self) -> None:
        """Moves what is better off elsewhere now."""
        now_s = self._clock.monotonic_s()
        for trouble in self._fleet.troubled(now_s):
            moved = sum(self._move(each, trouble.worker) for each in self._dispatcher.at(trouble.worker))
            if moved:
                log.warning("moved %d requests from worker %s: %s", moved, trouble.worker, trouble.because)
        for slow in self._fleet.slow(now_s):
            late = [each for each in self._dispatcher.at(slow.worker) if self._late(each.asked, each.placements, slow)]
            moved = sum(self._move(each, slow.worker, in_time=True) for each in late)
            if moved:
                log.warning("moved %d of %d late requests from slow worker %s", moved, len(late), slow.worker)
            self._send_direct_away(slow)
        for model, plan in self._fleet.plans.items():
            if self._followed.get(model) != plan.version:
                self._followed[model] = plan.version
                self._follow(model, plan, now_s)
        for model in self._followed.keys() - self._fleet.plans.keys():
            del self._followed[model]

    def _follow(self, model: str, plan: PlanInForce, now_s: float) -> None:
        """Takes running requests from where a plan that has just come in force does not have their class any more."""
        pools = {pool for _, pool in plan.left}
        looks = _AT_ONCE
        for worker in [each for each in self._fleet.workers() if each.pool in pools and each.linked]:
            relayed = [
                each
                for each in self._dispatcher.at(worker.name)
                if each.placements < _MOST_MOVES and self._replanned(each.record, model, plan, worker)
            ]
            tried = self._rng.sample(relayed, min(len(relayed), looks))
            looks -= len(tried)
            moved = 0
            for relay in tried:
                if (cheaper := self._cheaper(relay.asked, worker, relay.journal.next_index)) is not None:
                    self._dispatcher.move(relay, *cheaper)
                    moved += 1
            if moved:
                log.info("moved %d requests from worker %s, which %s, %s", moved, worker.name, _REPLANNED, plan.name)
            if worker.name not in self._telling:
                looks -= self._send_direct_on(model, plan, worker, looks, now_s)

    def _send_direct_on(self, model: str, plan: PlanInForce, worker: KnownWorker, looks: int, now_s: float) -> int:
        """How many were looked at; what cannot go on in the middle of its answer stays, as nobody knows here whether
        it is in the middle."""
        direct = [
            each
            for each in self._direct.at(At(worker.name, worker.beat.epoch))
            if not (each.stays or each.asked.features or each.record.asks >= _MOST_MOVES)
            and self._replanned(each.record, model, plan, worker)
        ]
        tried = self._rng.sample(direct, min(len(direct), looks))
        leaving = [
            each for each in tried if self._cheaper(each.asked, worker, self._made(each, worker, now_s)) is not None
        ]
        self._tell_soon(worker, leaving, len(direct), f"{_REPLANNED}, {plan.name}")
        return len(tried)

    def _replanned(self, record: DecisionRecord, model: str, plan: PlanInForce, worker: KnownWorker) -> bool:
        """Whether a model's plan has taken the class of a request from the pool where it runs."""
        asked = record.asked
        if asked.model != model or self._fleet.trial_of(asked.model, asked.request_id) is not None:
            return False
        within = str(asked.confines) if asked.confines else ""
        found = plan.class_of(asked.slo_class, record.prompt_tokens, record.completion_tokens, within)
        return found is not None and (found, worker.pool) in plan.left

    def _cheaper(self, asked: Asked, worker: KnownWorker, made_tokens: int) -> tuple[Ask, Decision] | None:
        """Where else a request would go, if what is left of it costs clearly less there."""
        stays = self._placing.staying(asked, worker, made_tokens)
        elsewhere = self._elsewhere(asked, worker.name, made_tokens, in_time=True)
        if stays is None or elsewhere is None:
            return None
        ask, decision = elsewhere
        picked = decision.picked
        if picked.ttft_s > ask.promise.ttft_promise_s(ask.prompt_tokens):
            return None
        stays_usd = (stays.device_s - stays.saved_s) * stays.usd_per_s
        return elsewhere if picked.score_usd < _CLEARLY * stays_usd else None

    def _made(self, placement: OpenPlacement, worker: KnownWorker, now_s: float) -> int:
        """About how many tokens of its answer a direct stream has: they do not pass here."""
        asked = placement.asked
        there = self._placing.staying(asked, worker, asked.resume_from)
        if there is None or placement.taken_s is None:
            return asked.resume_from
        return asked.resume_from + int((now_s - placement.taken_s) / max(there.tpot_s, _LEAST_S))

    def _late(self, asked: Asked, placements: int, slow: Slow) -> bool:
        """Whether a slow worker breaks its promise; what was moved often stays, or two slow workers would play ball."""
        return placements < _MOST_MOVES and slow.tpot_s.get(asked.model, 0.0) > self._tpot_s(asked)

    def _move(self, relay: Relay, away_from: str, *, in_time: bool = False) -> bool:
        elsewhere = self._elsewhere(relay.asked, away_from, relay.journal.next_index, in_time=in_time)
        if elsewhere is not None:
            self._dispatcher.move(relay, *elsewhere)
        return elsewhere is not None

    def _send_direct_away(self, slow: Slow) -> None:
        worker = self._fleet.worker(slow.worker)
        if worker is None or worker.name in self._telling:
            return
        late = [
            each
            for each in self._direct.at(At(worker.name, worker.beat.epoch))
            if not each.stays and self._late(each.asked, each.record.asks, slow)
        ]
        tried = self._rng.sample(late, min(len(late), _MOST_TRIED))
        leaving = [each for each in tried if self._elsewhere(each.asked, worker.name, in_time=True) is not None]
        self._tell_soon(worker, leaving, len(late), _SLOW)

    def _tell_soon(self, worker: KnownWorker, leaving: list[OpenPlacement], of: int, because: str) -> None:
        if leaving := leaving[:_AT_ONCE]:
            self._telling.add(worker.name)
            self._spawn(self._tell(worker, leaving, of, because), f"moves from {worker.name}")

    async def _tell(self, worker: KnownWorker, leaving: list[OpenPlacement], of: int, because: str) -> None:
        asked = MoveStreams(
            epoch=worker.beat.epoch,
            request_ids=tuple(each.asked.request_id for each in leaving),
            because=because,
        )
        try:
            answered = await self._bus.request_control(worker.name, asked, _ANSWER_WITHIN_S)
        except WorkerLost as error:
            log.warning("%d direct streams of worker %s, which %s, stay for now: %s", of, worker.name, because, error)
            return
        finally:
            self._telling.discard(worker.name)
        for each in leaving:
            each.stays = True
        log.warning("told worker %s, which %s, of %d direct streams: %s", worker.name, because, of, answered.message)

    def _elsewhere(
        self, asked: Asked, away_from: str, made_tokens: int | None = None, *, in_time: bool = False
    ) -> tuple[Ask, Decision] | None:
        """Where else a request would go; None where no other worker takes it.

        Args:
            made_tokens: of its answer; None where that is not known here.
            in_time: only where its TPOT is kept.
        """
        if asked.features and made_tokens != 0:
            return None  # another engine could not go on with it unaltered
        ask = self._placing.ask(asked, {away_from}, asked.resume_from if made_tokens is None else made_tokens)
        try:
            decision = self._placing.decide(asked, ask)
        except TokenworksError:
            return None  # better a worker that may come back than none
        return None if in_time and decision.picked.tpot_s > self._tpot_s(asked) else (ask, decision)

    def _tpot_s(self, asked: Asked) -> float:
        """As its class promises it."""
        return self._fleet.promises.classes[asked.slo_class].tpot_s
