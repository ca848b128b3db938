"""What the meter's audit has found: kept, measured, told on the bus.

In: findings as the reconciler makes them, and what it did about each. Out: a `DriftFound` event for each that is new
or repaired, a gauge of those that stand by kind, and the two lists that `Meter.Audit` answers from. Bounded: beyond
`_STANDING_KEPT` new ones are counted only.
"""

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from opentelemetry.metrics import CallbackOptions, Observation

from services.mesh import conventions as names
from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import OutboxFull
from services.mesh.events import DriftFound
from services.mesh.telemetry import Telemetry
from services.meter.core.conservation import Finding, Kind

log = logging.getLogger(__name__)

_MOST: Final = 2**63 - 1
_STANDING_KEPT: Final = 1000
_REPAIRED_KEPT: Final = 100
_TO_DO: Final = {
    Kind.LINES: "a backup of the books, or `tokenworks rebuild`, tells what was there",
    Kind.BILLED: "a backup of the books, or `tokenworks rebuild`, tells what was there",
    Kind.USAGE: "it is added up again at the end of the next round",
    Kind.SPENT: "it is added up again at the end of the next round",
    Kind.UNREPORTED: "nothing: its worker died before its last report",
    Kind.UNFINISHED: "nothing: it is billed by its worker's word until it is ended, after meter.end_after_s",
    Kind.WORKER: "nothing where the worker died: what it made last was delivered to nobody; else see its log",
    Kind.LOST: "see the logs of the publisher and of NATS; what follows from these events is found by itself",
    Kind.BILL: "somebody changed the postings of that hour: a backup tells what was there; it is not settled any more",
    Kind.BEHIND: "nothing: it was read from the streams again",
}


@dataclass(slots=True)
class Checked:
    """How far the audit is; figures since the meter started, and the totals of its last round."""

    requests: int = 0
    rounds: int = 0
    round_ended_unix_ms: int = 0
    generated_tokens: int = 0
    delivered_tokens: int = 0


class Audit:
    """The findings of one meter. Lives in the event loop.

    Attributes:
        missing_events, lost_events: of all publishers.
    """

    def __init__(self, meter_id: str, bus: Bus, clock: Clock, telemetry: Telemetry) -> None:
        self.checked = Checked()
        self.missing_events = 0
        self.lost_events = 0
        self._meter_id = meter_id
        self._bus = bus
        self._clock = clock
        self._standing: OrderedDict[tuple[Kind, str, str], DriftFound] = OrderedDict()
        self._repaired: deque[DriftFound] = deque(maxlen=_REPAIRED_KEPT)
        self._untold: deque[DriftFound] = deque(maxlen=_STANDING_KEPT)
        meter = telemetry.meter
        self._repairs = meter.create_counter(
            names.DRIFT_REPAIRED, "{finding}", "Findings of the audit that it repaired"
        )
        meter.create_observable_gauge(names.DRIFT, [self._observe], "{finding}", "Findings of the audit that stand")

    @property
    def standing(self) -> Sequence[DriftFound]:
        """What is not repaired, oldest first."""
        return list(self._standing.values())

    @property
    def repaired(self) -> Sequence[DriftFound]:
        """What was repaired lately, oldest first."""
        return list(self._repaired)

    def stands(self, finding: Finding) -> None:
        """It was found, and is not repaired (yet)."""
        key = _key(finding)
        known = self._standing.get(key)
        event = self._event(finding, repaired=False, done=_TO_DO[finding.kind])
        if known is not None and (known.expected, known.found) == (event.expected, event.found):
            return
        log.error("audit: %s: %s", finding.subject, finding.what)
        self._tell(event)
        if known is not None or len(self._standing) < _STANDING_KEPT:
            self._standing[key] = event

    def repaired_now(self, finding: Finding, done: str) -> None:
        """It was found and does not stand any more; `done` says what was done about it."""
        self._standing.pop(_key(finding), None)
        event = self._event(finding, repaired=True, done=done)
        log.warning("audit: %s: %s; %s", finding.subject, finding.what, done)
        self._repairs.add(1, {names.DRIFT_KIND: finding.kind})
        self._repaired.append(event)
        self._tell(event)

    def agrees(self, kinds: Iterable[Kind], subject: str, tenant: str) -> None:
        """Nothing of these kinds is found about the subject any more."""
        for kind in kinds:
            gone = self._standing.pop((kind, subject, tenant), None)
            if gone is not None:
                log.info("audit: %s: %s is as it should be now", kind, subject)

    def tell(self) -> None:
        """Hands to the bus what waits, as far as it takes it."""
        while self._untold:
            try:
                self._bus.publish(self._untold[0])
            except OutboxFull:
                return
            self._untold.popleft()

    def _tell(self, event: DriftFound) -> None:
        self._untold.append(event)
        self.tell()

    def _event(self, finding: Finding, *, repaired: bool, done: str) -> DriftFound:
        return DriftFound(
            meter=self._meter_id,
            kind=finding.kind,
            subject=finding.subject,
            tenant=finding.tenant,
            expected=_fitting(finding.expected),
            found=_fitting(finding.found),
            what=finding.what,
            repaired=repaired,
            done=done,
            at_unix_ms=self._clock.unix_ms(),
        )

    def _observe(self, _: CallbackOptions) -> list[Observation]:
        by_kind = Counter(kind for kind, _, _ in self._standing)
        return [Observation(by_kind.get(kind, 0), {names.DRIFT_KIND: kind}) for kind in Kind]


def _fitting(value: int) -> int:
    """What the wire holds of it: a worker may say any number of itself."""
    return max(-_MOST, min(_MOST, value))


def _key(finding: Finding) -> tuple[Kind, str, str]:
    return finding.kind, finding.subject, finding.tenant
