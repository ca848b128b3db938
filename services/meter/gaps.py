"""Gaps in publishers' sequences: asked for again from the publisher, and reported if they can't be had.

In: what the marks miss. Out: requests to publishers, which send what they still keep to its stream again, from where
the feed books it; a `Finding` for what a publisher does not have any more, or for one that does not answer. A gap is
usually an event that was given back and comes again in a moment, so it is asked for only when it stands for a while.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import BusUnavailable
from services.mesh.publishing import MOST_AGAIN
from services.meter.core.conservation import Finding, Kind
from services.meter.core.marks import Source

log = logging.getLogger(__name__)

_ANSWER_S: Final = 2.0
_MOST_ASKS: Final = 5  # of a publisher that does not answer, each after twice the time
_ASKED_AT_ONCE: Final = 8  # publishers in one pass
_KEPT: Final = 4096


@dataclass(slots=True)
class _Gap:
    numbers: tuple[int, ...]
    next_s: float
    asks: int = 0
    given_up: bool = False


class Gaps:
    """The gaps of all publishers. Lives in the event loop.

    Args:
        stands_s: how long a gap stands before it is asked for; > 0.
    """

    def __init__(self, bus: Bus, clock: Clock, *, stands_s: float) -> None:
        self._stands_s = stands_s
        self._bus = bus
        self._clock = clock
        self._gaps: OrderedDict[Source, _Gap] = OrderedDict()
        self._closed: set[str] = set()

    @property
    def given_up(self) -> int:
        """Missing events that can't be had; they are missing as long as the marks remember that."""
        return sum(len(gap.numbers) for gap in self._gaps.values() if gap.given_up)

    async def look(self, missing: Mapping[Source, Sequence[int]]) -> list[Finding]:
        """Asks for what has been missing for a while; what can't be had, each once."""
        now_s = self._clock.monotonic_s()
        for source in [each for each in self._gaps if each not in missing]:
            if self._gaps.pop(source).given_up:
                self._closed.add(source[0])
        findings: list[Finding] = []
        asked = 0
        for source, numbers in missing.items():
            gap = self._gaps.get(source)
            if gap is None or not set(gap.numbers).issuperset(numbers):
                # New, or larger: all of it is asked for together.
                self._gaps[source] = _Gap(tuple(numbers), now_s + self._stands_s)
                if len(self._gaps) > _KEPT:
                    self._gaps.popitem(last=False)
                continue
            gap.numbers = tuple(numbers)
            if gap.given_up or now_s < gap.next_s or asked >= _ASKED_AT_ONCE:
                continue
            asked += 1
            if (lost := await self._ask(source, gap)) is not None:
                findings.append(lost)
        return findings

    def take_closed(self) -> list[str]:
        """Publishers whose gaps were given up and are gone since: none of theirs is given up any more."""
        still = {publisher for (publisher, _), gap in self._gaps.items() if gap.given_up}
        closed, self._closed = sorted(self._closed - still), set()
        return closed

    async def _ask(self, source: Source, gap: _Gap) -> Finding | None:
        publisher, epoch = source
        gap.asks += 1
        gap.next_s = self._clock.monotonic_s() + self._stands_s * 2.0**gap.asks
        try:
            answer = await self._bus.ask_again(publisher, epoch, gap.numbers[:MOST_AGAIN], _ANSWER_S)
        except BusUnavailable as error:
            log.info("a gap of %s cannot be asked for (%d of %d): %s", publisher, gap.asks, _MOST_ASKS, error)
            if gap.asks < _MOST_ASKS:
                return None
            gap.given_up = True
            return _lost(publisher, gap.numbers, "the publisher does not answer any more")
        unknown = sorted(set(gap.numbers) - set(answer.sent))
        log.warning("%s sent %d of %d missing events again", publisher, len(answer.sent), len(gap.numbers))
        if answer.sent and gap.asks < _MOST_ASKS:
            return None  # what was sent closes the gap; what is left of it is asked for once more
        gap.given_up = True
        why = "it has started anew since" if answer.last == 0 else "it does not keep them any more"
        return _lost(publisher, unknown or gap.numbers, why)


def _lost(publisher: str, numbers: Sequence[int], why: str) -> Finding:
    shown = ", ".join(str(each) for each in numbers[:5]) + ("…" if len(numbers) > 5 else "")
    what = f"{len(numbers)} events of {publisher} can't be had ({shown}): {why}"
    return Finding(Kind.LOST, publisher, "", len(numbers), 0, what)
