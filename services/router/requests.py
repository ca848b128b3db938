"""From the wire to plain values: what the cores need to know of a GenerateRequest."""

from dataclasses import fields
from typing import Final

from services.mesh.confines import ANYWHERE, Confines
from services.mesh.features import features_needed
from services.mesh.prefix_chain import chain_of_chat, chain_of_text, chain_of_token_ids
from services.router.core.request import Asked, PromptFacts, PromptKind, SamplingValues
from tokenworks.v1 import inference_pb2 as wire

_PLAIN: Final = frozenset(field.name for field in fields(SamplingValues)) - {"stop"}


def asked_of(
    request: wire.GenerateRequest, tenant: str, *, key: str = "", team: str = "", confines: Confines = ANYWHERE
) -> Asked:
    """The request in plain values; its `request_id` and `slo_class` must be filled."""
    sampling, tools = request.sampling, request.tools_json
    logprobs, response_format = sampling.HasField("logprobs"), request.response_format_json
    return Asked(
        request_id=request.request_id,
        tenant=tenant,
        model=request.model,
        slo_class=request.slo_class,
        workload=request.workload,
        session_id=request.session_id,
        prompt=_prompt(request, tenant),
        sampling=_sampling(sampling),
        resume_from=request.resume_from,
        # Nearly none needs any.
        features=features_needed(logprobs=logprobs, response_format=bool(response_format), tools=bool(tools))
        if logprobs or response_format or tools
        else (),
        key=key,
        team=team,
        confines=confines,
    )


def _prompt(request: wire.GenerateRequest, tenant: str) -> PromptFacts:
    match request.WhichOneof("prompt"):
        case "text":
            chain = chain_of_text(tenant, request.model, request.text)
            return PromptFacts(kind=PromptKind.TEXT, size=len(request.text), chain=chain)
        case "token_ids":
            ids = request.token_ids.ids
            chain = chain_of_token_ids(tenant, request.model, ids)
            return PromptFacts(kind=PromptKind.TOKEN_IDS, size=len(ids), chain=chain)
        case "chat":
            messages = request.chat.messages
            seen = [(m.role, m.content, m.tool_calls_json, m.tool_call_id, m.name) for m in messages]
            return PromptFacts(
                kind=PromptKind.CHAT,
                size=sum(len(each.content) for each in messages),
                roles=tuple(each.role for each in messages),
                chain=chain_of_chat(tenant, request.model, seen, request.tools_json),
            )
    return PromptFacts(kind=None, size=0)


def _sampling(sampling: wire.Sampling) -> SamplingValues:
    values = SamplingValues()
    for field, value in sampling.ListFields():  # what was sent: asking for each that may be takes longer
        if (name := field.name) in _PLAIN:
            setattr(values, name, value)
    values.stop = tuple(sampling.stop)
    return values
