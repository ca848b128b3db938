"""OpenAI's API over HTTP: `/v1/chat/completions`, `/v1/completions`, `/v1/models`. The edge beside `service.py`.

A stream is server-sent events, written as a worker's messages come (`http_sinks.py`). A client that disconnects cancels
its handler, and with it the engine's work. Requests of keys made for it are sent on (307) to the worker that makes the
tokens.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Final
from urllib.parse import urlencode

from services.mesh.access import caller_of
from services.mesh.clock import Clock
from services.mesh.errors import UnknownModel
from services.mesh.fast_http import HttpRoute, rest_of
from services.mesh.http_call import JSON, TEXT, HttpCall, fields_of
from services.mesh.keys import KeyRecord, KeyStore
from services.mesh.openai.answers import Answer, Kind, model_body
from services.mesh.openai.edge import PLACEMENT
from services.mesh.openai.guard import guarded_route, told
from services.mesh.openai.requests import Wanted, parse_chat, parse_completion
from services.mesh.telemetry import TRACEPARENT, Telemetry
from services.router.core.fleet import Fleet
from services.router.direct import Direct
from services.router.dispatch import Dispatcher
from services.router.http_sinks import EventSink, EventStream, WholeSink
from services.router.relay import Relay
from services.router.service import describe, served_models
from tokenworks.v1 import inference_pb2 as wire

_MODEL: Final = "/v1/models/{model}"
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
        max_body_bytes: int,
    ) -> None:
        """`max_body_bytes`: of a request, inflated."""
        self._dispatcher = dispatcher
        self._direct = direct
        self._fleet = fleet
        self._keys = keys
        self._clock = clock
        self._telemetry = telemetry
        self._max_body_bytes = max_body_bytes
        self._created = clock.unix_ms() // 1000

    def routes(self) -> list[HttpRoute]:
        telemetry = self._telemetry
        return [
            guarded_route("POST", "/v1/chat/completions", self._chat, telemetry, self._check),
            guarded_route("POST", "/v1/completions", self._completion, telemetry, self._check),
            guarded_route("GET", "/v1/models", self._models, telemetry),
            guarded_route("GET", _MODEL, self._model, telemetry),
        ]

    async def _chat(self, call: HttpCall) -> None:
        await self._generate(call, "chat", parse_chat)

    async def _completion(self, call: HttpCall) -> None:
        await self._generate(call, "text", parse_completion)

    async def _generate(self, call: HttpCall, kind: Kind, parse: Callable[[bytes], Wanted]) -> None:
        caller = self._caller(call)
        wanted = parse(call.inflated(self._max_body_bytes))
        traceparent = call.traceparent
        if (
            wanted.n == 1  # several answers come together here only
            and caller.direct_http
            and (there := await self._direct.place_http(wanted.request, caller, traceparent))
        ):
            _send_on(call, there)
            return
        relays: list[Relay] = []
        try:
            for index in range(wanted.n):
                asked = wanted.request if index == 0 else _another(wanted.request, relays[0].asked.request_id, index)
                relay = await self._dispatcher.admit(
                    asked,
                    caller.tenant,
                    traceparent,
                    key=caller.name,
                    team=caller.team,
                    within=caller.confines,
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
            send = _stream if wanted.stream else _whole
            await send(call, relays, answer)
        finally:
            for relay in relays:
                self._dispatcher.close(relay)
            if relays:
                describe(relays[0])

    async def _models(self, call: HttpCall) -> None:
        self._caller(call)
        served = served_models(self._fleet, self._clock.monotonic_s())
        models = {"object": "list", "data": [model_body(each, self._created) for each in served]}
        call.answer(200, JSON, json.dumps(models).encode())

    async def _model(self, call: HttpCall) -> None:
        self._caller(call)
        name = rest_of(call, _MODEL)
        for each in served_models(self._fleet, self._clock.monotonic_s()):
            if each.name == name:
                call.answer(200, JSON, json.dumps(model_body(each, self._created)).encode())
                return
        raise UnknownModel(f"model {name!r} is not served at present")

    def _check(self, call: HttpCall) -> None:
        self._caller(call)

    def _caller(self, call: HttpCall) -> KeyRecord:
        if isinstance(call.caller, KeyRecord):  # it was asked before the body came
            return call.caller
        call.caller = caller = caller_of(call.header(b"authorization"), self._keys)
        return caller


async def _stream(call: HttpCall, relays: list[Relay], answer: Answer) -> None:
    events = EventStream(call, partial(_told, relays[0]), len(relays))
    for index, relay in enumerate(relays):
        relay.attach(EventSink(answer if index == 0 else answer.beside(index), events, relay.flush))
    await events.complete()


async def _whole(call: HttpCall, relays: list[Relay], answer: Answer) -> None:
    sinks = [WholeSink() for _ in relays]
    for relay, sink in zip(relays, sinks, strict=True):
        relay.attach(sink)
    try:
        call.answer(200, JSON, answer.whole(*[await sink.all() for sink in sinks]), _told(relays[0]))
    finally:
        if not call.begun:
            for relay in relays:
                relay.recall()


def _send_on(call: HttpCall, there: wire.Placement) -> None:
    """To the same path of the placement's worker; the client sends its body there again."""
    query = urlencode({PLACEMENT: there.token, TRACEPARENT: call.traceparent})
    location = f"{there.http_url}{call.path.decode('ascii')}?{query}"
    call.answer(307, TEXT, b"307: Temporary Redirect\n", fields_of((("Location", location),)))


def _another(request: wire.GenerateRequest, first_id: str, index: int) -> wire.GenerateRequest:
    """The request for another answer to the same call, under an id of its own; a seed draws another one."""
    another = wire.GenerateRequest()
    another.CopyFrom(request)
    another.request_id = f"{first_id}-{index}"
    if another.sampling.HasField("seed"):
        another.sampling.seed = (request.sampling.seed + index) & _MOST_SEED
    return another


def _told(relay: Relay) -> bytes:
    return told(relay.asked.request_id, relay.record.trace_id, relay.worker.name)
