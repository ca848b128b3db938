"""Where requests wait at the router until they can go: `core/admittance.py` with futures and a clock.

In: requests that passed admission. Out: `enter` returns once a request has its place at a worker, which the view of the
fleet counts from then on, or raises why it gets none. A request that finds room does not wait: no task, no turn of the
loop. While somebody waits, the room looks every few milliseconds whether somebody can go: capacity comes free by tokens
that arrive, heartbeats and mere time.
"""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from time import perf_counter
from typing import Final

from services.mesh.clock import Clock
from services.mesh.errors import CapacityError, NoWorker, TokenworksError
from services.mesh.settings import RouterSettings
from services.router.core.admittance import Admittance
from services.router.core.fairness import Fairness, Standing
from services.router.core.fleet import Fleet
from services.router.core.known_worker import Placed
from services.router.core.lateness import Prospect, as_it_stands, foresee
from services.router.core.policy import Decision
from services.router.core.records import DecisionRecord
from services.router.core.request import Asked, Promise
from services.router.core.scores import Ask
from services.router.core.waiting import Waiting
from services.router.placing import Placing

_LOOK_EVERY_S: Final = 0.01
_MOST_LOOKING: Final = 10  # it waits so many times as long as a look took, so that looking stays a tenth of the time


class Passage:
    """One request on its way to a worker; a `Case` of the admittance.

    Attributes:
        ask, decision, record, placed: where it goes, once it went; `placed` counts in the fleet until it is taken over
            or given up with `Room.give_up`.
        waited_s: at the router.
    """

    ask: Ask
    decision: Decision
    record: DecisionRecord
    placed: Placed

    def __init__(
        self,
        placing: Placing,
        asked: Asked,
        traceparent: str,
        promise: Promise,
        *,
        excluded: Collection[str],
        made_tokens: int,
        time_left_s: float | None,
        most_queue_s: float,
        clock: Clock,
    ) -> None:
        self.asked = asked
        self.model = asked.model
        self.tenant = asked.tenant
        self.promise = promise
        self.prompt_tokens = max(1, asked.prompt.size)
        self.time_left_s = time_left_s
        self.waited_s = 0.0
        self.went: asyncio.Future[None] | None = None
        self._placing = placing
        self._traceparent = traceparent
        self._excluded = excluded
        self._made_tokens = made_tokens
        self._most_queue_s = most_queue_s
        self._clock = clock

    @property
    def gone(self) -> bool:
        """Its caller has left."""
        return self.went is not None and self.went.done()

    @property
    def served_promise(self) -> Promise:
        """As its worker is told: the class's, and the place in the worker's queue that its tenant has."""
        priority = self.ask.promise.priority
        return self.promise if priority == self.promise.priority else replace(self.promise, priority=priority)

    def look(self, waited_s: float, standing: Standing) -> Prospect:
        started_s = perf_counter()
        self.ask = ask = self._placing.ask(self.asked, self._excluded, self._made_tokens)
        self.prompt_tokens = ask.prompt_tokens
        urgency = self._placing.urgency(self.promise, ask.prompt_tokens, waited_s)
        ask.promise = as_it_stands(self.promise, waited_s, standing, urgency)
        self.decision, prospect = foresee(
            lambda max_queue_s, least_spare: self._placing.decide(self.asked, ask, max_queue_s, least_spare),
            waited_s,
            most_queue_s=self._most_queue_s,
            max_queue_s=self._placing.max_queue_s,
            now_s=self._clock.monotonic_s(),
            standing=standing,
        )
        self._took_s = perf_counter() - started_s
        return prospect

    def go(self, waited_s: float) -> None:
        self.waited_s = waited_s
        self.record = self._placing.record(self.asked, self.ask, self.decision, self._traceparent, self._took_s)
        self.record.waited_s = waited_s
        self.placed = self._placing.carried_out(self.asked, self.ask, self.decision)


class Room:
    """The requests that wait at one router.

    Attributes:
        refused: requests refused for lack of capacity, since it was last asked by `take_refused`.
    """

    def __init__(self, settings: RouterSettings, placing: Placing, fleet: Fleet, clock: Clock) -> None:
        self.fairness = Fairness(settings.tenant_weights)
        self._admittance: Admittance[Passage] = Admittance(
            self.fairness,
            most_queue_s=settings.worker_queue_s,
            most_wait_s=settings.max_wait_s,
            capacity=settings.max_waiting,
            tenant_capacity=settings.max_waiting_per_tenant,
        )
        self._settings = settings
        self._placing = placing
        self._fleet = fleet
        self._clock = clock
        self._request_ids: set[str] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._refused = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._request_ids)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._request_ids

    async def enter(
        self,
        asked: Asked,
        traceparent: str,
        *,
        excluded: Collection[str] = (),
        time_left_s: float | None = None,
    ) -> Passage:
        """Returns once the request has its place.

        Args:
            traceparent: context of the span that the request is served under.
            excluded: names of workers that failed it; one that goes on after a break does not wait again.
            time_left_s: of its caller's deadline; None where there is none.

        Raises:
            QueueFull, DeadlineUnreachable: it would begin, or end, too late.
            CallerError, CapacityError: see `policy.decide`.
        """
        passage = Passage(
            self._placing,
            asked,
            traceparent,
            self._fleet.promises.classes[asked.slo_class],
            excluded=excluded,
            made_tokens=asked.resume_from,
            time_left_s=time_left_s,
            most_queue_s=self._settings.worker_queue_s,
            clock=self._clock,
        )
        try:
            if asked.resume_from or excluded:
                self._admittance.goes_on(passage, self._clock.monotonic_s())
                return passage
            waiting = self._admittance.arrives(passage, self._clock.monotonic_s())
            if waiting is not None:
                await self._wait(passage, waiting)
        except TokenworksError as error:
            self._refused += isinstance(error, CapacityError)
            self._placing.refused(asked, traceparent, error)
            raise
        return passage

    def give_up(self, passage: Passage) -> None:
        """What went is not carried out after all."""
        self._fleet.finished(passage.placed, self._clock.monotonic_s())

    def take_refused(self) -> int:
        """Requests refused since the last call."""
        refused, self._refused = self._refused, 0
        return refused

    def dismiss(self) -> int:
        """Nobody waits any more, since this router stops; how many did."""
        cases = self._admittance.dismiss()
        for case in cases:
            _settle(case, NoWorker("this router drains; send the request to another one", retry_after_s=1))
        return len(cases)

    async def _wait(self, passage: Passage, waiting: Waiting[Passage]) -> None:
        request_id = passage.asked.request_id
        passage.went = went = asyncio.get_running_loop().create_future()
        self._request_ids.add(request_id)
        self._look_later(_LOOK_EVERY_S)
        try:
            await went
        except asyncio.CancelledError:
            self._admittance.leave(waiting)
            # It may have gone in the very turn of the loop in which its caller left.
            if not went.cancelled() and went.exception() is None:
                self.give_up(passage)
            raise
        finally:
            self._request_ids.discard(request_id)

    def _look(self) -> None:
        self._looking = None
        started_s = self._clock.monotonic_s()
        for case, error in self._admittance.pass_time(started_s):
            _settle(case, error)
        if self._request_ids:
            self._look_later(max(_LOOK_EVERY_S, (self._clock.monotonic_s() - started_s) * _MOST_LOOKING))

    def _look_later(self, delay_s: float) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(delay_s, self._look)


def _settle(case: Passage, error: TokenworksError | None) -> None:
    went = case.went
    if went is None or went.done():  # its caller left in this very turn
        return
    if error is None:
        went.set_result(None)
    else:
        went.set_exception(error)
