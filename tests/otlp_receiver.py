"""A real OTLP/gRPC receiver for tests: what services export arrives here and is kept as plain values.

It serves from threads of its own, so that a service which flushes its spans in the test's event loop is answered.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span; ids in hexadecimal, `parent` empty for a root, `links` as (trace id, span id)."""

    service: str
    instance: str
    name: str
    trace: str
    span: str
    parent: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, object] = field(hash=False)


def _plain(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, object]:
    return {pair.key: _plain(pair.value) for pair in pairs}


class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens on 127.0.0.1; `start` binds a free port."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._spans: list[ReceivedSpan] = []
        self._server = grpc.server(ThreadPoolExecutor(4, thread_name_prefix="otlp"))
        self.port = 0

    def start(self) -> None:
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait()

    def exporter(self) -> OTLPSpanExporter:
        """What a service's Telemetry exports with to get here."""
        return OTLPSpanExporter(endpoint=f"http://127.0.0.1:{self.port}", insecure=True, timeout=5)

    @property
    def spans(self) -> list[ReceivedSpan]:
        """What has arrived so far."""
        with self._changed:
            return list(self._spans)

    async def wait_for(self, holds: Callable[[list[ReceivedSpan]], bool], timeout_s: float) -> bool:
        """Waits until `holds` is true of what has arrived; False when it is not after `timeout_s` seconds."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: holds(self._spans), timeout_s)

        return await asyncio.to_thread(wait)

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        arrived = []
        for resource_spans in request.resource_spans:
            resource = _attributes(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                arrived += [
                    ReceivedSpan(
                        service=str(resource.get("service.name", "")),
                        instance=str(resource.get("service.instance.id", "")),
                        name=span.name,
                        trace=span.trace_id.hex(),
                        span=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                        attributes=_attributes(span.attributes),
                    )
                    for span in scope_spans.spans
                ]
        with self._changed:
            self._spans += arrived
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()
