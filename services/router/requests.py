"""From the wire to plain values: what the cores need to know of a GenerateRequest."""

from services.mesh.confines import ANYWHERE, Confines
from services.mesh.features import features_needed
from services.mesh.prefix_chain import chain_of_chat, chain_of_text, chain_of_token_ids
from services.router.core.request import Asked, PromptFacts, PromptKind, SamplingValues
from tokenworks.v1 import inference_pb2 as wire


def asked_of(
    request: wire.GenerateRequest, tenant: str, *, key: str = "", team: str = "", confines: Confines = ANYWHERE
) -> Asked:
    """The request in plain values; its `request_id` and `slo_class` must be filled."""
    return Asked(
        request_id=request.request_id,
        tenant=tenant,
        model=request.model,
        slo_class=request.slo_class,
        workload=request.workload,
        session_id=request.session_id,
        prompt=_prompt(request, tenant),
        sampling=_sampling(request.sampling),
        resume_from=request.resume_from,
        features=features_needed(
            logprobs=request.sampling.HasField("logprobs"),
            response_format=bool(request.response_format_json),
            tools=bool(request.tools_json),
        ),
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
    return SamplingValues(
        max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else None,
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        frequency_penalty=sampling.frequency_penalty if sampling.HasField("frequency_penalty") else None,
        presence_penalty=sampling.presence_penalty if sampling.HasField("presence_penalty") else None,
        stop=tuple(sampling.stop),
        ignore_eos=sampling.ignore_eos,
        n=sampling.n,
    )
