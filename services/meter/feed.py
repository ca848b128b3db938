"""What the meter reads from the bus: tokens generated, requests admitted and finished.

In: batches of two durable consumers for each shard of the books that this process books. Out: books (through the
writing thread), what was booked to who wants to hear it, metrics, and spans. A batch is committed before it is acked: a
crash between the two brings it again, and its marks, which were committed with it, drop it.

Spans, only when they are exported: one `process …` per batch and channel, linked to each message's publish span; one
`settle …` per request that ended, as child of the message (or entry) that said so.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.mesh import conventions as names
from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.errors import InvariantBroken
from services.mesh.subjects import channel_of
from services.mesh.telemetry import Telemetry, context_of, links_to
from services.meter.booked import Booked, Settled
from services.meter.bookkeeper import Bookkeeper
from services.meter.catch_up import READS
from services.meter.core.amounts import NOTHING
from services.meter.core.marks import Source
from services.meter.ears import Ears
from services.meter.lessor import Lessor
from services.meter.store.shards import durable_of
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)

_BATCH: Final = 512  # what is behind folds the better the more of it comes at once; half of what may be under way
_MAY_COME_S: Final = 10.0  # what is missing for longer has to be asked for again, see `gaps.py`
_PACE_S: Final = 0.05  # a commit costs as much as booking some twenty entries
_TOKEN_KINDS: Final = {
    "input": "prompt_tokens",
    "input_cached": "cached_prompt_tokens",
    "output": "delivered_tokens",
    "generated": "generated_tokens",
}
_MONEY_KINDS: Final = {"price": "price_nusd", "use_cost": "use_cost_nusd", "energy_cost": "energy_cost_nusd"}


class Feed:
    """Reads and books, one shard or several.

    Attributes:
        elsewhere_events: that wait for other meters; who leads keeps count.

    Args:
        on_lost_books: called when another meter has taken over the books, so nothing can be booked any more.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        writing: WorkThreads,
        telemetry: Telemetry,
        clock: Clock,
        ears: Ears,
        on_lost_books: Callable[[BaseException], None],
    ) -> None:
        self._ears = ears
        self._bus = bus
        self._writing = writing
        self._telemetry = telemetry
        self._clock = clock
        self._on_lost_books = on_lost_books
        self._waiting: Counter[str] = Counter()
        self._next_s: dict[str, float] = {}
        self.elsewhere_events = 0
        self._gaps: dict[int, dict[Source, int]] = {}  # by shard
        self._gaps_changed_s = float("-inf")
        self._lost: dict[int, int] = {}
        meter = telemetry.meter
        # Up and down: what was billed while a request ran is taken back when less was delivered.
        self._tokens = meter.create_up_down_counter(names.BOOKED_TOKENS, "{token}", "Tokens booked")
        self._money = meter.create_up_down_counter(names.BOOKED_NUSD, "nUSD", "Nano-dollars booked")
        self._entries = meter.create_counter(names.BOOKED_ENTRIES, "{entry}", "Lines added to the ledger")
        self._duplicates = meter.create_counter(names.DUPLICATES, "{event}", "Events dropped: booked before")
        self._refused = meter.create_counter(names.REFUSED_ENTRIES, "{entry}", "Reports that could not be booked")
        meter.create_observable_gauge(names.METER_LAG, [self._observe_lag], "{event}", "Events not booked yet")
        meter.create_observable_gauge(
            names.MISSING_EVENTS, [self._observe_missing], "{event}", "Gaps in publishers' sequences"
        )

    @property
    def lag_events(self) -> int:
        """Events in the streams that are not booked yet, as far as the server told."""
        return self._waiting.total() + self.elsewhere_events

    @property
    def lately_missing(self) -> int:
        """Events that lack in publishers' sequences, and may still come."""
        fresh = self._clock.monotonic_s() < self._gaps_changed_s + _MAY_COME_S
        return self._missing() if fresh else 0

    @property
    def lost_events(self) -> int:
        """Events that never came and were given up, since the process started."""
        return sum(self._lost.values())

    async def run(self, bookkeeper: Bookkeeper, lessor: Lessor, after: Mapping[str, int]) -> None:
        """Consumes both streams for a shard until cancelled.

        Args:
            after: where a durable reader begins that is new.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, channels in READS:
                    durable = durable_of(name, bookkeeper.shard)
                    book = partial(self._book, bookkeeper, lessor, durable)
                    reading = self._bus.consume(
                        channels, durable, book, batch=_BATCH, after_sequence=after.get(durable, 0)
                    )
                    tasks.create_task(reading)
        finally:
            self._gaps.pop(bookkeeper.shard, None)
            for name, _ in READS:
                self._waiting.pop(durable_of(name, bookkeeper.shard), None)

    async def _book(self, bookkeeper: Bookkeeper, lessor: Lessor, durable: str, messages: Sequence[Delivered]) -> None:
        behind = messages[-1].pending
        self._waiting[durable] = len(messages) + behind
        await self._pace(durable, behind)
        exporting = self._telemetry.exporting
        started_unix_ns = self._clock.unix_ms() * 1_000_000
        spans = self._start_process_spans(durable, messages) if exporting else []
        try:
            booked = await self._writing.run(
                partial(bookkeeper.book, messages, self._clock.unix_ms(), traced=exporting, durable=durable)
            )
        except Exception as error:
            for span in spans:
                span.set_status(Status(StatusCode.ERROR, str(error)))
                span.set_attribute(names.ERROR_TYPE, type(error).__name__)
            if isinstance(error, InvariantBroken):
                self._on_lost_books(error)
            raise
        finally:
            for span in spans:
                span.end()
        self._waiting[durable] = behind
        lessor.tell(booked.reached, booked.written_off)
        self._ears.booked(booked)
        self._count(durable, booked)
        for each in booked.settled:
            self._trace_settled(each, started_unix_ns)
        self._report(bookkeeper.shard, booked)

    async def _pace(self, durable: str, behind: int) -> None:
        """Leaves `_PACE_S` between the batches of a reader that is not behind, so that small batches become one."""
        early_s = self._next_s.get(durable, 0.0) - self._clock.monotonic_s()
        if early_s > 0 and not behind:
            await asyncio.sleep(min(early_s, _PACE_S))
        self._next_s[durable] = self._clock.monotonic_s() + _PACE_S

    def _start_process_spans(self, durable: str, messages: Sequence[Delivered]) -> list[Span]:
        """One span for each channel that the batch has messages of."""
        by_channel: dict[str, list[Delivered]] = {}
        for message in messages:
            by_channel.setdefault(channel_of(message.event).template, []).append(message)
        return [
            self._telemetry.tracer.start_span(
                names.process_span(template),
                context=Context(),
                kind=SpanKind.CONSUMER,
                attributes={
                    names.MESSAGING_SYSTEM: "nats",
                    names.MESSAGING_OPERATION_NAME: "process",
                    names.MESSAGING_OPERATION_TYPE: "process",
                    names.MESSAGING_DESTINATION_TEMPLATE: template,
                    names.MESSAGING_CONSUMER_GROUP: durable,
                    names.MESSAGING_BATCH_COUNT: len(some),
                },
                links=links_to(message.traceparent for message in some),
            )
            for template, some in by_channel.items()
        ]

    def _trace_settled(self, settled: Settled, started_unix_ns: int) -> None:
        request, amounts = settled.request, settled.amounts
        request_id, tenant = request.key
        self._telemetry.tracer.start_span(
            names.settle_span(settled.channel.template),
            context=context_of(settled.traceparent),
            kind=SpanKind.CONSUMER,
            attributes={
                names.REQUEST_ID: request_id,
                names.TENANT: tenant,
                names.WORKLOAD: request.workload,
                names.SLO_CLASS: request.slo_class,
                names.GEN_AI_REQUEST_MODEL: request.model,
                names.GEN_AI_USAGE_INPUT_TOKENS: amounts.prompt_tokens,
                names.GEN_AI_USAGE_CACHED_TOKENS: amounts.cached_prompt_tokens,
                names.GEN_AI_USAGE_OUTPUT_TOKENS: amounts.delivered_tokens,
                names.PRICE_NUSD: amounts.price_nusd,
                names.USE_COST_NUSD: amounts.use_cost_nusd,
                names.ENERGY_COST_NUSD: amounts.energy_cost_nusd,
            },
            start_time=started_unix_ns,
        ).end()

    def _count(self, durable: str, booked: Booked) -> None:
        total = NOTHING
        for amounts in booked.usage.values():
            total = total.plus(amounts)
        for kind, field in _TOKEN_KINDS.items():
            self._tokens.add(getattr(total, field), {names.GEN_AI_TOKEN_TYPE: kind})
        for kind, field in _MONEY_KINDS.items():
            self._money.add(getattr(total, field), {names.AMOUNT: kind})
        self._entries.add(len(booked.entries))
        self._duplicates.add(booked.duplicates, {names.MESSAGING_CONSUMER_GROUP: durable})

    def _report(self, shard: int, booked: Booked) -> None:
        """Says in the log what is wrong with the events, once for each finding."""
        for who, request_id, reason in booked.refused:
            log.error("%s reported request %r wrongly: %s; the report is not booked", who, request_id, reason)
        self._refused.add(len(booked.refused))
        for finding in booked.findings:
            log.warning("%s", finding)
        gaps, lost = self._gaps.get(shard, {}), self._lost.get(shard, 0)
        if booked.lost > lost:
            log.error("%d events never came and are given up; %d in all", booked.lost - lost, booked.lost)
        for (publisher, epoch), missing in booked.missing.items():
            if gaps.get((publisher, epoch)) != missing:
                log.warning("publisher %s, epoch %s: %d events are missing so far", publisher, epoch, missing)
        if gaps != booked.missing:
            self._gaps_changed_s = self._clock.monotonic_s()
        self._gaps[shard], self._lost[shard] = dict(booked.missing), booked.lost

    def _missing(self) -> int:
        return sum(sum(each.values()) for each in self._gaps.values())

    def _observe_lag(self, _: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(events, {names.MESSAGING_CONSUMER_GROUP: durable}) for durable, events in self._waiting.items()
        ]

    def _observe_missing(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(self._missing() + self.lost_events)]
