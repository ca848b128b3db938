"""The command line's own spans: one CLIENT span per request, where the standard `OTEL_*` variables name an endpoint."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Tracer

from services.mesh.telemetry import start_telemetry


@contextmanager
def client_tracer() -> Iterator[Tracer]:
    """A tracer of service `client`; what it recorded has left, or had a few seconds to, when the context ends."""
    telemetry = start_telemetry("client", "cli")
    try:
        yield telemetry.tracer
    finally:
        telemetry.shutdown()
