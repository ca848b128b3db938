"""The command line's own spans: one CLIENT span per request. They go where the standard `OTEL_*` variables say, else to
where the mesh's own go, so that the explorer shows a request from its start.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Tracer

from services.mesh.telemetry import start_telemetry


@contextmanager
def client_tracer(mesh_endpoint: str) -> Iterator[Tracer]:
    """A tracer of service `client`; what it recorded has left, or had a few seconds to, when the context ends.

    Args:
        mesh_endpoint: the OTLP endpoint of the mesh's services; empty where their spans go nowhere.
    """
    telemetry = start_telemetry("client", "cli", otherwise=mesh_endpoint)
    try:
        yield telemetry.tracer
    finally:
        telemetry.shutdown()
