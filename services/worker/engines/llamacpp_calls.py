"""What llama.cpp is asked for a request, in the process or through its server, and how its answer is read.

In: requests. Out: token ids, path and body, a reader. Everything but a chat with tools is a completion of token ids; a
chat with tools goes as it is, since the template and the parser of calls belong together. A response format is
llama.cpp's JSON schema. Only one thing is not to be had: an answer that must call a tool, as llama.cpp lets the model
speak first.
"""

import json
from dataclasses import replace
from typing import Any, Final

from services.mesh.errors import InvalidRequest, Unsupported
from services.mesh.features import LOGPROBS, RESPONSE_FORMAT, TOOLS
from services.worker.engine import EngineRequest, Prompt
from services.worker.engines.llamacpp_server import ChunkReader, LlamaAbilities, LlamaServerApi, completion_body
from services.worker.engines.openai_stream import CompletionReader, StreamReader
from services.worker.engines.prompts import EncodedRequest, LoadedModel, PromptEncoder
from services.worker.engines.request_line import Job

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


LACKS: Final = (("forced_tools", "llama.cpp lets the model speak before it calls"),)


class LlamaCalls:
    """The calls of one llama.cpp with one model.

    Attributes:
        features: see `EngineInfo`.
        fingerprint: of its tokenizer, see `PromptEncoder`.
        slots: requests at once; 0 where it does not tell.
    """

    def __init__(self, api: LlamaServerApi, model: str, loaded: LoadedModel, abilities: LlamaAbilities) -> None:
        self.features = (LOGPROBS, RESPONSE_FORMAT, TOOLS) if abilities.tools else (LOGPROBS, RESPONSE_FORMAT)
        self.slots = abilities.slots
        self.fingerprint = ""
        self._api = api
        self._context_tokens = loaded.context_tokens
        self._encoder = PromptEncoder(api, model, loaded)

    @classmethod
    async def of(cls, api: LlamaServerApi, model: str, loaded: LoadedModel) -> "LlamaCalls":
        """Asks what it can do.

        Raises:
            EngineFailed: it does not answer.
        """
        calls = cls(api, model, loaded, await api.abilities())
        calls.fingerprint = await calls._encoder.find_fingerprint()
        return calls

    async def encode(self, request: EngineRequest) -> EncodedRequest:
        """See `PromptEncoder.encode`.

        Raises:
            Unsupported: tools with log probabilities or a tool that must be called.
            InvalidRequest: a response format that is none.
        """
        response_schema(request)
        if not request.tools_json:
            return await self._encoder.encode(request)
        if request.prompt.chat is None:
            raise InvalidRequest("tools are for chats; send messages")
        if request.sampling.logprobs is not None:
            raise Unsupported(f"{LOGPROBS} with {TOOLS}: llama.cpp does not tell them")
        if request.tool_choice_json and json.loads(request.tool_choice_json) not in {"auto", "none"}:
            raise Unsupported(
                f"tool_choice = {request.tool_choice_json}: llama.cpp cannot hold a model to it; use 'auto'"
            )
        rendered = await self._api.render(request.prompt.chat, request.tools_json)
        ids = await self._api.tokenize(rendered, special=True)
        return await self._encoder.encode(replace(request, prompt=Prompt(token_ids=ids)))

    def call(self, job: Job) -> tuple[str, dict[str, Any]]:
        """Path and body."""
        request, encoded = job.request, job.encoded
        body = completion_body(
            encoded.token_ids, request.sampling, encoded.max_tokens, self._context_tokens, request.resume_from
        )
        if (schema := response_schema(request)) is not None:
            body["json_schema"] = schema
        if not request.tools_json:
            return COMPLETIONS, body
        del body["prompt"]
        body |= {
            "messages": [message.as_openai() for message in request.prompt.chat or ()],
            "tools": json.loads(request.tools_json),
            "tool_choice": json.loads(request.tool_choice_json or '"auto"'),
            "timings_per_token": True,  # a counter in every chunk
            "stream_options": {"include_usage": True},
        }
        return CHAT, body

    def reader(self, job: Job) -> StreamReader:
        request = job.request
        if request.tools_json:
            return CompletionReader(job)
        return ChunkReader(request.sequence, request.sampling, job.encoded.held_text)


def response_schema(request: EngineRequest) -> dict[str, Any] | None:
    """The JSON schema that the answer has to follow; None where it is free.

    Raises:
        InvalidRequest: a response format that is none of OpenAI's.
    """
    if not request.response_format_json:
        return None
    asked = json.loads(request.response_format_json)
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    schema = (asked.get("json_schema") or {}).get("schema") if kind == "json_schema" else None
    if not isinstance(schema, dict):
        raise InvalidRequest(
            f"response_format = {request.response_format_json[:80]}: its type must be text, json_object, or "
            "json_schema with a schema"
        )
    return schema
