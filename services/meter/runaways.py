"""The meter's watch over what runs away: hears, judges, says it on the bus, and answers operators.

In: usage as it is booked, requests let in, loops that workers found. Out: `RunawayFound`, at each change of a grade and
again every `_SAY_AGAIN_S` while it is in force: it holds only for a while, so that nothing stays stopped because a
meter died.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from services.mesh import conventions as names
from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.errors import OutboxFull, UnknownRequest
from services.mesh.events import RequestAdmitted, RunawayFound, RunawayGrade
from services.mesh.money import usd_to_nusd
from services.mesh.settings import RunawaySettings
from services.mesh.subjects import ADMITTED, RUNAWAY
from services.mesh.telemetry import Telemetry
from services.meter.core.amounts import Amounts
from services.meter.core.runaway import Finding, Judge, Rules, Scope
from services.meter.core.usage import UsageKey

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0
_SAY_AGAIN_S: Final = 60.0
_HOLDS_S: Final = 180.0
_MOST_LOOPS: Final = 1000
_S_PER_MINUTE: Final = 60.0


def rules_of(settings: RunawaySettings) -> Rules:
    """The settings, which are per minute, as amounts per bucket."""
    part = settings.bucket_s / _S_PER_MINUTE
    return Rules(
        most=settings.most,
        bucket_s=settings.bucket_s,
        ratio=settings.ratio,
        least_tokens=settings.least_tokens_per_minute * part,
        least_requests=settings.least_requests_per_minute * part,
        least_nusd=usd_to_nusd(settings.least_usd_per_minute) * part,
        agent_turns=settings.agent_turns,
        agent_gap_s=settings.agent_gap_s,
        cap_tokens=settings.cap_tokens,
    )


class Runaways:
    """Lives in the event loop.

    Args:
        meter_id: whom the events name as finder.
    """

    def __init__(self, meter_id: str, settings: RunawaySettings, bus: Bus, clock: Clock, telemetry: Telemetry) -> None:
        self._meter_id = meter_id
        self._settings = settings
        self._bus = bus
        self._clock = clock
        self._judge = Judge(rules_of(settings))
        self._unsaid: OrderedDict[Scope, Finding] = OrderedDict()
        self._loops: OrderedDict[str, RunawayFound] = OrderedDict()
        self._said_again_s = clock.monotonic_s()
        self._found = telemetry.meter.create_counter(names.RUNAWAYS, "{finding}", "Runaways found, by kind and grade")

    def booked(self, usage: Mapping[UsageKey, Amounts]) -> None:
        """Takes what a batch booked, where runaways are looked for."""
        if self._settings.most is not RunawayGrade.NONE:
            self._judge.booked(usage)

    def standing(self) -> list[RunawayFound]:
        """What is in force, and the loops that workers found lately, the latest last."""
        return [self._event(each) for each in self._judge.standing()] + list(self._loops.values())

    def lift(self, tenant: str, kind: str, name: str) -> None:
        """Says that a scope is as it should be.

        Raises:
            UnknownRequest: nothing is in force for it.
        """
        scope = Scope(tenant, kind, name)
        if not self._judge.lift(scope):
            raise UnknownRequest(f"nothing is in force for {scope}; `tokenworks runaway` lists what is")
        self._say()

    async def run(self) -> None:
        """Hears and judges until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._bus.watch([ADMITTED, RUNAWAY], self._hear))
            tasks.create_task(self._look())

    async def _hear(self, delivered: Delivered) -> None:
        match delivered.event:
            case RequestAdmitted() as each:
                self._judge.admitted(
                    each.tenant,
                    each.workload,
                    each.session_id,
                    each.prompt_tokens,
                    self._clock.monotonic_s(),
                    key=each.key,
                    conversation=each.conversation,
                )
            case RunawayFound(scope="request") as found:
                self._loops.pop(found.name, None)
                self._loops[found.name] = found
                while len(self._loops) > _MOST_LOOPS:
                    self._loops.popitem(last=False)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(min(_LOOK_EVERY_S, self._settings.bucket_s))
            self._say()

    def _say(self) -> None:
        """Publishes what is new, what could not be published before, and now and then what stands."""
        now_s = self._clock.monotonic_s()
        for finding in self._judge.due(now_s):
            log.warning("runaway, %s: %s", finding.grade, finding.evidence)
            self._found.add(1, {names.RUNAWAY_KIND: finding.kind, names.RUNAWAY_GRADE: str(finding.grade)})
            self._unsaid[finding.scope] = finding
        if now_s - self._said_again_s >= _SAY_AGAIN_S:
            self._said_again_s = now_s
            for finding in self._judge.standing():
                self._unsaid.setdefault(finding.scope, finding)
        with contextlib.suppress(OutboxFull):  # said when it drains
            while self._unsaid:
                scope = next(iter(self._unsaid))
                self._bus.publish(self._event(self._unsaid[scope]))
                del self._unsaid[scope]

    def _event(self, finding: Finding) -> RunawayFound:
        now_unix_ms = self._clock.unix_ms()
        return RunawayFound(
            found_by=self._meter_id,
            tenant=finding.scope.tenant,
            scope=finding.scope.kind,
            name=finding.scope.name,
            kind=finding.kind,
            grade=str(finding.grade),
            dry_run=self._settings.dry_run,
            observed=finding.observed,
            usual=finding.usual,
            unit=finding.unit,
            allowed_rps=finding.allowed_rps,
            cap_tokens=finding.cap_tokens,
            evidence=finding.evidence,
            at_unix_ms=now_unix_ms,
            until_unix_ms=now_unix_ms + round(_HOLDS_S * 1000),
        )
