"""What a request asks for, in vLLM's words; and what cannot be asked for. vLLM itself is not imported.

In: `EngineRequest`s. Out: the fields of `SamplingParams` and `StructuredOutputsParams`, or the error that says why not.
"""

import json
from typing import Any, Final

from services.mesh.errors import InvalidRequest, ResumeRefused, Unsupported
from services.worker.engine import EngineRequest
from services.worker.engines.prompts import EncodedRequest, PromptEncoder

_SEED_BITS: Final = 63  # of the 64 of a request: vLLM's seeds are signed
_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15  # spreads small numbers over 64 bits


async def encode(encoder: PromptEncoder, request: EngineRequest) -> EncodedRequest:
    """What `PromptEncoder.encode` makes, of a request that vLLM can serve.

    Raises:
        ResumeRefused, InvalidRequest, Unsupported: it cannot; and what the encoder raises.
    """
    check_resume(request)
    structured_fields(request.response_format_json)
    return await encoder.encode(request)


def check_resume(request: EngineRequest) -> None:
    """Raises ResumeRefused: what makes the next token depends on what was made before in a way that vLLM loses."""
    if request.resume_from == 0:
        return
    sampling = request.sampling
    lost = [
        name
        for name, set_ in (
            ("frequency_penalty", sampling.frequency_penalty != 0),
            ("presence_penalty", sampling.presence_penalty != 0),
            ("response_format", bool(request.response_format_json)),
        )
        if set_
    ]
    if lost:
        raise ResumeRefused(
            f"request {request.request_id} cannot go on at token {request.resume_from}: {', '.join(lost)} would not "
            "know of the tokens before it; ask for the whole answer again"
        )


def sampling_fields(request: EngineRequest, max_tokens: int) -> dict[str, Any]:
    """Fields of `SamplingParams`, but for how outputs come and `structured_outputs`.

    Stop strings are left out: the reader of the outputs looks for them.
    """
    sampling = request.sampling
    return {
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": None if sampling.seed is None else _seed(sampling.seed, request.resume_from),
        "ignore_eos": sampling.ignore_eos,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logprobs": sampling.logprobs,
        "skip_special_tokens": True,
    }


def _seed(seed: int, resume_from: int) -> int:
    """Another draw after a resume, so that the first draws are not repeated."""
    return (seed ^ (seed >> _SEED_BITS) ^ (resume_from * _GOLDEN)) & ((1 << _SEED_BITS) - 1)


def structured_fields(response_format_json: str) -> dict[str, Any]:
    """Fields of `StructuredOutputsParams` for OpenAI's `response_format`; empty for free text.

    Raises:
        InvalidRequest: it is not what OpenAI's API defines.
        Unsupported: a type that this engine does not know.
    """
    if not response_format_json:
        return {}
    try:
        asked = json.loads(response_format_json)
        kind = asked["type"]
        if kind == "json_schema":
            return {"json": asked["json_schema"]["schema"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(
            "response_format is not OpenAI's; send {'type': 'json_object'}, or {'type': 'json_schema', 'json_schema': "
            "{'name': …, 'schema': …}}"
        ) from error
    if kind == "json_object":
        return {"json_object": True}
    if kind == "text":
        return {}
    raise Unsupported(f"response_format of type {kind!r} is not known; use text, json_object or json_schema")
