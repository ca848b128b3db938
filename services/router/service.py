"""`tokenworks.v1.Router` on gRPC: the edge between callers and the dispatcher.

`Generate` passes a worker's bytes on as they come and when they come: no token is parsed again, nobody is woken for it.
"""

import asyncio
from typing import Any, Final

import grpc
from opentelemetry.trace import get_current_span

from services.mesh import conventions as names
from services.mesh.access import caller_of
from services.mesh.clock import Clock
from services.mesh.errors import TokenworksError, UnknownRequest
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.grpc_call import ServerCall
from services.mesh.keys import KeyRecord, KeyStore
from services.mesh.rpc import metadata_value
from services.mesh.telemetry import current_traceparent, fresh_traceparent
from services.router.core.fleet import Fleet
from services.router.core.records import DecisionRecord
from services.router.direct import Direct
from services.router.dispatch import Dispatcher
from services.router.others import ASKED_BY, Others
from services.router.relay import Relay
from tokenworks.v1 import inference_pb2 as wire

SERVICE: Final = "tokenworks.v1.Router"
TRACE_ID: Final = "x-tokenworks-trace-id"
WORKER: Final = "x-tokenworks-worker"


class RouterService:
    """The four methods; `register` puts them on a server."""

    def __init__(
        self, dispatcher: Dispatcher, direct: Direct, others: Others, *, fleet: Fleet, keys: KeyStore, clock: Clock
    ) -> None:
        self._dispatcher = dispatcher
        self._direct = direct
        self._others = others
        self._fleet = fleet
        self._keys = keys
        self._clock = clock

    def register(self, server: FastGrpcServer) -> None:
        server.add_generic(
            SERVICE,
            {
                "Generate": grpc.unary_stream_rpc_method_handler(
                    self.generate, wire.GenerateRequest.FromString, response_serializer=None
                ),
                "Place": _unary(self.place, wire.GenerateRequest, wire.Placement),
                "Explain": _unary(self.explain, wire.ExplainRequest, wire.Explanation),
                "ListModels": _unary(self.list_models, wire.ListModelsRequest, wire.ListModelsResponse),
            },
        )

    async def generate(self, request: wire.GenerateRequest, context: ServerCall) -> None:
        caller = self._caller(context)
        traceparent = current_traceparent() or fresh_traceparent()
        self._direct.superseded(request.request_id, caller.tenant)
        relay = await self._dispatcher.admit(
            request,
            caller.tenant,
            traceparent,
            key=caller.name,
            team=caller.team,
            within=caller.confines,
            time_left_s=context.time_remaining(),
        )
        try:
            trace_id = relay.record.trace_id
            context.open(((TRACE_ID, trace_id), (WORKER, relay.worker.name)), with_next=True)
            sink = _CallSink(context, relay)
            relay.attach(sink)
            await sink.wait()
            context.set_trailing_metadata(((TRACE_ID, trace_id), (WORKER, relay.worker.name)))
        finally:
            self._dispatcher.close(relay)
            describe(relay)

    async def place(self, request: wire.GenerateRequest, context: ServerCall) -> wire.Placement:
        caller = self._caller(context)
        traceparent = current_traceparent() or fresh_traceparent()
        return await self._direct.place(
            request,
            caller.tenant,
            traceparent,
            key=caller.name,
            team=caller.team,
            time_left_s=request.deadline_ms / 1000 or None,
            within=caller.confines,
        )

    async def explain(self, request: wire.ExplainRequest, context: ServerCall) -> wire.Explanation:
        tenant = self._tenant(context)
        record = self._dispatcher.records.of(request.request_id, tenant)
        if record is not None:
            return explanation_of(record)
        if not metadata_value(context, ASKED_BY):
            found = await self._others.explain(request, metadata_value(context, "authorization"))
            if found is not None:
                return found
        raise UnknownRequest(
            f"request {request.request_id!r} of tenant {tenant!r} is not among the recent ones of this router or of"
            f" the {len(self._others.addresses())} others"
        )

    async def list_models(self, request: wire.ListModelsRequest, context: ServerCall) -> wire.ListModelsResponse:
        self._tenant(context)
        return wire.ListModelsResponse(models=served_models(self._fleet, self._clock.monotonic_s()))

    def _caller(self, context: ServerCall) -> KeyRecord:
        return caller_of(metadata_value(context, "authorization"), self._keys)

    def _tenant(self, context: ServerCall) -> str:
        return self._caller(context).tenant


class _CallSink:
    """A client's side on gRPC: the worker's bytes, as they are."""

    def __init__(self, call: ServerCall, relay: Relay) -> None:
        self._call = call
        self._relay = relay
        self._end: asyncio.Future[TokenworksError | None] = asyncio.get_running_loop().create_future()

    def message(self, data: bytes) -> bool:
        if self._call.push(data):
            return True
        self._call.tell_of_room(self._relay.flush)
        return False

    def ended(self, error: TokenworksError | None) -> None:
        if not self._end.done():  # else its client is gone
            self._end.set_result(error)

    async def wait(self) -> None:
        """Until all was sent. Raises what the stream ended with."""
        if (error := await self._end) is not None:
            raise error


def _unary(behaviour: Any, request: Any, response: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(behaviour, request.FromString, response.SerializeToString)


def describe(relay: Relay) -> None:
    """Writes what became of a request on the span it was served under."""
    span = get_current_span()
    if not span.is_recording():
        return
    asked = relay.asked
    span.set_attributes(
        {
            names.GEN_AI_OPERATION: "chat",
            names.GEN_AI_PROVIDER: names.PROVIDER,
            names.GEN_AI_REQUEST_MODEL: asked.model,
            names.GEN_AI_RESPONSE_ID: asked.request_id,
            names.GEN_AI_RESPONSE_FINISH_REASONS: [relay.outcome],
            names.GEN_AI_USAGE_INPUT_TOKENS: relay.usage.prompt_tokens,
            names.GEN_AI_USAGE_CACHED_TOKENS: relay.usage.cached_prompt_tokens,
            names.GEN_AI_USAGE_OUTPUT_TOKENS: relay.delivered_tokens,
            names.REQUEST_ID: asked.request_id,
            names.TENANT: asked.tenant,
            names.WORKLOAD: asked.workload,
            names.SLO_CLASS: asked.slo_class,
            names.WORKER: relay.worker.name,
            names.POOL: relay.worker.pool,
            names.ACCELERATOR: relay.worker.beat.accelerator,
            names.PLAN: relay.record.plan,
            names.PRICE_NUSD: relay.usage.price_nusd,
        }
    )


def explanation_of(record: DecisionRecord) -> wire.Explanation:
    """A decision record as the wire says it."""
    every = (record.shortlist.candidate(place) for place in range(len(record.shortlist)))
    return wire.Explanation(
        request_id=record.asked.request_id,
        tenant=record.asked.tenant,
        model=record.asked.model,
        slo_class=record.asked.slo_class,
        workload=record.asked.workload,
        prompt_tokens=record.prompt_tokens,
        expected_completion_tokens=record.completion_tokens,
        picked_worker=record.picked_worker,
        plan=record.plan,
        plan_age_s=record.plan_age_s,
        candidates=[
            wire.Candidate(
                worker=each.worker,
                pool=each.pool,
                accelerator=each.accelerator,
                feasible=not each.rejected_because,
                rejected_because=each.rejected_because,
                score_usd=each.score_usd,
                use_usd=each.use_usd,
                energy_usd=each.energy_usd,
                shadow_usd=each.shadow_usd,
                slo_risk_usd=each.slo_risk_usd,
                prefix_saving_usd=each.prefix_saving_usd,
                predicted_queue_s=each.queue_s,
                predicted_ttft_s=each.ttft_s,
                predicted_tpot_s=each.tpot_s,
                miss_probability=each.miss_probability,
                expected_cached_tokens=each.cached_tokens,
            )
            for each in every
        ],
        trace_id=record.trace_id,
        decided_unix_ms=record.decided_unix_ms,
        decision_us=record.decision_us,
        outcome=record.outcome,
        waited_s=record.waited_s,
        median_completion=_quantile(record, 0.5),
        p90_completion=_quantile(record, 0.9),
        known_answers=record.lengths.answers if record.lengths is not None else 0.0,
    )


def _quantile(record: DecisionRecord, part: float) -> wire.LengthQuantile | None:
    if record.lengths is None:
        return None
    quantile = record.lengths.quantile(part)
    return wire.LengthQuantile(tokens=quantile.tokens, least=quantile.least, most=quantile.most)


def served_models(fleet: Fleet, now_s: float) -> list[wire.Model]:
    """The models that at least one worker takes requests for, by name."""
    models = []
    for name, table in sorted(fleet.models.items()):
        beats = [
            each.worker.beat
            for each in table.serving
            if not each.worker.closed_because and not fleet.lost(each.worker, now_s)
        ]
        if beats:
            models.append(
                wire.Model(
                    name=name,
                    context_tokens=max(beat.context_tokens for beat in beats),
                    accelerators=sorted({beat.accelerator for beat in beats}),
                    workers=len(beats),
                    simulated=all(beat.simulated for beat in beats),
                )
            )
    return models
