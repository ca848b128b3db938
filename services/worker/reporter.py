"""The worker's facts for the mesh: tokens made and latencies seen, in batches.

In: accounts that have something to report, finished requests' latencies, engine steps. Out: `TokensGenerated` and
`LatencyObserved` on the bus, every 50 ms or 256 entries, whichever is first; nothing while there is nothing to say.

What energy an entry has is settled by `energy_shares.py`.

What is not taken by the bus, because its outbox is full, stays here and grows together per request: nothing is lost,
and what waits is bounded by the requests that run (new ones are refused meanwhile, see `streams.py`). Latencies are
samples, so of those only the newest are kept.
"""

import asyncio
import logging
from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from opentelemetry.trace import SpanKind

from services.mesh import conventions as names
from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import OutboxFull
from services.mesh.events import LatencyObserved, RequestLatency, StepSample, TokensGenerated
from services.mesh.subjects import TOKENS
from services.mesh.telemetry import Telemetry, context_of, traceparent_of
from services.worker.account import Account
from services.worker.core.step_sampler import StepSampler
from services.worker.energy_shares import EnergyShares
from services.worker.engine import StepOutput
from services.worker.identity import Identity

log = logging.getLogger(__name__)

_INTERVAL_S: Final = 0.050
_ENTRIES: Final = 256
_KEPT_LATENCIES: Final = 1024
_KEPT_STEPS: Final = 64


@dataclass(slots=True)
class _Observed:
    """Latencies of one model that wait to be reported."""

    requests: deque[RequestLatency] = field(default_factory=lambda: deque(maxlen=_KEPT_LATENCIES))
    steps: deque[StepSample] = field(default_factory=lambda: deque(maxlen=_KEPT_STEPS))
    sampler: StepSampler = field(default_factory=StepSampler)


class Reporter:
    """Batches for one worker; `run` in the background, `flush` at the end.

    Attributes:
        shares: of energy, among the accounts noted here.
    """

    def __init__(self, identity: Identity, bus: Bus, clock: Clock, telemetry: Telemetry) -> None:
        self._identity = identity
        self._bus = bus
        self._clock = clock
        self._telemetry = telemetry
        self._noted: dict[Account, None] = {}  # in the order they were noted
        self._observed: defaultdict[str, _Observed] = defaultdict(_Observed)
        self.shares = EnergyShares(self.note)
        self._something = asyncio.Event()
        self._plenty = asyncio.Event()

    def note(self, account: Account) -> None:
        """There is something to report of this request; once per report is enough (`account.noted`)."""
        account.noted = True
        self._noted[account] = None
        self.shares.noted(account)
        self._something.set()
        if len(self._noted) >= _ENTRIES:
            self._plenty.set()

    def finished(self, model: str, latency: RequestLatency) -> None:
        self._observed[model].requests.append(latency)
        self._something.set()

    def step(self, step: StepOutput, now_s: float) -> None:
        """A step that ended at `now_s`; some are told of."""
        self.shares.stepped_s = now_s
        if step.load is None or step.step_s <= 0.0:
            return
        observed = self._observed[step.model]
        if not observed.sampler.wants(step.load, now_s):
            return
        observed.steps.append(
            StepSample(
                prefill_tokens=step.load.prefill_tokens,
                attended_tokens=step.load.attended_tokens,
                decode_sequences=step.load.decode_sequences,
                kv_tokens=step.load.kv_tokens,
                step_s=step.step_s,
            )
        )
        self._something.set()

    async def run(self) -> None:
        """Reports until cancelled."""
        while True:
            await self._something.wait()
            try:
                async with asyncio.timeout(_INTERVAL_S):
                    await self._plenty.wait()
            except TimeoutError:
                pass
            self.flush()

    def flush(self) -> int:
        """Hands to the bus what it takes; the number of requests whose work it did not take."""
        self._plenty.clear()
        try:
            while self._noted:
                self._report_tokens(list(islice(self._noted, _ENTRIES)))
            for model, observed in self._observed.items():
                if observed.requests or observed.steps:
                    self._report_latencies(model, observed)
        except OutboxFull:
            log.warning("the bus takes no more: the work of %d requests waits to be reported", len(self._noted))
            return len(self._noted)
        self._something.clear()
        return 0

    def _report_tokens(self, accounts: list[Account]) -> None:
        by_source: defaultdict[str, list[Account]] = defaultdict(list)
        for account in accounts:
            self.shares.settle(account)
            by_source[account.energy_source or self.shares.source].append(account)
        for source, some in by_source.items():
            self._publish_tokens(some, source)

    def _publish_tokens(self, accounts: list[Account], energy_source: str) -> None:
        who = self._identity
        self._bus.publish(
            TokensGenerated(
                worker=who.worker,
                pool=who.pool,
                accelerator=who.accelerator.key,
                entries=tuple(account.entry(self._message_traceparent(account)) for account in accounts),
                at_unix_ms=self._clock.unix_ms(),
                energy_source=energy_source,
            )
        )
        # Taken: only now may it be forgotten here.
        for account in accounts:
            del self._noted[account]
            account.reported()
            if account.complete and account.span is not None:
                account.span.end()

    def _report_latencies(self, model: str, observed: _Observed) -> None:
        who = self._identity
        self._bus.publish(
            LatencyObserved(
                worker=who.worker,
                pool=who.pool,
                accelerator=who.accelerator.key,
                model=model,
                requests=tuple(observed.requests),
                steps=tuple(observed.steps),
                at_unix_ms=self._clock.unix_ms(),
            )
        )
        observed.requests.clear()
        observed.steps.clear()

    def _message_traceparent(self, account: Account) -> str:
        """Context of the span that stands for the request's entries, as the messages of a batch have one each.

        It begins with the first entry and ends with the last, so that a long answer has one such span, not hundreds.
        """
        if not self._telemetry.exporting:
            return account.traceparent
        if account.span is None:
            account.span = self._telemetry.tracer.start_span(
                names.create_span(TOKENS.template),
                context_of(account.traceparent),
                SpanKind.PRODUCER,
                {
                    names.MESSAGING_SYSTEM: "nats",
                    names.MESSAGING_OPERATION_NAME: "create",
                    names.MESSAGING_OPERATION_TYPE: "create",
                    names.MESSAGING_DESTINATION_TEMPLATE: TOKENS.template,
                    names.REQUEST_ID: account.request_id,
                },
            )
        return traceparent_of(account.span)
