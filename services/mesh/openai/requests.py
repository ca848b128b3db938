"""OpenAI's request bodies, as HTTP clients send them, to GenerateRequests.

Every field of the two bodies is accounted for: understood, without effect here, or refused by name. What only some
engines can do (tools, a response format, log probabilities) goes with the request, to one that can.
Beside OpenAI's fields a body may carry ours: slo_class, workload, session_id, request_id, top_k, ignore_eos.
"""

import json
from codecs import BOM_UTF8
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
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "service_tier": ("auto", "default"),
}
_ROLES: Final = {"developer": "system"}  # others as they are
_MOST_ANSWERS: Final = 16
_MOST_UINT32: Final = (1 << 32) - 1
_MOST_UINT64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request, and how its answer is to be sent.

    Attributes:
        n: how many answers; the request is for one.
    """

    request: wire.GenerateRequest
    stream: bool
    include_usage: bool
    n: int = 1


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
    _tools(fields, request)
    alternatives = fields.take_whole("top_logprobs", _MOST_UINT32)
    if fields.take_flag("logprobs"):
        request.sampling.logprobs = alternatives or 0
    elif alternatives:
        raise InvalidRequest(f"top_logprobs = {alternatives}, is for log probabilities; set logprobs, or leave it out")
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
    if fields.values.get("logprobs") is False:  # what the chat's field says for none
        del fields.values["logprobs"]
    if (alternatives := fields.take_whole("logprobs", _MOST_UINT32)) is not None:
        request.sampling.logprobs = alternatives
    return _finish(fields, request)


class _Fields:
    """The fields of a body; what is taken is gone, what is left at the end is unknown."""

    def __init__(self, body: bytes) -> None:
        try:
            text = body.removeprefix(BOM_UTF8).decode()
            values = json.loads(text)
            if "\\ud" in text or "\\uD" in text:
                json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except UnicodeError as error:
            raise InvalidRequest(f"the body is not Unicode: {error}; send UTF-8") from None
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
    shape = fields.take("response_format", dict, "an object")
    if shape and shape != {"type": "text"}:
        request.response_format_json = json.dumps(shape)
    n = fields.take_whole("n", _MOST_UINT32)
    if n is not None and not 1 <= n <= _MOST_ANSWERS:
        raise InvalidSampling(f"n = {n}, must be from 1 to {_MOST_ANSWERS}")
    stream = fields.take_flag("stream")
    options = fields.take("stream_options", dict, "an object") or {}
    if options and not stream:
        raise InvalidRequest("stream_options are for streams; set stream, or leave them out")
    fields.refuse_what_is_left()
    return Wanted(request, stream, bool(options.get("include_usage")), n or 1)


def _tools(fields: _Fields, request: wire.GenerateRequest) -> None:
    tools = fields.take("tools", list, "a list of tools")
    choice = fields.values.pop("tool_choice", None)
    if choice is not None and not isinstance(choice, str | dict):
        raise InvalidRequest(f"tool_choice = {_shown(choice)}, must be a string or an object")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest(f"tool_choice = {_shown(choice)}, but there are no tools; send some, or leave it out")
        return
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise InvalidRequest(f"tools[{index}] = {_shown(tool)}, must be of type function, with a function")
    request.tools_json = json.dumps(tools)
    if choice is not None:
        request.tool_choice_json = json.dumps(choice)


def _sampling(fields: _Fields, sampling: wire.Sampling) -> None:
    def setter(name: str) -> Callable[[float], None]:
        return lambda value: setattr(sampling, name, value)

    for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty"):
        if name in fields.values:  # few are sent
            fields.take_number(name, setter(name))
    for name, into, most in (
        ("max_tokens", "max_tokens", _MOST_UINT32),
        ("max_completion_tokens", "max_tokens", _MOST_UINT32),  # the newer name wins
        ("top_k", "top_k", _MOST_UINT32),
        ("seed", "seed", _MOST_UINT64),
    ):
        if name in fields.values and (whole := fields.take_whole(name, most)) is not None:
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
    for name in ("function_call", "audio"):
        if message.get(name):
            raise Unsupported(f"{where}.{name} is supported by no engine here; leave it out")
    role = message.get("role")
    if not isinstance(role, str):
        raise InvalidRequest(f"{where}.role = {_shown(role)}, must be a string")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(each, dict) for each in calls)):
        raise InvalidRequest(f"{where}.tool_calls = {_shown(calls)}, must be a list of calls")
    return wire.ChatMessage(
        role=_ROLES.get(role, role),
        content=_content(where, message.get("content")),
        tool_calls_json=json.dumps(calls) if calls else "",
        tool_call_id=_text(where, "tool_call_id", message),
        name=_text(where, "name", message),
    )


def _text(where: str, name: str, message: dict[str, Any]) -> str:
    value = message.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{where}.{name} = {_shown(value)}, must be a string")
    return value or ""


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
