"""Running requests leave a worker that does not do as it should: relayed ones at once; direct ones when their worker
has been told to end them, with an error upon which their clients come back to be placed elsewhere.

In: the view of the fleet, look after look. Out: relays placed anew; `MoveStreams` to workers. From a worker that stands
still or is silent everything relayed leaves that another one takes (its direct streams it sends away by itself where it
stands still, and a silent one cannot be told). From one that is much slower than it should be only what breaks its
promise there and would keep it elsewhere. Direct ones go a few at a time: where those went is seen before more follow.
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
from services.router.core.policy import Decision
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
        if leaving := leaving[:_AT_ONCE]:
            self._telling.add(worker.name)
            self._spawn(self._tell(worker, leaving, len(late)), f"moves from {worker.name}")

    async def _tell(self, worker: KnownWorker, leaving: list[OpenPlacement], late: int) -> None:
        asked = MoveStreams(
            epoch=worker.beat.epoch,
            request_ids=tuple(each.asked.request_id for each in leaving),
            because="is slower than the streams' class was promised",
        )
        try:
            answered = await self._bus.request_control(worker.name, asked, _ANSWER_WITHIN_S)
        except WorkerLost as error:
            log.warning("%d late direct streams of slow worker %s stay for now: %s", late, worker.name, error)
            return
        finally:
            self._telling.discard(worker.name)
        for each in leaving:
            each.stays = True
        log.warning("told slow worker %s, with %d late direct streams: %s", worker.name, late, answered.message)

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
