"""Gaps in publishers' sequences: asked for again from the publisher, and reported if they can't be had.

In: what the marks miss. Out: requests to publishers, which send what they still keep to its stream again, from where
the feed books it; a `Finding` for what a publisher does not have any more, or for one that does not answer. A gap is
usually an event that was given back and comes again in a moment, so it is asked for only when it stands for a while.

Numbers are asked for as ranges, so many in one request; an answer tells which were sent and which are lacking, and
what it does not speak of is asked for in the next one. While what is missing becomes less, asking goes on.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import BusUnavailable
from services.mesh.publishing import MOST_RANGES
from services.mesh.sequences import Ranges, common, count_of, merged, without
from services.meter.core.conservation import Finding, Kind
from services.meter.core.marks import Source

log = logging.getLogger(__name__)

_ANSWER_S: Final = 2.0
_MOST_ASKS: Final = 5  # of a publisher that does not answer, or of events that do not come, each after twice the time
_ASKED_AT_ONCE: Final = 8  # publishers in one pass
_KEPT: Final = 4096
_SHOWN: Final = 5  # ranges


@dataclass(slots=True)
class _Gap:
    """What one publisher's events lack.

    Attributes:
        missing: as of the last look; `lost`: that part of it that can't be had.
        next_s: when it may be asked for.
        asks: since what is missing became less.
    """

    missing: Ranges
    next_s: float
    lost: Ranges = ()
    asks: int = 0

    def see(self, missing: Ranges) -> Ranges:
        """Notes what is missing now; what has been for a while and may be had."""
        standing, before = common(missing, self.missing), self.missing
        if count_of(standing) < count_of(before):
            self.asks = 0
        self.missing, self.lost = missing, common(missing, self.lost)
        return without(standing, self.lost)


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
        return sum(count_of(gap.lost) for gap in self._gaps.values())

    async def look(self, missing: Mapping[Source, Ranges]) -> list[Finding]:
        """Asks for what has been missing for a while; what can't be had, each once."""
        now_s = self._clock.monotonic_s()
        for source in [each for each in self._gaps if each not in missing]:
            if self._gaps.pop(source).lost:
                self._closed.add(source[0])
        findings: list[Finding] = []
        asked = 0
        for source, ranges in missing.items():
            gap = self._gaps.get(source)
            if gap is None:
                self._gaps[source] = _Gap(ranges, now_s + self._stands_s)
                if len(self._gaps) > _KEPT:
                    self._gaps.popitem(last=False)
                continue
            had_lost = bool(gap.lost)
            wanted = gap.see(ranges)
            if had_lost and not gap.lost:
                self._closed.add(source[0])
            if not wanted or now_s < gap.next_s or asked >= _ASKED_AT_ONCE:
                continue
            asked += 1
            if (why := await self._ask(source, gap, wanted)) is not None:
                findings.append(_finding(source[0], gap.lost, why))
        return findings

    def take_closed(self) -> list[str]:
        """Publishers whose gaps were given up and are gone since: none of theirs is given up any more."""
        still = {publisher for (publisher, _), gap in self._gaps.items() if gap.lost}
        closed, self._closed = sorted(self._closed - still), set()
        return closed

    async def _ask(self, source: Source, gap: _Gap, wanted: Ranges) -> str | None:
        """Asks for a part of what is wanted; why some of it can't be had, None where that is not known of any."""
        publisher, epoch = source
        gap.asks += 1
        gap.next_s = self._clock.monotonic_s() + self._stands_s * 2.0**gap.asks
        asked = wanted[:MOST_RANGES]
        try:
            answer = await self._bus.ask_again(publisher, epoch, asked, _ANSWER_S)
        except BusUnavailable as error:
            log.info("a gap of %s cannot be asked for (%d of %d): %s", publisher, gap.asks, _MOST_ASKS, error)
            if gap.asks < _MOST_ASKS:
                return None
            gap.lost = merged((*gap.lost, *wanted))
            return "the publisher does not answer any more"
        sent = count_of(common(wanted, merged(answer.sent_ranges)))
        log.warning("%s sent %d of %d missing events again", publisher, sent, count_of(wanted))
        if answer.last == 0:
            lost, why = wanted, "it has started anew since"
        elif gap.asks >= _MOST_ASKS:
            lost, why = wanted, "they do not come, however often they are sent"
        else:
            lost, why = common(wanted, merged(answer.lacking)), "it does not keep them any more"
        gap.lost = merged((*gap.lost, *lost))
        return why if lost else None


def _finding(publisher: str, lost: Ranges, why: str) -> Finding:
    numbers = [str(each.first) if each.first == each.last else f"{each.first} to {each.last}" for each in lost[:_SHOWN]]
    shown = ", ".join(numbers) + ("…" if len(lost) > _SHOWN else "")
    what = f"{count_of(lost)} events of {publisher} can't be had ({shown}): {why}"
    return Finding(Kind.LOST, publisher, "", count_of(lost), 0, what)
