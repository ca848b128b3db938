"""The worker's own OpenAI endpoint: `/v1/chat/completions` and `/v1/completions` for clients that a router sent here.

In: what the client had sent the router, again, with the placement in the URL (`?placement=…`). Out: OpenAI's answers. A
client that disconnects cancels its handler, and with it the engine's work.
"""

from collections.abc import Callable

from aiohttp import web

from services.mesh.errors import TokenworksError, Unsupported
from services.mesh.openai.answers import Answer, Kind, error_event
from services.mesh.openai.edge import PLACEMENT, body_of, guarded, told
from services.mesh.openai.requests import Wanted, parse_chat, parse_completion
from services.mesh.telemetry import Telemetry, current_traceparent, fresh_traceparent, trace_id_of
from services.worker.deliveries import Deliveries
from services.worker.delivery import Delivery
from services.worker.identity import Identity
from tokenworks.v1 import inference_pb2 as pb


class Gateway:
    """The routes; `routes()` goes to the HTTP server."""

    def __init__(self, identity: Identity, deliveries: Deliveries, telemetry: Telemetry) -> None:
        self._identity = identity
        self._deliveries = deliveries
        self._telemetry = telemetry

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", guarded(self._chat, self._telemetry)),
            web.post("/v1/completions", guarded(self._completion, self._telemetry)),
        ]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, "chat", parse_chat)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, "text", parse_completion)

    async def _generate(self, request: web.Request, kind: Kind, parse: Callable[[bytes], Wanted]) -> web.StreamResponse:
        wanted = parse(await body_of(request))
        if wanted.n > 1:
            raise Unsupported(f"n = {wanted.n}: a placement is for one answer; ask the router for several")
        traceparent = current_traceparent() or fresh_traceparent()
        delivery = await self._deliveries.open(request.query.get(PLACEMENT, ""), wanted.request, traceparent)
        try:
            claims = delivery.claims
            answer = Answer(
                kind,
                claims.request_id,
                claims.model,
                claims.admitted_unix_ms // 1000,
                include_usage=wanted.include_usage,
            )
            send = self._stream if wanted.stream else self._whole
            return await send(request, delivery, answer)
        finally:
            self._deliveries.close(delivery)

    async def _stream(self, request: web.Request, delivery: Delivery, answer: Answer) -> web.StreamResponse:
        # The headers wait for the first message, so that what the engine refuses still has its own status.
        message = await delivery.take()
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **self._told(delivery)}
        )
        await response.prepare(request)
        try:
            while message is not None:
                await response.write(answer.events(message))
                self._deliveries.delivered(delivery, message)
                message = await delivery.take()
        except TokenworksError as error:
            await response.write(error_event(error))
        await response.write_eof()
        return response

    async def _whole(self, request: web.Request, delivery: Delivery, answer: Answer) -> web.StreamResponse:
        messages, sent = [], False
        try:
            while (message := await delivery.take()) is not None:
                # Its times are those at which the answer grew here; whether it reaches the client shows at the end.
                self._deliveries.delivered(delivery, message)
                kept = pb.GenerateResponse()
                kept.CopyFrom(message)
                messages.append(kept)
            body = answer.whole(messages)
            response = web.Response(body=body, content_type="application/json", headers=self._told(delivery))
            await response.prepare(request)
            await response.write_eof()
            sent = True
        finally:
            if not sent:
                delivery.recall()
        return response

    def _told(self, delivery: Delivery) -> dict[str, str]:
        return told(delivery.claims.request_id, trace_id_of(delivery.traceparent), self._identity.worker)
