"""Who goes now, who waits, and who is better told at once that it would be too late. Pure.

In: requests that arrive, and time that passes. Out: each goes, or waits and goes later, or gets an error that says when
to come back. What "going" is, its caller knows: a request is a `Case` that can be looked at and carried out.

A request that nobody waits ahead of is looked at when it arrives, as is one of a tenant within its share (`fairness`):
others' excess must not stand in its way. It goes, if that is good now (`lateness`). Else it waits, if it can be
expected to go within half of what its promise leaves; the other half is for what can't be expected. Where one was
refused for that lately, its tenant's others of its class may be expected to wait no longer than it was: else a flood's
long prompts, which are promised more time, would come in wherever a short one is refused, and few of them can be
served. One that waits is given up when going would break its promise. Both are early: nothing has been spent on it, and
its caller still has the time to do something else.

Of those that wait, a request whose class can wait leaves the pools alone that urgent ones wait for, and only these.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

from services.mesh.errors import DeadlineUnreachable, QueueFull, TokenworksError
from services.router.core.fairness import Fairness, Standing
from services.router.core.lateness import Prospect, is_patient
from services.router.core.request import Promise
from services.router.core.waiting import Waiting, WaitingRoom

_EXPECTED_PART: Final = 0.5  # of its patience that a request may be expected to wait
_OWN_PART: Final = 0.1  # of its promise, at most, that a request's own computation counts for
_IN_TIME: Final = 0.8  # of what is left of its promise that a request is predicted to need at most: predictions err
_LOOKS: Final = 2  # requests of one class that may turn out not to go, before the others of it must wait
_SWEEP_EVERY_S: Final = 0.1
_LEAST_RETRY_S: Final = 0.25
_MOST_RETRY_S: Final = 30.0


class Case(Protocol):
    """A request on its way to a worker.

    Attributes:
        prompt_tokens: as expected, >= 1.
        time_left_s: of its caller's deadline, when it arrived; None where there is none.
        gone: its caller has left.
    """

    @property
    def model(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def promise(self) -> Promise: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def time_left_s(self) -> float | None: ...
    @property
    def gone(self) -> bool: ...

    def look(self, waited_s: float, standing: Standing) -> Prospect:
        """Decides where it would go now, after having waited so long. Raises TokenworksError: nowhere."""
        ...

    def go(self, waited_s: float) -> None:
        """Carries the decision out that was looked at last."""
        ...


C = TypeVar("C", bound=Case)


class Admittance(Generic[C]):
    """The requests of one router that wait.

    Args:
        most_queue_s: > 0; a worker predicted to queue a request longer gets it later.
        most_wait_s: > 0; how long requests of classes that can wait may.
        capacity, tenant_capacity: >= 1; the most requests that wait for a model, and of one tenant.
    """

    def __init__(
        self, fairness: Fairness, *, most_queue_s: float, most_wait_s: float, capacity: int, tenant_capacity: int
    ) -> None:
        self._fairness = fairness
        self._most_queue_s = most_queue_s
        self._most_wait_s = most_wait_s
        self._capacity = capacity
        self._tenant_capacity = tenant_capacity
        self._rooms: dict[str, WaitingRoom[C]] = {}
        self._turned_away: list[tuple[C, TokenworksError]] = []
        self._swept_s = float("-inf")

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._rooms.values()))

    def arrives(self, case: C, now_s: float) -> Waiting[C] | None:
        """A request comes: it went (None), or waits.

        Raises:
            QueueFull, DeadlineUnreachable: it would be too late.
            TokenworksError: what its `look` raised.
        """
        room = self._room(case.model)
        tenant, promise = case.tenant, case.promise
        standing = self._fairness.standing(tenant, now_s)
        if standing is Standing.WITHIN or not len(room):
            try:
                prospect = case.look(0.0, standing)
            except QueueFull:
                pass  # so it waits, if it may
            else:
                _check_deadline(case, prospect, case.time_left_s)
                if prospect.goes(standing):
                    self._go(case, prospect, now_s)
                    return None
        patient = is_patient(promise)
        wait_s = room.wait_s(tenant, promise, patient, now_s)
        promised_s = patience_s = self._most_wait_s if patient else promise.ttft_promise_s(case.prompt_tokens)
        fair_s = room.least_refused_s(tenant, promise, promised_s, now_s)
        if case.time_left_s is not None:
            if wait_s >= case.time_left_s:
                raise _unreachable(case, wait_s)
            patience_s = min(patience_s, case.time_left_s)
        if wait_s > min(fair_s, patience_s) * _EXPECTED_PART:
            if wait_s > promised_s * _EXPECTED_PART and fair_s == promised_s:  # not for its caller's deadline alone
                room.refused(tenant, promise, promised_s, now_s)
            raise _too_late(case, len(room), wait_s)
        waiting = Waiting(tenant, promise, now_s, now_s + patience_s, patient, case)
        turned = room.enter(waiting)
        if turned is waiting:
            raise _too_late(case, len(room), wait_s)
        if turned is not None:
            self._turned_away.append((turned.item, _too_late(turned.item, len(room), wait_s)))
        return waiting

    def goes_on(self, case: C, now_s: float) -> None:
        """A request that broke off goes on at once, before all that wait. Raises what its `look` raises."""
        prospect = case.look(0.0, Standing.WITHIN)
        self._go(case, prospect, now_s)

    def leave(self, waiting: Waiting[C]) -> None:
        """It waits no more: its caller left."""
        if waiting.item.model in self._rooms:
            self._rooms[waiting.item.model].leave(waiting)

    def pass_time(self, now_s: float) -> Iterator[tuple[C, TokenworksError | None]]:
        """Those that wait no more: they went (None), or why they won't. To be called often while any wait."""
        turned_away, self._turned_away = self._turned_away, []
        yield from turned_away
        for room in self._rooms.values():
            if len(room):
                yield from self._serve(room, now_s)
        if now_s - self._swept_s < _SWEEP_EVERY_S:
            return
        self._swept_s = now_s
        for model, room in list(self._rooms.items()):
            for waiting in [each for each in room.waiting() if each.until_s <= now_s or each.item.gone]:
                room.leave(waiting)
                yield waiting.item, self._gave_up(room, waiting, now_s)
            if room.idle(now_s):
                del self._rooms[model]

    def dismiss(self) -> list[C]:
        """Nobody waits any more; those who did."""
        cases = [each.item for room in self._rooms.values() for each in room.waiting()]
        cases += [case for case, _ in self._turned_away]
        self._rooms.clear()
        self._turned_away.clear()
        return cases

    def _room(self, model: str) -> WaitingRoom[C]:
        room = self._rooms.get(model)
        if room is None:
            room = self._rooms[model] = WaitingRoom(self._fairness, self._capacity, self._tenant_capacity)
        return room

    def _serve(self, room: WaitingRoom[C], now_s: float) -> Iterator[tuple[C, TokenworksError | None]]:
        """Those of one room whose turn it is and that go, or are given up."""
        stay: Counter[str] = Counter()
        for waiting in room.turns():
            case, waited_s = waiting.item, now_s - waiting.since_s
            if stay[case.promise.name] >= _LOOKS:
                continue
            if case.gone:
                room.leave(waiting)
                continue
            standing = self._fairness.standing(case.tenant, now_s)
            try:
                prospect = case.look(waited_s, standing)
            except QueueFull:
                stay[case.promise.name] += 1
                continue
            except TokenworksError as error:
                room.leave(waiting)
                yield case, error
                continue
            if not waiting.patient and self._is_late(case, prospect, waited_s):
                room.leave(waiting)
                yield case, self._gave_up(room, waiting, now_s)
            elif prospect.goes(standing) and not (
                # There it would be passed by all that come.
                waiting.patient and standing is not Standing.WITHIN and room.wants(prospect.pool, now_s)
            ):
                room.leave(waiting)
                self._go(case, prospect, now_s, waited_s)
                yield case, None
            else:
                stay[case.promise.name] += 1
                if not waiting.patient:
                    room.waits_for(prospect.pool, now_s)

    def _is_late(self, case: C, prospect: Prospect, waited_s: float) -> bool:
        promised_s = case.promise.ttft_promise_s(case.prompt_tokens)
        # Its own computation counts in part: one that is late by that alone is late wherever and whenever it goes.
        own_s = min(prospect.own_s, promised_s * _OWN_PART)
        return min(prospect.queue_s, self._most_queue_s) + own_s > (promised_s - waited_s) * _IN_TIME

    def _go(self, case: C, prospect: Prospect, now_s: float, waited_s: float = 0.0) -> None:
        case.go(waited_s)
        self._room(case.model).went(now_s)
        self._fairness.place(case.tenant, prospect.device_usd, now_s)

    def _gave_up(self, room: WaitingRoom[C], waiting: Waiting[C], now_s: float) -> TokenworksError:
        case, waited_s = waiting.item, now_s - waiting.since_s
        if case.time_left_s is not None and case.time_left_s <= waited_s:
            return _unreachable(case, waited_s)
        wait_s = room.wait_s(case.tenant, case.promise, waiting.patient, now_s)
        return _too_late(case, len(room), max(waited_s, wait_s))


def _check_deadline(case: Case, prospect: Prospect, left_s: float | None) -> None:
    if left_s is None:
        return
    if prospect.ttft_s > left_s:
        raise _unreachable(case, prospect.ttft_s)


def _too_late(case: Case, waiting: int, wait_s: float) -> QueueFull:
    return QueueFull(
        f"every worker of model {case.model!r} is busy and {waiting} requests wait: this one would begin in about"
        f" {wait_s:.1f} s, too late for slo_class {case.promise.name!r} ({case.promise.ttft_s:g} s); try again, or ask"
        " for a class that can wait",
        retry_after_s=min(_MOST_RETRY_S, max(_LEAST_RETRY_S, wait_s)),
    )


def _unreachable(case: Case, needs_s: float) -> DeadlineUnreachable:
    return DeadlineUnreachable(
        f"the first token would come in about {needs_s:.1f} s, after the call's deadline of {case.time_left_s:.1f} s;"
        " allow more time, or try again",
        retry_after_s=min(_MOST_RETRY_S, max(_LEAST_RETRY_S, needs_s)),
    )
