"""How much of a server goes beyond OpenAI's API, and what is asked of it accordingly.

In: a server, settings, requests. Out: what to post for a request and how to read the answer.

llamacpp   llama.cpp's server: token ids in and out, counts by its own counter, its tokenizer
vllm       vLLM's and SGLang's: token ids in and out where `return_token_ids` is honoured, a tokenizer
plain      what OpenAI's API defines: text and chats in, text out, counts by chunks and usage

Where there is a tokenizer, every prompt is sent as token ids: a prompt that is too long is refused before any work, all
forms of a prompt give the same tokens, and a resume replays the ids. Without one, a resume sends the prompt's text and
the text delivered, as one; a chat cannot be continued like that, and is refused.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from services.mesh.errors import EngineFailed, ResumeRefused, TokenworksError
from services.mesh.settings import WorkerSettings
from services.worker.engine import EngineRequest, Sampling
from services.worker.engines.llamacpp_server import ChunkReader, LlamaServerApi, completion_body
from services.worker.engines.openai_server import OpenAiServer, VllmTokenizer
from services.worker.engines.openai_stream import CompletionReader, StreamReader
from services.worker.engines.prompts import EncodedRequest, LoadedModel, PromptEncoder, Tokenizer
from services.worker.engines.request_line import Job

_PLAIN_LACKS: Final = (
    ("token_ids", "OpenAI's API tells none"),
    ("tokenizer", "OpenAI's API has none"),
    ("chat_text", "OpenAI's API does not show it"),
    ("load", "without a tokenizer, what a prompt's tokens are shows at its end only"),
)
_LLAMACPP_CONNECTIONS = 2
_LLAMACPP_ASK_S = 10.0


@dataclass(frozen=True, slots=True)
class Dialect:
    """What is spoken with one server.

    Attributes:
        context_tokens: of one request; 0 where the server does not tell.
        tokenizer: None where there is none; `fingerprint` is its, empty where its ids are not known.
        call: path and body for a job.
        close: what is to be closed beside the server's client.
        lacks: see `EngineInfo.lacks`.
    """

    name: str
    context_tokens: int
    encode: Callable[[EngineRequest], Awaitable[EncodedRequest]]
    call: Callable[[Job], tuple[str, dict[str, Any]]]
    reader: Callable[[Job], StreamReader]
    tokenizer: Tokenizer | None = None
    fingerprint: str = ""
    close: Callable[[], Awaitable[None]] | None = None
    lacks: tuple[tuple[str, str], ...] = ()


async def find_dialect(server: OpenAiServer, settings: WorkerSettings) -> Dialect:
    """The most that the server speaks, or what `worker.openai_dialect` asks for.

    Raises:
        EngineFailed: the server does not have the model, or does not speak what it should.
    """
    wanted, name = settings.openai_dialect, settings.models[0]
    entry = _model_entry((await server.ask("GET", "/v1/models")).get("data") or [], settings, server.url)
    served = str(entry["id"])
    if wanted in {"auto", "llamacpp"} and (wanted == "llamacpp" or "n_vocab" in (entry.get("meta") or {})):
        return await _llamacpp(server, settings, name)
    context_tokens = settings.context_tokens or int(entry.get("max_model_len") or 0)
    if wanted in {"auto", "vllm"} and (wanted == "vllm" or "max_model_len" in entry):
        tokenizer = VllmTokenizer(server, served)
        if await _tokenizes(tokenizer) and context_tokens:
            encoder = PromptEncoder(tokenizer, name, LoadedModel(0, context_tokens))
            return Dialect(
                "vllm",
                context_tokens,
                encoder.encode,
                lambda job: _ids_call(served, job),
                CompletionReader,
                tokenizer,
                await encoder.find_fingerprint(),
            )
        if wanted == "vllm":
            raise EngineFailed(f"{server.url} has no /tokenize: use worker.openai_dialect = 'plain'")
    if not context_tokens:
        raise EngineFailed(f"{server.url} does not tell its context length: set worker.context_tokens")
    return Dialect(
        "plain",
        context_tokens,
        _encode_plain,
        lambda job: _plain_call(served, job),
        CompletionReader,
        lacks=_PLAIN_LACKS,
    )


async def _llamacpp(server: OpenAiServer, settings: WorkerSettings, name: str) -> Dialect:
    api = LlamaServerApi(server.url, settings.openai_api_key, _LLAMACPP_CONNECTIONS, _LLAMACPP_ASK_S)
    loaded = await api.model()
    context_tokens = min(loaded.context_tokens, settings.context_tokens or loaded.context_tokens)
    encoder = PromptEncoder(api, name, LoadedModel(loaded.vocabulary, context_tokens))

    def call(job: Job) -> tuple[str, dict[str, Any]]:
        request, encoded = job.request, job.encoded
        body = completion_body(
            encoded.token_ids, request.sampling, encoded.max_tokens, context_tokens, request.resume_from
        )
        return "/v1/completions", body

    def reader(job: Job) -> StreamReader:
        return ChunkReader(job.request.sequence, job.request.sampling.stop, job.encoded.held_text)

    return Dialect(
        "llamacpp", context_tokens, encoder.encode, call, reader, api, await encoder.find_fingerprint(), api.close
    )


async def _tokenizes(tokenizer: Tokenizer) -> bool:
    try:
        return bool(await tokenizer.tokenize("the", special=False))
    except (TokenworksError, KeyError, TypeError):
        return False


def _model_entry(entries: list[dict[str, Any]], settings: WorkerSettings, url: str) -> dict[str, Any]:
    """What the server lists of the model that is to be served."""
    ids = [str(entry.get("id")) for entry in entries]
    for wanted in (settings.openai_model, settings.models[0]):
        if wanted in ids:
            return entries[ids.index(wanted)]
    if len(entries) == 1 and not settings.openai_model:
        return entries[0]
    raise EngineFailed(
        f"{url} does not have {settings.openai_model or settings.models[0]!r}: set worker.openai_model to one of "
        f"{', '.join(ids) or '(it lists none)'}"
    )


async def _encode_plain(request: EngineRequest) -> EncodedRequest:
    """Without a tokenizer: prompt tokens are estimated until the server tells, at four characters each."""
    prompt = request.prompt
    if request.resume_from and (prompt.text is None or not request.resumed_text):
        raise ResumeRefused(
            f"request {request.request_id} cannot go on at token {request.resume_from}: this server takes no token "
            "ids, and only a prompt in text form can be continued without them"
        )
    if prompt.token_ids is not None:
        prompt_tokens = len(prompt.token_ids)
    else:
        texts = [prompt.text or ""] if prompt.chat is None else [message.content for message in prompt.chat]
        prompt_tokens = max(1, sum(map(len, texts)) // 4)
    return EncodedRequest((), prompt_tokens, request.sampling.max_tokens - request.resume_from, "")


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Fields of OpenAI's API; those beyond it only where they say something, as strict servers refuse the unknown."""
    fields: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    beyond = {
        "seed": sampling.seed,
        "frequency_penalty": sampling.frequency_penalty or None,
        "presence_penalty": sampling.presence_penalty or None,
        "top_k": sampling.top_k or None,
        "ignore_eos": sampling.ignore_eos or None,
    }
    return fields | {name: value for name, value in beyond.items() if value is not None}


def _ids_call(served: str, job: Job) -> tuple[str, dict[str, Any]]:
    body = {
        "model": served,
        "prompt": list(job.encoded.token_ids),
        "max_tokens": job.encoded.max_tokens,
        "return_token_ids": True,
        **_sampling_fields(job.request.sampling),
    }
    return "/v1/completions", body


def _plain_call(served: str, job: Job) -> tuple[str, dict[str, Any]]:
    request = job.request
    body = {"model": served, "max_tokens": job.encoded.max_tokens, **_sampling_fields(request.sampling)}
    prompt = request.prompt
    if prompt.chat is not None:
        messages = [message.as_openai() for message in prompt.chat]
        return "/v1/chat/completions", body | {"messages": messages}
    if prompt.token_ids is not None:
        return "/v1/completions", body | {"prompt": list(prompt.token_ids)}
    return "/v1/completions", body | {"prompt": (prompt.text or "") + request.resumed_text}
