"""Placements that are out: handed to clients, not known to have ended. Pure.

In: placements made, what workers tell of them, and which workers are gone. Out: those that are over. What a worker
tells may be lost on the way, so each placement also ends by a bound: one that nobody took, some time after it expired;
one whose worker is gone, unless its client comes back for the rest within `RESUME_WITHIN_S`; one that a worker with
nothing to do says nothing of.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.mesh.holds import RequestCredit
from services.router.core.known_worker import Placed
from services.router.core.records import DecisionRecord
from services.router.core.request import Asked

RESUME_WITHIN_S: Final = 30.0  # a client whose worker is gone is waited for
_TOLD_WITHIN_S: Final = 2.0  # what a worker tells arrives, if at all


class At(NamedTuple):
    """One start of one worker."""

    worker: str
    epoch: str


@dataclass(slots=True, eq=False)
class OpenPlacement:
    """One request at the worker it was placed at last; seconds are the router's monotonic ones.

    Attributes:
        cached_tokens: prompt tokens expected in the worker's prefix cache.
        traceparent: context of the span it was placed under.
        expires_s: the worker refuses it from then on.
        credit: what is held for it; None where no budget bounds it.
        stays: its worker is not told to send it elsewhere: its client could not go on, or the worker was told.
        taken_s: when its client was told to have come; None before.
    """

    asked: Asked
    placed: Placed
    record: DecisionRecord
    cached_tokens: int
    traceparent: str
    expires_s: float
    credit: RequestCredit | None = None
    stays: bool = False
    taken_s: float | None = None

    @property
    def at(self) -> At:
        beat = self.placed.worker.beat
        return At(beat.worker, beat.epoch)


class Over(NamedTuple):
    """What a sweep found to be over.

    Attributes:
        unclaimed: nobody took them.
        abandoned: their worker is gone and their client did not come back.
        untold: they ended, and what the worker told of that was lost.
    """

    unclaimed: list[OpenPlacement]
    abandoned: list[OpenPlacement]
    untold: list[OpenPlacement]


class OpenPlacements:
    """By request id; at most one placement of a request is open."""

    def __init__(self) -> None:
        self._open: dict[str, OpenPlacement] = {}
        self._untaken: OrderedDict[str, OpenPlacement] = OrderedDict()  # by expiry: all live equally long
        self._at: dict[At, dict[str, OpenPlacement]] = {}
        self._gone_since_s: dict[At, float] = {}
        self._idle_since_s: dict[At, float] = {}

    def __len__(self) -> int:
        return len(self._open)

    def of(self, request_id: str) -> OpenPlacement | None:
        return self._open.get(request_id)

    def taken(self, at: At) -> list[OpenPlacement]:
        """Those at one start of a worker whose clients have come."""
        return [each for each in self._at.get(at, {}).values() if each.taken_s is not None]

    def add(self, placement: OpenPlacement) -> None:
        """Replaces the placement of the same request, which the caller has `remove`d if there was one."""
        request_id = placement.asked.request_id
        assert request_id not in self._open, request_id
        self._open[request_id] = self._untaken[request_id] = placement
        self._at.setdefault(placement.at, {})[request_id] = placement

    def remove(self, placement: OpenPlacement) -> None:
        """It is over, or replaced."""
        request_id = placement.asked.request_id
        del self._open[request_id]
        self._untaken.pop(request_id, None)
        here = self._at[placement.at]
        del here[request_id]
        if not here:
            del self._at[placement.at]

    def took(self, at: At, request_ids: Iterable[str], now_s: float) -> None:
        """A worker's clients came."""
        here = self._at.get(at, {})
        for request_id in request_ids:
            if (placement := here.get(request_id)) is not None:
                placement.taken_s = now_s
                self._untaken.pop(request_id, None)

    def ended(self, at: At, request_id: str) -> OpenPlacement | None:
        """A stream ended at a worker: its placement, removed; None when the request is placed elsewhere meanwhile."""
        placement = self._at.get(at, {}).get(request_id)
        if placement is not None:
            self.remove(placement)
        return placement

    def sweep(self, now_s: float, gone: Callable[[At], bool], idle: Callable[[At], bool]) -> Over:
        """Removes what is over by its bounds.

        Args:
            gone: whether that start of a worker is lost.
            idle: whether it has nothing to do, as far as is known.
        """
        self._gone_since_s = {at: self._gone_since_s.get(at, now_s) for at in self._at if gone(at)}
        self._idle_since_s = {at: self._idle_since_s.get(at, now_s) for at in self._at if idle(at)}
        over = Over(self._unclaimed(now_s), [], [])
        for at, since_s in self._gone_since_s.items():
            if since_s + RESUME_WITHIN_S <= now_s:
                over.abandoned.extend(self._at[at].values())
        for at, since_s in self._idle_since_s.items():
            if at not in self._gone_since_s and since_s + _TOLD_WITHIN_S <= now_s:
                over.untold.extend(
                    each for each in self._at[at].values() if each.taken_s is not None and each.taken_s < since_s
                )
        for placements in over:
            for each in placements:
                self.remove(each)
        return over

    def _unclaimed(self, now_s: float) -> list[OpenPlacement]:
        unclaimed = []
        while self._untaken:
            request_id, first = next(iter(self._untaken.items()))
            if first.expires_s + _TOLD_WITHIN_S > now_s:
                break
            del self._untaken[request_id]
            if first.at in self._gone_since_s:
                first.taken_s = now_s  # it may have been, with nobody left to tell
            else:
                unclaimed.append(first)
        return unclaimed
