"""OpenTelemetry for one service: a tracer and a meter, made once at the wiring place and passed on.

Spans leave by OTLP/gRPC when the standard variables name an endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT` or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`); else the tracer is the API's no-op, which still passes a caller's context on.
Metrics are always readable as OpenMetrics (`/metrics`), and leave by OTLP where `OTEL_METRICS_EXPORTER=otlp`.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import Link, Span, SpanContext, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from services.mesh.histograms import Histograms, RecordingExportingReader, RecordingPrometheusReader

TRACEPARENT: Final = "traceparent"
# As nearly all are; what else the standard allows is the propagator's to judge.
_PLAIN: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_IDS: Final = Random()  # seeded by the system; ids have to be distinct, not secret


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a service measures with. `exporting` is False when no span leaves the process.

    `histograms` are for what is recorded with every request, `meter` for the rest.
    """

    tracer: Tracer
    meter: Meter
    histograms: Histograms
    registry: CollectorRegistry
    exporting: bool
    _parents_decide: bool
    _tracer_provider: TracerProvider | None
    _meter_provider: MeterProvider

    def records(self, traceparent: str) -> bool:
        """Whether a span under this parent may be recorded. Where not, making one is in vain: what it would pass on is
        the parent's own context."""
        if not self.exporting:
            return False
        if not self._parents_decide:
            return True
        plain = _PLAIN.fullmatch(traceparent)
        return plain is None or int(traceparent[-2:], 16) & 1 == 1

    def exposition(self) -> bytes:
        """All metrics as they stand, as OpenMetrics."""
        text: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]  # has no annotations
        return text

    def shutdown(self) -> None:
        """Sends what is buffered, at most a few seconds, then stops."""
        if self._tracer_provider is not None:
            self._tracer_provider.force_flush(3000)
            self._tracer_provider.shutdown()
        self._meter_provider.shutdown(3000)


def traces_endpoint() -> str:
    """Where the standard variables send spans; empty where they name nothing."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next((endpoint for name in names if (endpoint := os.environ.get(name))), "")


def _otlp_span_exporter(otherwise: str) -> SpanExporter | None:
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    named = traces_endpoint()
    if not named and not otherwise:
        return None
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    # What the standard variables name is the exporter's to read, with its certificates and headers.
    return OTLPSpanExporter() if named else OTLPSpanExporter(otherwise, insecure=not otherwise.startswith("https://"))


def start_telemetry(
    service: str, instance: str, *, exporter: SpanExporter | None = None, otherwise: str = ""
) -> Telemetry:
    """Telemetry of `service` (`router`, `worker`, …) under `service.instance.id` = `instance`.

    Args:
        exporter: where spans go instead of the OTLP endpoint of the environment.
        otherwise: the OTLP endpoint (`http://host:port`) where the environment names none; empty: then none leave.
    """
    resource = Resource.create(
        {"service.name": service, "service.namespace": "tokenworks", "service.instance.id": instance}
    )
    registry = CollectorRegistry()
    histograms = Histograms(resource)
    readers: list[RecordingPrometheusReader | RecordingExportingReader] = [RecordingPrometheusReader(registry=registry)]
    if os.environ.get("OTEL_METRICS_EXPORTER") == "otlp":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        readers.append(RecordingExportingReader(OTLPMetricExporter()))
    for reader in readers:
        reader.histograms = histograms
    meter_provider = MeterProvider(readers, resource)
    exporter = exporter or _otlp_span_exporter(otherwise)
    tracer_provider = None
    tracer: Tracer = trace.NoOpTracer()
    if exporter is not None:
        tracer_provider = TracerProvider(resource=resource)
        tracer_provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
        tracer = tracer_provider.get_tracer("tokenworks")
    return Telemetry(
        tracer=tracer,
        meter=meter_provider.get_meter("tokenworks"),
        histograms=histograms,
        registry=registry,
        exporting=exporter is not None,
        # As it is unless the standard variables say otherwise: what a caller does not sample is not sampled here.
        _parents_decide=tracer_provider is not None and isinstance(tracer_provider.sampler, ParentBased),
        _tracer_provider=tracer_provider,
        _meter_provider=meter_provider,
    )


def traceparent_of(span: Span) -> str:
    """The W3C `traceparent` of a span; empty when its context is not valid."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def current_traceparent() -> str:
    """The `traceparent` of the span this task runs under; empty when there is none."""
    return traceparent_of(trace.get_current_span())


def context_of(traceparent: str) -> Context:
    """An OpenTelemetry context whose parent is `traceparent`; an empty context when it is empty or malformed."""
    return _PROPAGATOR.extract({TRACEPARENT: traceparent}, Context()) if traceparent else Context()


def span_context_of(traceparent: str) -> SpanContext:
    """The span context that `traceparent` names; not valid when it is empty or malformed."""
    return trace.get_current_span(context_of(traceparent)).get_span_context()


def links_to(traceparents: Iterable[str]) -> Sequence[Link]:
    """Span links, one per distinct valid traceparent, in order."""
    contexts = (span_context_of(each) for each in dict.fromkeys(traceparents))
    return [Link(context) for context in contexts if context.is_valid]


def trace_id_of(traceparent: str) -> str:
    """The 32 hexadecimal digits of the trace; empty when `traceparent` is empty or malformed."""
    plain = _PLAIN.fullmatch(traceparent)
    if plain is not None:
        return plain[1]
    context = span_context_of(traceparent)
    return f"{context.trace_id:032x}" if context.is_valid else ""


def continued(traceparent: str) -> str:
    """The caller's context; a fresh one where it sent none, or none that is valid."""
    if not traceparent:
        return fresh_traceparent()
    if _PLAIN.fullmatch(traceparent) is not None:
        return traceparent
    context = span_context_of(traceparent)
    if not context.is_valid:
        return fresh_traceparent()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def fresh_traceparent() -> str:
    """A context of its own, not sampled: gives a request a trace id where nobody upstream made one."""
    random = _IDS.getrandbits(192) | 1 << 64 | 1  # neither id may be zero
    return f"00-{random >> 64:032x}-{random & 0xFFFF_FFFF_FFFF_FFFF:016x}-00"
