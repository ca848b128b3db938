"""OpenAI's API over HTTP: `/v1/chat/completions`, `/v1/completions`, `/v1/models`. The edge beside `service.py`.

A stream is server-sent events, written as a worker's messages come (`http_sinks.py`). Its headers wait for the first
message, so that what a worker refuses still has its own status. A client that disconnects cancels its handler, and with
it the engine's work. Requests of keys made for it are sent on (307) to the worker that makes the tokens.
"""

import asyncio
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from services.mesh.clock import Clock
from services.mesh.errors import UnknownModel
from services.mesh.keys import KeyStore
from services.mesh.openai.answers import Answer, Kind, model_body
from services.mesh.openai.edge import PLACEMENT, body_of, guarded, told
from services.mesh.openai.requests import Wanted, parse_chat, parse_completion
from services.mesh.telemetry import TRACEPARENT, Telemetry, current_traceparent, fresh_traceparent, trace_id_of
from services.router.access import caller_of, tenant_of
from services.router.core.fleet import Fleet
from services.router.direct import Direct
from services.router.dispatch import Dispatcher
from services.router.http_sinks import Burst, EventSink, WholeSink
from services.router.relay import Relay
from services.router.service import describe, served_models
from tokenworks.v1 import inference_pb2 as wire

_MOST_SEED: Final = (1 << 64) - 1


class Gateway:
    """The routes; `routes()` goes to the HTTP server."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        direct: Direct,
        *,
        fleet: Fleet,
        keys: KeyStore,
        clock: Clock,
        telemetry: Telemetry,
        gather_s: float = 0.0,
    ) -> None:
        """`gather_s`: see `Burst`."""
        self._dispatcher = dispatcher
        self._direct = direct
        self._fleet = fleet
        self._keys = keys
        self._clock = clock
        self._telemetry = telemetry
        self._burst = Burst(gather_s)
        self._created = clock.unix_ms() // 1000

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", guarded(self._chat, self._telemetry)),
            web.post("/v1/completions", guarded(self._completion, self._telemetry)),
            web.get("/v1/models", guarded(self._models, self._telemetry)),
            web.get("/v1/models/{model:.+}", guarded(self._model, self._telemetry)),
        ]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, "chat", parse_chat)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, "text", parse_completion)

    async def _generate(self, request: web.Request, kind: Kind, parse: Callable[[bytes], Wanted]) -> web.StreamResponse:
        caller = caller_of(request.headers.get("Authorization", ""), self._keys)
        wanted = parse(await body_of(request))
        traceparent = current_traceparent() or fresh_traceparent()
        if (
            wanted.n == 1  # several answers come together here only
            and caller.direct_http
            and (there := await self._direct.place_http(wanted.request, caller, traceparent))
        ):
            return _sent_on(request, there, traceparent)
        relays: list[Relay] = []
        try:
            for index in range(wanted.n):
                asked = wanted.request if index == 0 else _another(wanted.request, relays[0].asked.request_id, index)
                relay = await self._dispatcher.admit(
                    asked, caller.tenant, traceparent, key=caller.name, team=caller.team
                )
                relays.append(relay)
            answer = Answer(
                kind,
                relays[0].asked.request_id,
                relays[0].asked.model,
                relays[0].admitted_unix_ms // 1000,
                include_usage=wanted.include_usage,
                answers=wanted.n,
            )
            send = self._stream if wanted.stream else self._whole
            return await send(request, relays, answer)
        finally:
            for relay in relays:
                self._dispatcher.close(relay)
            if relays:
                describe(relays[0])

    async def _stream(self, request: web.Request, relays: list[Relay], answer: Answer) -> web.StreamResponse:
        sinks = [EventSink(answer if index == 0 else answer.beside(index), self._burst) for index in range(len(relays))]
        for relay, sink in zip(relays, sinks, strict=True):
            relay.attach(sink)
        for sink in sinks:
            await sink.begun()
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **_told(relays[0])}
        )
        chunked = request.version >= HttpVersion11
        if chunked:
            response.enable_chunked_encoding()
        writer = await response.prepare(request)
        if writer is None or request.transport is None:
            raise ConnectionResetError("the client left before its answer began")
        for relay, sink in zip(relays, sinks, strict=True):
            sink.open(request.transport, chunked=chunked)
            relay.flush()
        if len(relays) == 1:  # needs no task of its own
            await _poured(relays[0], sinks[0], writer)
        else:
            await asyncio.gather(*(_poured(relay, sink, writer) for relay, sink in zip(relays, sinks, strict=True)))
        await response.write_eof()
        return response

    async def _whole(self, request: web.Request, relays: list[Relay], answer: Answer) -> web.StreamResponse:
        sinks, sent = [WholeSink() for _ in relays], False
        for relay, sink in zip(relays, sinks, strict=True):
            relay.attach(sink)
        try:
            body = answer.whole(*[await sink.all() for sink in sinks])
            response = web.Response(body=body, content_type="application/json", headers=_told(relays[0]))
            await response.prepare(request)
            await response.write_eof()
            sent = True
        finally:
            if not sent:
                for relay in relays:
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


def _sent_on(request: web.Request, there: wire.Placement, traceparent: str) -> web.Response:
    """To the same path of the placement's worker; the client sends its body there again."""
    query = urlencode({PLACEMENT: there.token, TRACEPARENT: traceparent})
    return web.Response(status=307, headers={"Location": f"{there.http_url}{request.path}?{query}"})


async def _poured(relay: Relay, sink: EventSink, writer: AbstractStreamWriter) -> None:
    """Until everything of one answer is written."""
    while await sink.held():
        await writer.drain()
        await asyncio.sleep(0)  # a turn for the others, should the connection be full again at once
        relay.flush()


def _another(request: wire.GenerateRequest, first_id: str, index: int) -> wire.GenerateRequest:
    """The request for another answer to the same call, under an id of its own; a seed draws another one."""
    another = wire.GenerateRequest()
    another.CopyFrom(request)
    another.request_id = f"{first_id}-{index}"
    if another.sampling.HasField("seed"):
        another.sampling.seed = (request.sampling.seed + index) & _MOST_SEED
    return another


def _told(relay: Relay) -> dict[str, str]:
    return told(relay.asked.request_id, trace_id_of(relay.traceparent), relay.worker.name)
