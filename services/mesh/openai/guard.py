"""What stands around every OpenAI route of a fast HTTP server: its span, and its errors in OpenAI's shape."""

import logging
from typing import Final

from opentelemetry.trace import SpanKind, Status, StatusCode, use_span

from services.mesh import conventions as names
from services.mesh.errors import InvariantBroken, TokenworksError
from services.mesh.fast_http import Check, Handler, HttpRoute
from services.mesh.http_call import HttpCall, fields_of
from services.mesh.openai.answers import refusal_of
from services.mesh.telemetry import TRACEPARENT, Telemetry, context_of, continued, fresh_traceparent, traceparent_of

log = logging.getLogger(__name__)

_TRACEPARENT: Final = TRACEPARENT.encode()
_DEFECT: Final = "an internal error; the service's log has the details"


def guarded_route(
    method: str, path: str, handler: Handler, telemetry: Telemetry, check: Check | None = None
) -> HttpRoute:
    """The route, its handler under a span that is a child of the caller's. A call whose span nobody would record costs
    none."""
    name = f"{method} {path}"

    async def handle(call: HttpCall) -> None:
        parent = call.header(_TRACEPARENT)
        if not telemetry.records(parent):
            call.traceparent = continued(parent)
            try:
                await handler(call)
            except TokenworksError as error:
                call.answer(*refusal_of(error))
            except Exception:
                _defect(call, name)
            return
        span = telemetry.tracer.start_span(name, context_of(parent), SpanKind.SERVER)
        call.traceparent = traceparent_of(span) or fresh_traceparent()
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                await handler(call)
            except TokenworksError as error:
                span.set_attribute(names.ERROR_TYPE, error.reason)
                span.set_status(Status(StatusCode.ERROR, str(error)))
                call.answer(*refusal_of(error))
            except Exception:
                _defect(call, name)

    return HttpRoute(method, path, handle, check)


def _defect(call: HttpCall, name: str) -> None:
    log.exception("a defect in %s", name)
    call.answer(*refusal_of(InvariantBroken(_DEFECT)))


def told(request_id: str, trace_id: str, worker: str) -> bytes:
    """Headers of an answer, as `edge.told` has them."""
    return fields_of(
        (("x-request-id", request_id), ("x-tokenworks-trace-id", trace_id), ("x-tokenworks-worker", worker))
    )
