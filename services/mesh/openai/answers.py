"""GenerateResponses to OpenAI's answers: whole ones, server-sent events, errors and the list of models.

The fixed parts of a stream's events are made once per stream, so that a token costs the encoding of its own text.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

from services.mesh.errors import TokenworksError, face
from tokenworks.v1 import inference_pb2 as wire

Kind = Literal["chat", "text"]

DONE: Final = b"data: [DONE]\n\n"
_CODES: Final = {  # names that OpenAI's clients know; others keep ours
    "PromptTooLong": "context_length_exceeded",
    "UnknownModel": "model_not_found",
    "Unauthenticated": "invalid_api_key",
    "CreditExhausted": "insufficient_quota",
    "QueueFull": "rate_limit_exceeded",
}
_REASONS: Final = {"stop": "stop", "length": "length", "budget": "length"}  # others end like a stop


class Answer:
    """One request's answers; `created` is in seconds since 1970.

    Args:
        include_usage: a stream ends with an event that carries the usage.
    """

    def __init__(self, kind: Kind, request_id: str, model: str, created: int, *, include_usage: bool = False) -> None:
        self._chat = kind == "chat"
        self._include_usage = include_usage
        self._started = False
        self._base: dict[str, Any] = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{request_id}",
            "created": created,
            "model": model,
        }
        opened = json.dumps({**self._base, "object": self._object(streamed=True)})[:-1]
        inner = '"delta":{"content":%s}' if self._chat else '"text":%s'
        outer = ',"usage":null}' if include_usage else "}"
        self._token = f'data: {_escaped(opened)},"choices":[{{"index":0,{inner},"finish_reason":null}}]{outer}\n\n'

    def events(self, message: wire.GenerateResponse) -> bytes:
        """The server-sent events of one message, the end of the stream included in the last."""
        parts = []
        if not self._started and self._chat:
            opening: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", "content": ""}}
            parts.append(self._event([opening]))
        self._started = True
        if message.text:
            parts.append((self._token % json.dumps(message.text)).encode())
        if message.HasField("finish"):
            finish = message.finish
            ending: dict[str, Any] = {"index": 0, "finish_reason": finish_reason(finish)}
            ending.update(delta={}) if self._chat else ending.update(text="")
            parts.append(self._event([ending]))
            if self._include_usage:
                parts.append(self._event([], usage=usage_of(finish), tokenworks=account_of(finish)))
            parts.append(DONE)
        return b"".join(parts)

    def whole(self, messages: Sequence[wire.GenerateResponse]) -> bytes:
        """The answer in one piece; the last message holds the Finish."""
        finish = messages[-1].finish
        text = "".join(each.text for each in messages)
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason(finish)}
        choice.update({"message": {"role": "assistant", "content": text}} if self._chat else {"text": text})
        return json.dumps(
            {
                **self._base,
                "object": self._object(streamed=False),
                "choices": [choice],
                "usage": usage_of(finish),
                "tokenworks": account_of(finish),
            }
        ).encode()

    def _object(self, *, streamed: bool) -> str:
        if not self._chat:
            return "text_completion"
        return "chat.completion.chunk" if streamed else "chat.completion"

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        for choice in choices:
            choice.setdefault("finish_reason", None)
        usage = {"usage": None} if self._include_usage else {}
        body = {**self._base, "object": self._object(streamed=True), "choices": choices, **usage, **more}
        return b"data: " + json.dumps(body).encode() + b"\n\n"


def finish_reason(finish: wire.Finish) -> str:
    """In OpenAI's words."""
    return _REASONS.get(finish.reason, "stop")


def usage_of(finish: wire.Finish) -> dict[str, Any]:
    usage = finish.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
    }


def account_of(finish: wire.Finish) -> dict[str, Any]:
    """What OpenAI's fields have no place for: the price in nano-dollars, and who made the tokens."""
    return {
        "finish_reason": finish.reason,
        "price_nusd": finish.price_nusd,
        "segments": [
            {
                "worker": each.worker,
                "accelerator": each.accelerator,
                "from_index": each.from_index,
                "count": each.count,
            }
            for each in finish.segments
        ],
    }


def error_body(error: TokenworksError) -> dict[str, Any]:
    return {
        "error": {
            "message": str(error),
            "type": face(error).openai,
            "param": None,
            "code": _CODES.get(error.reason, error.reason),
        }
    }


def error_event(error: TokenworksError) -> bytes:
    """An error after the stream had begun; no [DONE] follows."""
    return b"data: " + json.dumps(error_body(error)).encode() + b"\n\n"


def model_body(model: wire.Model, created: int) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "tokenworks",
        "context_tokens": model.context_tokens,
        "accelerators": list(model.accelerators),
        "workers": model.workers,
        "simulated": model.simulated,
    }


def _escaped(text: str) -> str:
    """`text` for use in a %-format."""
    return text.replace("%", "%%")
