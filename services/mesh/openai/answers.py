"""GenerateResponses to OpenAI's answers: whole ones, server-sent events, errors and the list of models.

The fixed parts of a stream's events are made once per stream, so that a token costs the encoding of its own text.
"""

import json
import math
from collections.abc import Iterable, Sequence
from copy import copy
from json.encoder import encode_basestring_ascii
from typing import Any, Final, Literal

from services.mesh.errors import TokenworksError, face
from services.mesh.http_call import JSON, fields_of
from tokenworks.v1 import inference_pb2 as wire

Kind = Literal["chat", "text"]

DONE: Final = b"data: [DONE]\n\n"
_quoted: Final = encode_basestring_ascii
_USAGE: Final = (
    '{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}'
)
_CODES: Final = {  # names that OpenAI's clients know; others keep ours
    "PromptTooLong": "context_length_exceeded",
    "UnknownModel": "model_not_found",
    "Unauthenticated": "invalid_api_key",
    "CreditExhausted": "insufficient_quota",
    "QueueFull": "rate_limit_exceeded",
}
_REASONS: Final = {"stop": "stop", "length": "length", "budget": "length"}  # others end like a stop


class _Ends:
    """The ends of one call's answers: what follows the last of them."""

    def __init__(self, answers: int) -> None:
        self._left = answers
        self._finishes: list[wire.Finish] = []

    def add(self, finish: wire.Finish) -> Sequence[wire.Finish]:
        """Every finish, once the last has come; empty before."""
        self._left -= 1
        self._finishes.append(finish)
        return () if self._left else self._finishes


class Answer:
    """One answer to a call; `created` is in seconds since 1970.

    Args:
        include_usage: a stream ends with an event that carries the usage.
        answers: how many there are to the same call; the others are `beside` this one.
    """

    def __init__(
        self,
        kind: Kind,
        request_id: str,
        model: str,
        created: int,
        *,
        include_usage: bool = False,
        answers: int = 1,
    ) -> None:
        self._chat = kind == "chat"
        self._include_usage = include_usage
        self._base: dict[str, Any] = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{request_id}",
            "created": created,
            "model": model,
        }
        self._opened = (
            f'data: {{"id":{_quoted(self._base["id"])},"created":{created},"model":{_quoted(model)},'
            f'"object":"{self._object(streamed=True)}","choices":['
        )
        self._closed = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self._ends = _Ends(answers)
        self._begin(0)

    def beside(self, index: int) -> "Answer":
        """Another answer to the same call, from 1."""
        other = copy(self)
        other._begin(index)
        return other

    def _begin(self, index: int) -> None:
        self._index = index
        self._started = False
        self._called = False
        self._shown = 0  # characters of text
        inner, closing = ('"delta":{"content":', "}") if self._chat else ('"text":', "")
        self._before = f'{self._opened}{{"index":{index},{inner}'.encode()
        self._after = f'{closing},"finish_reason":null}}{self._closed}'.encode()

    def events(self, message: wire.GenerateResponse) -> bytes:
        """The server-sent events of one message, the end of the stream included in the last of the last answer."""
        plain = not (message.logprobs or message.tool_calls_json or message.HasField("finish"))
        if plain and self._started:
            return self._shown_text(message.text) if message.text else b""
        parts = []
        if not self._started and self._chat:
            parts.append(self._plain('"delta":{"role":"assistant","content":""},"finish_reason":null'))
        self._started = True
        if message.logprobs:
            shown = {"delta": {"content": message.text}} if self._chat else {"text": message.text}
            parts.append(self._event(self._choice(**shown, logprobs=self._logprobs(message.logprobs))))
        elif message.text:
            parts.append(self._shown_text(message.text))
        if message.tool_calls_json:
            self._called = True
            parts.append(self._event(self._choice(delta={"tool_calls": json.loads(message.tool_calls_json)})))
        if message.HasField("finish"):
            reason = finish_reason(message.finish, called=self._called)
            ending = '"delta":{}' if self._chat else '"text":""'
            parts.append(self._plain(f'{ending},"finish_reason":"{reason}"'))
            if finishes := self._ends.add(message.finish):
                if self._include_usage:
                    parts.append(self._usage(finishes))
                parts.append(DONE)
        return b"".join(parts)

    def _shown_text(self, text: str) -> bytes:
        return self._before + _quoted(text).encode("ascii") + self._after

    def whole(self, *answers: Sequence[wire.GenerateResponse]) -> bytes:
        """All answers in one piece: of each its messages, the last of which holds the Finish."""
        finishes = [messages[-1].finish for messages in answers]
        return json.dumps(
            {
                **self._base,
                "object": self._object(streamed=False),
                "choices": [self._whole_choice(index, messages) for index, messages in enumerate(answers)],
                "usage": usage_of(*finishes),
                "tokenworks": account_of(*finishes),
            }
        ).encode()

    def _whole_choice(self, index: int, messages: Sequence[wire.GenerateResponse]) -> dict[str, Any]:
        text = "".join(each.text for each in messages)
        calls = _joined_calls(messages)
        logprobs = [logprob for each in messages for logprob in each.logprobs]
        self._shown = 0
        choice: dict[str, Any] = {
            "index": index,
            "logprobs": self._logprobs(logprobs) if logprobs else None,
            "finish_reason": finish_reason(messages[-1].finish, called=bool(calls)),
        }
        if not self._chat:
            return choice | {"text": text}
        said: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            said |= {"content": text or None, "tool_calls": calls}
        return choice | {"message": said}

    def _choice(self, **fields: Any) -> dict[str, Any]:
        return {"index": self._index, "finish_reason": None, **fields}

    def _logprobs(self, told: Iterable[wire.TokenLogprob]) -> dict[str, Any]:
        """In the form of the chat, or in that of completions, with offsets into the answer."""
        if self._chat:
            return {"content": [_spelt(each, top_logprobs=[_spelt(top) for top in each.top]) for each in told]}
        form: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in told:
            form["tokens"].append(each.text)
            form["token_logprobs"].append(each.logprob)
            form["top_logprobs"].append({top.text: top.logprob for top in each.top})
            form["text_offset"].append(self._shown)
            self._shown += len(each.text)
        return form

    def _object(self, *, streamed: bool) -> str:
        if not self._chat:
            return "text_completion"
        return "chat.completion.chunk" if streamed else "chat.completion"

    def _plain(self, choice: str) -> bytes:
        """An event of one choice whose fields are JSON already."""
        return f'{self._opened}{{"index":{self._index},{choice}}}{self._closed}'.encode("ascii")

    def _event(self, choice: dict[str, Any]) -> bytes:
        return f"{self._opened}{json.dumps(choice)}{self._closed}".encode("ascii")

    def _usage(self, finishes: Sequence[wire.Finish]) -> bytes:
        """The event that ends a stream with what it used, and what it cost."""
        if len(finishes) == 1:  # as nearly always, and each stream of one answer has it: written straight
            usage, account = finishes[0].usage, _account_json(finishes[0])
            prompt, completion, cached = usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens
            used = _USAGE % (prompt, completion, prompt + completion, cached)
        else:
            used, account = json.dumps(usage_of(*finishes)), json.dumps(account_of(*finishes))
        return f'{self._opened}],"usage":{used},"tokenworks":{account}}}\n\n'.encode("ascii")


def _spelt(told: wire.TokenLogprob | wire.TokenLogprob.Alternative, **more: Any) -> dict[str, Any]:
    return {"token": told.text, "logprob": told.logprob, "bytes": list(told.text.encode()), **more}


def _joined_calls(messages: Sequence[wire.GenerateResponse]) -> list[dict[str, Any]]:
    """The calls that a stream's deltas make up."""
    calls: dict[int, dict[str, Any]] = {}
    for message in messages:
        for delta in json.loads(message.tool_calls_json or "[]"):
            index = int(delta.get("index") or 0)
            call = calls.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            call["id"] = delta.get("id") or call["id"]
            told = delta.get("function") or {}
            call["function"]["name"] += told.get("name") or ""
            call["function"]["arguments"] += told.get("arguments") or ""
    return [calls[index] for index in sorted(calls)]


def finish_reason(finish: wire.Finish, *, called: bool = False) -> str:
    """In OpenAI's words; `called`: the answer calls a tool."""
    reason = _REASONS.get(finish.reason, "stop")
    return "tool_calls" if called and reason == "stop" else reason


def usage_of(*finishes: wire.Finish) -> dict[str, Any]:
    """Of a call's answers together; each read the prompt, and is billed for it."""
    usages = [finish.usage for finish in finishes]
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_prompt_tokens for usage in usages)},
    }


def account_of(*finishes: wire.Finish) -> dict[str, Any]:
    """What OpenAI's fields have no place for: the price in nano-dollars, and who made the tokens."""
    (first, *others) = [
        {
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
        for finish in finishes
    ]
    if not others:
        return first
    return {"price_nusd": sum(finish.price_nusd for finish in finishes), "choices": [first, *others]}


def _account_json(finish: wire.Finish) -> str:
    """`account_of` one answer, written."""
    segments = ",".join(
        [
            f'{{"worker":{_quoted(each.worker)},"accelerator":{_quoted(each.accelerator)},'
            f'"from_index":{each.from_index},"count":{each.count}}}'
            for each in finish.segments
        ]
    )
    return f'{{"finish_reason":{_quoted(finish.reason)},"price_nusd":{finish.price_nusd},"segments":[{segments}]}}'


def error_body(error: TokenworksError) -> dict[str, Any]:
    return {
        "error": {
            "message": str(error),
            "type": face(error).openai,
            "param": None,
            "code": _CODES.get(error.reason, error.reason),
        }
    }


def refusal_of(error: TokenworksError) -> tuple[int, bytes, bytes, bytes]:
    """An error as the whole answer: status, content type, body, and the headers that say when to come back where that
    helps."""
    return face(error).http, JSON, json.dumps(error_body(error)).encode(), fields_of(retry_headers(error).items())


def retry_headers(error: TokenworksError) -> dict[str, str]:
    """When to come back; empty where waiting does not help."""
    if error.retry_after_s is None:
        return {}
    return {
        "Retry-After": str(math.ceil(error.retry_after_s)),
        "Retry-After-Ms": str(round(error.retry_after_s * 1000)),
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
