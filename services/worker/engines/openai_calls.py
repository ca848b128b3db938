"""What is posted to a server for a request: path and body.

In: a job, the kind of server, what it calls the model. Out: OpenAI's fields, and those beyond that its kind takes.
Where the server takes token ids, every prompt but one with tools is sent as ids: a chat with tools goes as it is, as
the server's template and its parser of calls belong together.
"""

import json
from typing import Any

from services.worker.engine import EngineRequest
from services.worker.engines.openai_kinds import ServerKind
from services.worker.engines.request_line import Job

Call = tuple[str, dict[str, Any]]


def ids_call(kind: ServerKind, served: str, job: Job) -> Call:
    """For a server with a tokenizer: a completion of token ids, or a chat where only that will do."""
    request = job.request
    if request.tools_json or (request.response_format_json and not kind.formats_completions):
        return _chat(kind, served, job)
    return _completion(kind, served, job, list(job.encoded.token_ids))


def text_call(kind: ServerKind, served: str, job: Job) -> Call:
    """For a server without one: a chat as it is, a text with what was made of it before a break."""
    prompt = job.request.prompt
    if prompt.chat is not None:
        return _chat(kind, served, job)
    if prompt.token_ids is not None:
        return _completion(kind, served, job, list(prompt.token_ids))
    return _completion(kind, served, job, (prompt.text or "") + job.request.resumed_text)


def _completion(kind: ServerKind, served: str, job: Job, prompt: str | list[int]) -> Call:
    request = job.request
    body = {"model": served, "prompt": prompt, "max_tokens": job.encoded.max_tokens, **_fields(kind, request)}
    if request.sampling.logprobs is not None:
        body["logprobs"] = request.sampling.logprobs
    return "/v1/completions", body


def _chat(kind: ServerKind, served: str, job: Job) -> Call:
    request = job.request
    body: dict[str, Any] = {
        "model": served,
        "messages": [message.as_openai() for message in request.prompt.chat or ()],
        "max_tokens": job.encoded.max_tokens,
        **_fields(kind, request),
    }
    if request.sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.sampling.logprobs}
    if request.tools_json:
        body["tools"] = json.loads(request.tools_json)
        if request.tool_choice_json:
            body["tool_choice"] = json.loads(request.tool_choice_json)
    return "/v1/chat/completions", body


def _fields(kind: ServerKind, request: EngineRequest) -> dict[str, Any]:
    """Those that say something; the rest is left out."""
    sampling = request.sampling
    usage = {"include_usage": True}
    if "continuous_usage_stats" in kind.fields:
        usage["continuous_usage_stats"] = True
    fields: dict[str, Any] = {
        "stream": True,
        "stream_options": usage,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.top_p < 1 or kind.whole_top_p else None,
        "seed": sampling.seed,
        "frequency_penalty": sampling.frequency_penalty or None,
        "presence_penalty": sampling.presence_penalty or None,
        "top_k": sampling.top_k or None,
        "ignore_eos": sampling.ignore_eos or None,
        "return_token_ids": True if "return_token_ids" in kind.fields else None,
        "response_format": kind.response_format(request.response_format_json) if request.response_format_json else None,
    }
    return {name: value for name, value in fields.items() if value is not None}
