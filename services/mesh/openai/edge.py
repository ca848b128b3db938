"""The HTTP edge of OpenAI's API, as every service that has one builds it: spans, errors in OpenAI's shape, bodies.

In: a handler. Out: the same under a span, whose errors are answers. What a client is told beside the answer stands in
headers: the request's id, its trace, and who served it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from opentelemetry.trace import SpanKind, Status, StatusCode, use_span

from services.mesh import conventions as names
from services.mesh.errors import (
    InvalidRequest,
    InvariantBroken,
    MessageTooLarge,
    RequestTimedOut,
    TokenworksError,
    face,
)
from services.mesh.openai.answers import error_body, retry_headers
from services.mesh.telemetry import TRACEPARENT, Telemetry, context_of

log = logging.getLogger(__name__)

PLACEMENT: Final = "placement"  # of the URL that a router sends a client on to
_BODY_S: Final = 60.0  # for a body to come; a client that is silent in the middle of it holds a connection
_REQUEST_ID: Final = "x-request-id"
_TRACE_ID: Final = "x-tokenworks-trace-id"
_WORKER: Final = "x-tokenworks-worker"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guarded(handler: Handler, telemetry: Telemetry) -> Handler:
    """The handler under a span, its errors as OpenAI's.

    The span is a child of the caller's; of a client that was sent on and traces nothing itself, of the router's, which
    its URL names.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        route = request.match_info.route.resource
        name = f"{request.method} {route.canonical if route else request.path}"
        parent = request.headers.get(TRACEPARENT) or request.query.get(TRACEPARENT, "")
        span = telemetry.tracer.start_span(name, context_of(parent), SpanKind.SERVER)
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                return await handler(request)
            except TokenworksError as error:
                span.set_attribute(names.ERROR_TYPE, error.reason)
                span.set_status(Status(StatusCode.ERROR, str(error)))
                return refusal(error)
            except (web.HTTPException, OSError):  # aiohttp's own answers, and clients that went away
                raise
            except Exception:
                log.exception("a defect in %s", name)
                return refusal(InvariantBroken("an internal error; the service's log has the details"))

    return handle


def refusal(error: TokenworksError) -> web.Response:
    """An error as the whole answer, with the time to come back where waiting helps."""
    return web.json_response(error_body(error), status=face(error).http, headers=retry_headers(error))


async def body_of(request: web.Request) -> bytes:
    """A request's body.

    Raises:
        MessageTooLarge: it is longer than `mesh.max_message_bytes`.
        InvalidRequest: it is not compressed, or not framed, as its headers say.
        RequestTimedOut: it has not come within `_BODY_S`.
    """
    try:
        async with asyncio.timeout(_BODY_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise MessageTooLarge(f"{error.text}; send less, or raise mesh.max_message_bytes") from None
    except web.RequestPayloadError as error:
        raise InvalidRequest(f"the body can't be read: {' '.join(str(error).split())}") from None
    except TimeoutError:
        raise RequestTimedOut(f"the body has not come within {_BODY_S:g} s; send it at once") from None


def told(request_id: str, trace_id: str, worker: str) -> dict[str, str]:
    """Headers of an answer."""
    return {_REQUEST_ID: request_id, _TRACE_ID: trace_id, _WORKER: worker}
