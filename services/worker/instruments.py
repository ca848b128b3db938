"""What a worker measures: GenAI server metrics per request, the hardware's watts and joules, one span per request.

In: requests as they begin and end. Out: OpenTelemetry, under the names of `mesh/conventions.py`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from services.mesh import conventions as names
from services.mesh.errors import TokenworksError
from services.mesh.events import RequestLatency
from services.mesh.telemetry import Telemetry, context_of
from services.worker.engine import EngineStats
from services.worker.hardware.power_meter import PowerMeter
from services.worker.identity import Identity
from services.worker.requests import Order

_OPERATION: Final = "chat"  # as in WORKER_SPAN


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request ended; `outcome` is a member of `events.Outcome`."""

    outcome: str
    latency: RequestLatency
    duration_s: float
    error: TokenworksError | None = None


class Instruments:
    """A worker's spans and metrics."""

    def __init__(self, identity: Identity, telemetry: Telemetry) -> None:
        self._identity = identity
        self._telemetry = telemetry
        meter = telemetry.meter
        self._ttft = meter.create_histogram(
            names.SERVER_TTFT,
            "s",
            "From a request's arrival at the worker to its first token",
            explicit_bucket_boundaries_advisory=list(names.TTFT_BUCKETS_S),
        )
        self._tpot = meter.create_histogram(
            names.SERVER_TPOT,
            "s",
            "Mean seconds per token after the first",
            explicit_bucket_boundaries_advisory=list(names.TPOT_BUCKETS_S),
        )
        self._duration = meter.create_histogram(
            names.SERVER_DURATION,
            "s",
            "From a request's arrival at the worker to its end",
            explicit_bucket_boundaries_advisory=list(names.DURATION_BUCKETS_S),
        )
        self._usage = meter.create_histogram(names.CLIENT_TOKEN_USAGE, "{token}", "Tokens per request, by type")

    def watch_hardware(self, power: PowerMeter) -> None:
        """Publishes the worker's watts, utilisation and joules from here on."""
        labels = {names.WORKER: self._identity.worker, names.ACCELERATOR: self._identity.accelerator.key}

        def watts(_: CallbackOptions) -> Iterable[Observation]:
            figures = power.figures()
            return (Observation(figures.power_w, {**labels, names.TOLD_BY: figures.power_source}),)

        def busy(_: CallbackOptions) -> Iterable[Observation]:
            figures = power.figures()
            return (Observation(figures.utilisation, {**labels, names.TOLD_BY: figures.utilisation_source}),)

        def joules(_: CallbackOptions) -> Iterable[Observation]:
            return (Observation(power.figures().energy_uj / 1e6, labels),)

        self._telemetry.meter.create_observable_gauge(names.HW_POWER, [watts], "W", "Power drawn")
        self._telemetry.meter.create_observable_gauge(names.UTILISATION, [busy], "1", "Utilisation, 0 to 1")
        self._telemetry.meter.create_observable_counter(names.HW_ENERGY, [joules], "J", "Energy drawn, idling included")

    def watch_honesty(self, stats: Callable[[], EngineStats]) -> None:
        """Publishes from here on how often a server told what cannot be."""
        labels = {names.WORKER: self._identity.worker}

        def complaints(_: CallbackOptions) -> Iterable[Observation]:
            return (Observation(stats().complaints, labels),)

        self._telemetry.meter.create_observable_counter(
            names.COMPLAINTS, [complaints], "{answer}", "Answers of which a server told what cannot be"
        )

    def begin(self, order: Order) -> Span | None:
        """The request's span, a child of the router's; None while no span is exported."""
        if not self._telemetry.exporting:
            return None
        request, who = order.engine, self._identity
        attributes: dict[str, AttributeValue] = {
            names.GEN_AI_OPERATION: _OPERATION,
            names.GEN_AI_PROVIDER: names.PROVIDER,
            names.GEN_AI_REQUEST_MODEL: request.model,
            names.GEN_AI_REQUEST_MAX_TOKENS: request.sampling.max_tokens,
            names.GEN_AI_REQUEST_TEMPERATURE: request.sampling.temperature,
            names.GEN_AI_REQUEST_TOP_P: request.sampling.top_p,
            names.GEN_AI_RESPONSE_ID: request.request_id,
            names.REQUEST_ID: request.request_id,
            names.TENANT: order.tenant,
            names.WORKLOAD: order.workload,
            names.SLO_CLASS: order.slo_class,
            names.PLAN: order.plan,
            names.WORKER: who.worker,
            names.POOL: who.pool,
            names.ACCELERATOR: who.accelerator.key,
        }
        if request.sampling.seed is not None:
            # OpenTelemetry's integers are signed, seeds are not.
            attributes[names.GEN_AI_REQUEST_SEED] = request.sampling.seed & ((1 << 63) - 1)
        return self._telemetry.tracer.start_span(
            names.WORKER_SPAN.format(model=request.model), context_of(order.traceparent), SpanKind.SERVER, attributes
        )

    def end(self, order: Order, span: Span | None, ended: Ended) -> None:
        """Measures a request that has ended, and ends its span."""
        labels: dict[str, AttributeValue] = {
            names.GEN_AI_OPERATION: _OPERATION,
            names.GEN_AI_PROVIDER: names.PROVIDER,
            names.GEN_AI_REQUEST_MODEL: order.engine.model,
        }
        latency = ended.latency
        if latency.completion_tokens:
            self._ttft.record(latency.ttft_s, labels)
            self._usage.record(latency.prompt_tokens, {**labels, names.GEN_AI_TOKEN_TYPE: "input"})
            self._usage.record(latency.completion_tokens, {**labels, names.GEN_AI_TOKEN_TYPE: "output"})
        if latency.completion_tokens > 1:
            self._tpot.record(latency.tpot_s, labels)
        if ended.error is not None:
            labels[names.ERROR_TYPE] = ended.error.reason
        self._duration.record(ended.duration_s, labels)
        if span is not None:
            _end_span(span, ended)


def _end_span(span: Span, ended: Ended) -> None:
    latency = ended.latency
    span.set_attributes(
        {
            names.GEN_AI_RESPONSE_FINISH_REASONS: (ended.outcome,),
            names.GEN_AI_USAGE_INPUT_TOKENS: latency.prompt_tokens,
            names.GEN_AI_USAGE_OUTPUT_TOKENS: latency.completion_tokens,
            names.GEN_AI_USAGE_CACHED_TOKENS: latency.cached_prompt_tokens,
            names.ENGINE_QUEUE_S: latency.queue_s,
            names.ENGINE_TTFT_S: latency.ttft_s,
            names.ENGINE_TPOT_S: latency.tpot_s,
        }
    )
    if ended.error is not None:
        span.set_attribute(names.ERROR_TYPE, ended.error.reason)
        span.set_status(Status(StatusCode.ERROR, str(ended.error)))
    span.end()
