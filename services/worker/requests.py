"""From the wire to the engine: what a router or a client asks for, checked value by value.

In: an `OpenStream`, or a `GenerateRequest` with the claims of its placement. Out: an `Order`. Everything a caller may
have got wrong raises one of the errors below, naming the field, the value and what would do; what only the engine can
know (does the prompt fit?) it says itself.
"""

import json
from dataclasses import dataclass
from math import isfinite
from typing import Final

from services.mesh.errors import DeadlinePassed, InvalidRequest, InvalidSampling, Unsupported
from services.mesh.events import Funding, Hold
from services.mesh.placement import PlacementClaims
from services.worker.engine import ChatMessage, EngineRequest, Prompt, Sampling
from services.worker.funding import Funded
from tokenworks.v1 import inference_pb2 as pb

_MAX_STOPS: Final = 16
_MOST_LOGPROBS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request as this worker serves it.

    Attributes:
        traceparent: W3C context that the request's span becomes a child of.
        plan: model:version of the plan that sent it here; empty when there was none.
        funded: what is held for it; None where no budget bounds it.
        time_left_s: of its caller's deadline, when it came; None where there is none.
    """

    tenant: str
    workload: str
    session_id: str
    slo_class: str
    traceparent: str
    plan: str
    engine: EngineRequest
    funded: Funded | None = None
    time_left_s: float | None = None


def relayed(opened: pb.OpenStream, sequence: int, context_tokens: int) -> Order:
    """The order of a router's `OpenStream`; see `_engine_request` for what it raises."""
    request = opened.request
    return Order(
        tenant=opened.tenant,
        workload=request.workload,
        session_id=request.session_id,
        slo_class=request.slo_class,
        traceparent=opened.traceparent,
        plan=opened.plan,
        engine=_engine_request(
            request,
            sequence,
            context_tokens,
            tenant=opened.tenant,
            priority=opened.priority,
            resumed_token_ids=tuple(opened.resumed_token_ids.ids),
            resumed_text=opened.resumed_text,
            resumed_tokenizer=opened.resumed_tokenizer,
        ),
        funded=funded_of(opened.funds) if opened.HasField("funds") else None,
        time_left_s=opened.deadline_ms / 1000 or None,
    )


def funded_of(funds: pb.Funds) -> Funded:
    """What a router says is held for a stream."""
    funding = [
        Funding(
            funder=each.funder,
            holds=tuple(
                [
                    Hold(budget=hold.budget, subject=hold.subject, window=hold.window, amount=hold.amount)
                    for hold in each.holds
                ]
            ),
        )
        for each in funds.funding
    ]
    return Funded(funds.prompt_tokens, funds.completion_tokens, tuple(funding))


def direct(
    request: pb.GenerateRequest,
    claims: PlacementClaims,
    traceparent: str,
    sequence: int,
    context_tokens: int,
    *,
    time_left_s: float | None = None,
) -> Order:
    """The order of a client that holds a placement: who it is and what it may do come from the claims.

    Args:
        time_left_s: as the claims say it; its call's own deadline is the client's to choose.

    Raises:
        InvalidRequest: the request is not the one that was placed.
        DeadlinePassed: there is no time left for it.
    """
    if time_left_s is not None and time_left_s <= 0:
        raise DeadlinePassed(f"the deadline of request {claims.request_id!r} passed before it came here; allow it more")
    if request.request_id not in {"", claims.request_id}:
        raise InvalidRequest(f"request_id {request.request_id!r} was not placed; send {claims.request_id!r} or none")
    if request.model not in {"", claims.model}:
        raise InvalidRequest(f"model {request.model!r} was not placed; send {claims.model!r} or none")
    if request.resume_from != claims.resume_from:
        raise InvalidRequest(f"resume_from {request.resume_from} was not placed; send {claims.resume_from}")
    placed = pb.GenerateRequest()
    placed.CopyFrom(request)
    placed.request_id, placed.model = claims.request_id, claims.model
    return Order(
        tenant=claims.tenant,
        workload=claims.workload,
        session_id=request.session_id,
        slo_class=claims.slo_class,
        traceparent=traceparent,
        plan=claims.plan,
        engine=_engine_request(
            placed,
            sequence,
            min(context_tokens, max(1, claims.funded_tokens)),
            tenant=claims.tenant,
            priority=claims.priority,
            resumed_token_ids=tuple(request.resumed_token_ids.ids),
            resumed_text=request.resumed_text,
            resumed_tokenizer=request.resumed_tokenizer,
        ),
        funded=None
        if claims.funds is None
        else Funded(claims.funds.prompt_tokens, claims.funds.completion_tokens, claims.funds.funding),
        time_left_s=time_left_s,
    )


def _engine_request(
    request: pb.GenerateRequest,
    sequence: int,
    most_tokens: int,
    *,
    tenant: str,
    priority: int = 0,
    resumed_token_ids: tuple[int, ...] = (),
    resumed_text: str = "",
    resumed_tokenizer: str = "",
) -> EngineRequest:
    """Raises InvalidRequest, InvalidSampling, Unsupported: what the request says cannot be done by any engine."""
    if not request.request_id:
        raise InvalidRequest("request_id is empty; the router fills it")
    return EngineRequest(
        sequence=sequence,
        request_id=request.request_id,
        model=request.model,
        prompt=_prompt(request),
        sampling=sampling(request.sampling, most_tokens),
        tenant=tenant,
        priority=priority,
        resume_from=request.resume_from,
        resumed_token_ids=resumed_token_ids,
        resumed_text=resumed_text,
        resumed_tokenizer=resumed_tokenizer,
        **_guidance(request),
    )


def _prompt(request: pb.GenerateRequest) -> Prompt:
    form = request.WhichOneof("prompt")
    if form == "text":
        if not request.text:
            raise InvalidRequest("the prompt's text is empty; send at least one character")
        return Prompt(text=request.text)
    if form == "token_ids":
        if not request.token_ids.ids:
            raise InvalidRequest("the prompt has no token ids; send at least one")
        return Prompt(token_ids=tuple(request.token_ids.ids))
    if form == "chat":
        messages = tuple(
            ChatMessage(each.role, each.content, each.tool_calls_json, each.tool_call_id, each.name)
            for each in request.chat.messages
        )
        if not messages or not all(each.role for each in messages):
            raise InvalidRequest("a chat needs at least one message, and every message a role")
        return Prompt(chat=messages)
    raise InvalidRequest("the request has no prompt; set text, token_ids or chat")


def sampling(asked: pb.Sampling, most_tokens: int) -> Sampling:
    """Sampling values within their ranges; `max_tokens` at most `most_tokens`, and that where it is unset.

    Raises:
        InvalidSampling: a value out of its range.
        Unsupported: n > 1.
    """
    if asked.HasField("max_tokens") and asked.max_tokens < 1:
        raise InvalidSampling("max_tokens is 0; it must be at least 1")
    if asked.n > 1:
        raise Unsupported(f"n is {asked.n}; one answer per request is made, so send {asked.n} requests")
    if len(asked.stop) > _MAX_STOPS or not all(asked.stop):
        raise InvalidSampling(f"stop has {len(asked.stop)} strings; at most {_MAX_STOPS} may be given, none empty")
    return Sampling(
        max_tokens=min(asked.max_tokens, most_tokens) if asked.HasField("max_tokens") else most_tokens,
        temperature=_within("temperature", asked.temperature if asked.HasField("temperature") else 1.0, 0.0, 2.0),
        top_p=_top_p(asked.top_p if asked.HasField("top_p") else 1.0),
        top_k=asked.top_k,
        seed=asked.seed if asked.HasField("seed") else None,
        stop=tuple(asked.stop),
        ignore_eos=asked.ignore_eos,
        frequency_penalty=_within("frequency_penalty", asked.frequency_penalty, -2.0, 2.0),
        presence_penalty=_within("presence_penalty", asked.presence_penalty, -2.0, 2.0),
        logprobs=_logprobs(asked),
    )


def _logprobs(asked: pb.Sampling) -> int | None:
    if not asked.HasField("logprobs"):
        return None
    if asked.logprobs > _MOST_LOGPROBS:
        raise InvalidSampling(f"logprobs is {asked.logprobs}; at most {_MOST_LOGPROBS} alternatives may be asked for")
    return asked.logprobs


def _guidance(request: pb.GenerateRequest) -> dict[str, str]:
    """The fields that shape the answer, checked to be what engines can parse."""
    guidance = {
        name: str(getattr(request, name)) for name in ("response_format_json", "tools_json", "tool_choice_json")
    }
    for name, value in guidance.items():
        if value:
            _check_json(name, value, list if name == "tools_json" else dict if name == "response_format_json" else None)
    if request.tools_json and request.WhichOneof("prompt") != "chat":
        raise InvalidRequest("tools are for chats; send messages")
    if request.sampling.ignore_eos and (request.tools_json or request.response_format_json):
        raise Unsupported("ignore_eos goes with neither tools nor a response_format: their answers have an end")
    return guidance


def _check_json(name: str, value: str, kind: type | None) -> None:
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not JSON: {error}") from None
    if kind is not None and not isinstance(parsed, kind):
        raise InvalidRequest(f"{name} = {value[:60]}, must be a JSON {'list' if kind is list else 'object'}")


def _within(name: str, value: float, least: float, most: float) -> float:
    if not (isfinite(value) and least <= value <= most):
        raise InvalidSampling(f"{name} is {value}; it must be from {least:g} to {most:g}")
    return value


def _top_p(value: float) -> float:
    if not (isfinite(value) and 0.0 < value <= 1.0):
        raise InvalidSampling(f"top_p is {value}; it must be above 0 and at most 1")
    return value
