"""OpenAI's request bodies, as HTTP clients send them, to GenerateRequests.

Every field of the two bodies is accounted for: understood, without effect here, or refused by name. What no engine here
can do (tools, structured output, log probabilities, several answers) is refused rather than left out of the answer.
Beside OpenAI's fields a body may carry ours: slo_class, workload, session_id, request_id, top_k, ignore_eos.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from services.mesh.errors import InvalidRequest, InvalidSampling, Unsupported
from tokenworks.v1 import inference_pb2 as wire

# Without effect on the tokens made here, whatever their value.
_IGNORED: Final = frozenset({
    "user", "metadata", "store", "safety_identifier", "prompt_cache_retention", "parallel_tool_calls",
})  # fmt: skip
# Accepted only at the values that ask for nothing.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "suffix": ("",),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "service_tier": ("auto", "default"),
}
_ROLES: Final = {"developer": "system"}  # others as they are
_MOST_UINT32: Final = (1 << 32) - 1
_MOST_UINT64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request, and how its answer is to be sent."""

    request: wire.GenerateRequest
    stream: bool
    include_usage: bool


def parse_chat(body: bytes) -> Wanted:
    """The body of `/v1/chat/completions`.

    Raises:
        InvalidRequest, InvalidSampling, Unsupported: names the field, its value and what would do.
    """
    fields = _Fields(body)
    request = wire.GenerateRequest()
    messages = fields.take("messages", list, "a list of messages") or []
    request.chat.SetInParent()
    for index, message in enumerate(messages):
        request.chat.messages.append(_message(index, message))
    return _finish(fields, request)


def parse_completion(body: bytes) -> Wanted:
    """The body of `/v1/completions`. Raises as `parse_chat` does."""
    fields = _Fields(body)
    request = wire.GenerateRequest()
    prompt = fields.values.pop("prompt", None)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, list) and all(_is_whole(each, _MOST_UINT32) for each in prompt):
        request.token_ids.ids.extend(prompt)
        request.token_ids.SetInParent()
    elif isinstance(prompt, list) and all(isinstance(each, str | list) for each in prompt):
        raise Unsupported(f"prompt has {len(prompt)} prompts; send each in a request of its own")
    elif prompt is not None:
        raise InvalidRequest(f"prompt = {_shown(prompt)}, must be a string or a list of token ids")
    return _finish(fields, request)


class _Fields:
    """The fields of a body; what is taken is gone, what is left at the end is unknown."""

    def __init__(self, body: bytes) -> None:
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the body is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise InvalidRequest("the body is not a JSON object")
        # In OpenAI's API a null is a field that was not sent.
        self.values: dict[str, Any] = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str, kind: type, what: str) -> Any:
        """The field's value, None when it was not sent."""
        value = self.values.pop(name, None)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise InvalidRequest(f"{name} = {_shown(value)}, must be {what}")
        return value

    def take_text(self, name: str) -> str:
        return self.take(name, str, "a string") or ""

    def take_flag(self, name: str) -> bool:
        return bool(self.take(name, bool, "true or false"))

    def take_number(self, name: str, put: Callable[[float], None]) -> None:
        value = self.values.pop(name, None)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidSampling(f"{name} = {_shown(value)}, must be a number")
        try:
            put(float(value))
        except OverflowError:
            raise InvalidSampling(f"{name} = {_shown(value)}, is out of range") from None

    def take_whole(self, name: str, most: int) -> int | None:
        value = self.values.pop(name, None)
        if value is None:
            return None
        if not _is_whole(value, most):
            raise InvalidSampling(f"{name} = {_shown(value)}, must be a whole number from 0 to {most}")
        return int(value)

    def refuse_what_is_left(self) -> None:
        for name, value in self.values.items():
            if name in _IGNORED or (name in _NEUTRAL and any(value == each for each in _NEUTRAL[name])):
                continue
            if name in _NEUTRAL:
                raise Unsupported(f"{name} = {_shown(value)} is supported by no engine here; leave it out")
            raise InvalidRequest(f"{name} is not a field of this request; leave it out")


def _finish(fields: _Fields, request: wire.GenerateRequest) -> Wanted:
    request.model = fields.take_text("model")
    request.slo_class = fields.take_text("slo_class")
    request.workload = fields.take_text("workload")
    cache_key = fields.take_text("prompt_cache_key")
    request.session_id = fields.take_text("session_id") or cache_key
    request.request_id = fields.take_text("request_id")
    _sampling(fields, request.sampling)
    stream = fields.take_flag("stream")
    options = fields.take("stream_options", dict, "an object") or {}
    if options and not stream:
        raise InvalidRequest("stream_options are for streams; set stream, or leave them out")
    fields.refuse_what_is_left()
    return Wanted(request, stream, bool(options.get("include_usage")))


def _sampling(fields: _Fields, sampling: wire.Sampling) -> None:
    def setter(name: str) -> Callable[[float], None]:
        return lambda value: setattr(sampling, name, value)

    for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty"):
        fields.take_number(name, setter(name))
    for name, into, most in (
        ("max_tokens", "max_tokens", _MOST_UINT32),
        ("max_completion_tokens", "max_tokens", _MOST_UINT32),  # the newer name wins
        ("top_k", "top_k", _MOST_UINT32),
        ("seed", "seed", _MOST_UINT64),
    ):
        if (whole := fields.take_whole(name, most)) is not None:
            setattr(sampling, into, whole)
    sampling.ignore_eos = fields.take_flag("ignore_eos")
    stop = fields.values.pop("stop", None)
    if isinstance(stop, str):
        stop = [stop]
    if stop is not None:
        if not isinstance(stop, list) or not all(isinstance(each, str) for each in stop):
            raise InvalidSampling(f"stop = {_shown(stop)}, must be a string or a list of strings")
        sampling.stop.extend(stop)


def _message(index: int, message: Any) -> wire.ChatMessage:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} = {_shown(message)}, must be an object with a role and a content")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise Unsupported(f"{where}.{name} is supported by no engine here; leave it out")
    role = message.get("role")
    if not isinstance(role, str):
        raise InvalidRequest(f"{where}.role = {_shown(role)}, must be a string")
    return wire.ChatMessage(role=_ROLES.get(role, role), content=_content(where, message.get("content")))


def _content(where: str, content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}.content = {_shown(content)}, must be a string or a list of parts")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise Unsupported(f"{where}.content[{index}] is of type {_shown(kind)}; engines here take text only")
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{where}.content[{index}].text = {_shown(part.get('text'))}, must be a string")
        texts.append(part["text"])
    return "".join(texts)


def _is_whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _shown(value: Any) -> str:
    """A value for an error message, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
