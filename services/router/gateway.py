"""OpenAI's API over HTTP: `/v1/chat/completions`, `/v1/completions`, `/v1/models`. The edge beside `service.py`.

A stream is server-sent events, written as a worker's messages come (`http_sinks.py`). Its headers wait for the first
message, so that what a worker refuses still has its own status. A client that disconnects cancels its handler, and with
it the engine's work.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import HttpVersion11, web
from opentelemetry.trace import SpanKind, Status, StatusCode, use_span

from services.mesh import conventions as names
from services.mesh.clock import Clock
from services.mesh.errors import InvariantBroken, MessageTooLarge, TokenworksError, UnknownModel, face
from services.mesh.keys import KeyStore
from services.mesh.openai.answers import Answer, Kind, error_body, model_body
from services.mesh.openai.requests import Wanted, parse_chat, parse_completion
from services.mesh.telemetry import (
    TRACEPARENT,
    Telemetry,
    context_of,
    current_traceparent,
    fresh_traceparent,
    trace_id_of,
)
from services.router.access import tenant_of
from services.router.core.fleet import Fleet
from services.router.dispatch import Dispatcher
from services.router.http_sinks import EventSink, WholeSink
from services.router.relay import Relay
from services.router.service import TRACE_ID, WORKER, describe, served_models

log = logging.getLogger(__name__)

REQUEST_ID: Final = "x-request-id"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """The routes; `routes()` goes to the HTTP server."""

    def __init__(
        self, dispatcher: Dispatcher, fleet: Fleet, keys: KeyStore, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._dispatcher = dispatcher
        self._fleet = fleet
        self._keys = keys
        self._clock = clock
        self._telemetry = telemetry
        self._created = clock.unix_ms() // 1000

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self._guarded(self._chat)),
            web.post("/v1/completions", self._guarded(self._completion)),
            web.get("/v1/models", self._guarded(self._models)),
            web.get("/v1/models/{model:.+}", self._guarded(self._model)),
        ]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, "chat", parse_chat)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, "text", parse_completion)

    async def _generate(self, request: web.Request, kind: Kind, parse: Callable[[bytes], Wanted]) -> web.StreamResponse:
        tenant = self._tenant(request)
        try:
            wanted = parse(await request.read())
        except web.HTTPRequestEntityTooLarge as error:
            limit = f"{error.text}; send less, or raise mesh.max_message_bytes"
            raise MessageTooLarge(limit) from None
        traceparent = current_traceparent() or fresh_traceparent()
        relay = self._dispatcher.admit(wanted.request, tenant, traceparent)
        try:
            answer = Answer(
                kind,
                relay.asked.request_id,
                relay.asked.model,
                relay.admitted_unix_ms // 1000,
                include_usage=wanted.include_usage,
            )
            send = self._stream if wanted.stream else self._whole
            return await send(request, relay, answer)
        finally:
            self._dispatcher.close(relay)
            describe(relay)

    async def _stream(self, request: web.Request, relay: Relay, answer: Answer) -> web.StreamResponse:
        sink = EventSink(answer)
        relay.attach(sink)
        await sink.begun()
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **_told(relay)}
        )
        chunked = request.version >= HttpVersion11
        if chunked:
            response.enable_chunked_encoding()
        writer = await response.prepare(request)
        if writer is None or request.transport is None:
            raise ConnectionResetError("the client left before its answer began")
        sink.open(request.transport, chunked=chunked)
        relay.flush()
        while await sink.held():
            await writer.drain()
            await asyncio.sleep(0)  # a turn for the others, should the connection be full again at once
            relay.flush()
        await response.write_eof()
        return response

    async def _whole(self, request: web.Request, relay: Relay, answer: Answer) -> web.StreamResponse:
        sink, sent = WholeSink(), False
        relay.attach(sink)
        try:
            messages = await sink.all()
            response = web.Response(body=answer.whole(messages), content_type="application/json", headers=_told(relay))
            await response.prepare(request)
            await response.write_eof()
            sent = True
        finally:
            if not sent:
                relay.recall()
        return response

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self._tenant(request)
        served = served_models(self._fleet, self._clock.monotonic_s())
        return web.json_response({"object": "list", "data": [model_body(each, self._created) for each in served]})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        self._tenant(request)
        name = request.match_info["model"]
        for each in served_models(self._fleet, self._clock.monotonic_s()):
            if each.name == name:
                return web.json_response(model_body(each, self._created))
        raise UnknownModel(f"model {name!r} is not served at present")

    def _tenant(self, request: web.Request) -> str:
        return tenant_of(request.headers.get("Authorization", ""), self._keys)

    def _guarded(self, handler: Handler) -> Handler:
        """The handler under a span, its errors as OpenAI's."""

        async def handle(request: web.Request) -> web.StreamResponse:
            route = request.match_info.route.resource
            name = f"{request.method} {route.canonical if route else request.path}"
            span = self._telemetry.tracer.start_span(
                name, context_of(request.headers.get(TRACEPARENT, "")), SpanKind.SERVER
            )
            with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
                try:
                    return await handler(request)
                except TokenworksError as error:
                    span.set_attribute(names.ERROR_TYPE, error.reason)
                    span.set_status(Status(StatusCode.ERROR, str(error)))
                    return _refusal(error)
                except (web.HTTPException, OSError):  # aiohttp's own answers, and clients that went away
                    raise
                except Exception:
                    log.exception("a defect in %s", name)
                    return _refusal(InvariantBroken("an internal error; the router's log has the details"))

        return handle


def _told(relay: Relay) -> dict[str, str]:
    return {
        REQUEST_ID: relay.asked.request_id,
        TRACE_ID: trace_id_of(relay.traceparent),
        WORKER: relay.worker.name,
    }


def _refusal(error: TokenworksError) -> web.Response:
    headers = {}
    if error.retry_after_s is not None:
        headers = {
            "Retry-After": str(math.ceil(error.retry_after_s)),
            "Retry-After-Ms": str(round(error.retry_after_s * 1000)),
        }
    return web.json_response(error_body(error), status=face(error).http, headers=headers)
