"""What is spoken with one server: found out from what it answers, or as `worker.openai_dialect` says.

In: a server, settings, requests. Out: what to post for a request and how to read the answer, what the engine can do and
what it lacks.

llamacpp    llama.cpp's server: token ids in and out, counts by its own counter, its tokenizer
vllm, sglang, nim    token ids in, and out where the server tells them; a tokenizer
trtllm, ollama, tgi, plain    text and chats in, text out, counts by chunks and usage

Where there is a tokenizer, every prompt is sent as token ids: a prompt that is too long is refused before any work, all
forms of a prompt give the same tokens, and a resume replays the ids. Without one, a resume sends the prompt's text and
the text delivered, as one; a chat cannot be continued like that, and is refused.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from services.mesh.errors import EngineFailed, ResumeRefused, TokenworksError
from services.mesh.features import TOOLS
from services.mesh.settings import WorkerSettings
from services.worker.engine import ChatMessage, EngineRequest
from services.worker.engines.llamacpp_calls import LACKS, LlamaCalls
from services.worker.engines.llamacpp_server import LlamaServerApi
from services.worker.engines.openai_calls import ids_call, text_call
from services.worker.engines.openai_kinds import KINDS, ServerKind
from services.worker.engines.openai_server import OpenAiServer, VllmTokenizer
from services.worker.engines.openai_stream import CompletionReader, StreamReader
from services.worker.engines.prompts import EncodedRequest, LoadedModel, PromptEncoder, Tokenizer
from services.worker.engines.request_line import Job

_LLAMACPP_CONNECTIONS: Final = 2
_LLAMACPP_ASK_S: Final = 10.0
_OWNERS: Final = {"vllm": "vllm", "sglang": "sglang", "tensorrt_llm": "trtllm", "llamacpp": "llamacpp"}
_TOKENIZING: Final = frozenset({"vllm", "sglang", "nim"})
_WITHOUT_TOKENIZER: Final = (
    ("token_ids", "this server tells none"),
    ("tokenizer", "this server has none"),
    ("chat_text", "this server does not show it"),
    ("load", "without a tokenizer, what a prompt's tokens are shows at its end only"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What is spoken with one server.

    Attributes:
        context_tokens: of one request.
        health, metrics: paths; None where there is no such page.
        tokenizer: None where there is none; `fingerprint` is its, empty where its ids are not known.
        call: path and body for a job.
        close: what is to be closed beside the server's client.
        places: how many requests it runs at once; None where it does not tell.
        kv_capacity_tokens: None where it does not tell.
        features, lacks: see `EngineInfo`.
    """

    name: str
    context_tokens: int
    encode: Callable[[EngineRequest], Awaitable[EncodedRequest]]
    call: Callable[[Job], tuple[str, dict[str, Any]]]
    reader: Callable[[Job], StreamReader]
    health: str = "/health"
    metrics: str | None = "/metrics"
    tokenizer: Tokenizer | None = None
    fingerprint: str = ""
    close: Callable[[], Awaitable[None]] | None = None
    places: int | None = None
    kv_capacity_tokens: int | None = None
    features: tuple[str, ...] = ()
    lacks: tuple[tuple[str, str], ...] = ()


async def find_dialect(server: OpenAiServer, settings: WorkerSettings) -> Dialect:
    """The most that the server speaks, or what `worker.openai_dialect` asks for.

    Raises:
        EngineFailed: the server does not have the model, or does not speak what it should.
    """
    entry = _model_entry((await server.ask("GET", "/v1/models")).get("data") or [], settings, server.url)
    wanted = settings.openai_dialect
    name = wanted if wanted != "auto" else await _kind_of(server, entry)
    if name == "llamacpp":
        return await _llamacpp(server, settings)
    kind, served = KINDS[name], str(entry["id"])
    context_tokens = settings.context_tokens or await _context_tokens(server, name, entry)
    if name in _TOKENIZING and context_tokens:
        found = await _tokenizing(server, settings, kind, served, context_tokens)
        if found is not None:
            return found
        if wanted != "auto":
            raise EngineFailed(f"{server.url} has no /tokenize: use worker.openai_dialect = 'plain'")
        kind = KINDS["plain"]
    if not context_tokens:
        raise EngineFailed(f"{server.url} does not tell its context length: set worker.context_tokens")
    return Dialect(
        name=kind.name,
        context_tokens=context_tokens,
        encode=lambda request: _encode_text(kind, request),
        call=lambda job: text_call(kind, served, job),
        reader=CompletionReader,
        health=kind.health if not await server.unwell(kind.health) else "/v1/models",
        metrics=kind.metrics or None,
        features=_features(kind, settings),
        lacks=(*_WITHOUT_TOKENIZER, *kind.lacks),
    )


async def _kind_of(server: OpenAiServer, entry: dict[str, Any]) -> str:
    """Which kind of server it is, by what only that kind answers."""
    if "n_vocab" in (entry.get("meta") or {}):
        return "llamacpp"
    if isinstance(await server.has("/v1/metadata"), dict):
        return "nim"
    if (owner := str(entry.get("owned_by"))) in _OWNERS:
        return _OWNERS[owner]
    if isinstance(told := await server.has("/get_model_info"), dict) and "model_path" in told:
        return "sglang"
    if isinstance(told := await server.has("/api/version"), dict) and "version" in told:
        return "ollama"
    if isinstance(told := await server.has("/info"), dict) and "max_total_tokens" in told:
        return "tgi"
    return "vllm" if "max_model_len" in entry else "plain"


async def _context_tokens(server: OpenAiServer, name: str, entry: dict[str, Any]) -> int:
    """Tokens of one request, prompt and answer; 0 where the server does not tell."""
    if name == "tgi":
        return int((await server.has("/info") or {}).get("max_total_tokens") or 0)
    if name == "ollama":
        # Of what is loaded: a model may take more than it was loaded with, and what is beyond is cut off silently.
        loaded = (await server.has("/api/ps") or {}).get("models") or []
        return next((int(each.get("context_length") or 0) for each in loaded if each.get("name") == entry["id"]), 0)
    return int(entry.get("max_model_len") or 0)


async def _tokenizing(
    server: OpenAiServer, settings: WorkerSettings, kind: ServerKind, served: str, context_tokens: int
) -> Dialect | None:
    """The dialect with a tokenizer and token ids; None where the server has no tokenizer after all."""
    tokenizer = VllmTokenizer(server, served)
    try:
        if not await tokenizer.tokenize("the", special=False):
            return None
    except (TokenworksError, KeyError, TypeError):
        return None
    encoder = PromptEncoder(tokenizer, settings.models[0], LoadedModel(0, context_tokens))
    chats = await _tokenizes_chats(tokenizer)

    async def encode(request: EngineRequest) -> EncodedRequest:
        if request.prompt.chat is not None and (request.tools_json or not chats):
            return await _encode_text(kind, request)  # the server's own template, which is not shown, does it
        kind.check(request)
        return await encoder.encode(request)

    def call(job: Job) -> tuple[str, dict[str, Any]]:
        return ids_call(kind, served, job) if job.encoded.token_ids else text_call(kind, served, job)

    dialect = Dialect(
        name=kind.name,
        context_tokens=context_tokens,
        encode=encode,
        call=call,
        reader=CompletionReader,
        health=kind.health if not await server.unwell(kind.health) else "/v1/models",
        metrics=kind.metrics,
        tokenizer=tokenizer,
        fingerprint=await encoder.find_fingerprint(),
        kv_capacity_tokens=(await server.load(kind.metrics)).kv_capacity_tokens,
        features=_features(kind, settings),
        lacks=(("chat_text", "this server shows the tokens of a chat, not its text"),),
    )
    if not await _takes_tools(server, served):
        dialect = replace(dialect, features=tuple(name for name in dialect.features if name != TOOLS))
    if not await _tells_ids(server, kind, served):
        dialect = replace(dialect, lacks=(*dialect.lacks, ("token_ids", "this server tells none")))
    return dialect


async def _tokenizes_chats(tokenizer: Tokenizer) -> bool:
    try:
        return bool(await tokenizer.encode_chat((ChatMessage("user", "the"),)))
    except (TokenworksError, KeyError, TypeError):
        return False


async def _tells_ids(server: OpenAiServer, kind: ServerKind, served: str) -> bool:
    """Whether a completion says the ids of its tokens; costs one token."""
    body = {"model": served, "prompt": "the", "max_tokens": 1, "return_token_ids": True}
    if "return_token_ids" not in kind.fields:
        return False
    try:
        (choice, *_) = (await server.ask("POST", "/v1/completions", body))["choices"]
        return bool(choice.get("token_ids"))
    except (TokenworksError, KeyError, TypeError, ValueError):
        return False


async def _takes_tools(server: OpenAiServer, served: str) -> bool:
    """Whether it was started with a parser of calls (vLLM's --enable-auto-tool-choice); costs one token."""
    tool = {"type": "function", "function": {"name": "none", "parameters": {"type": "object", "properties": {}}}}
    messages = [{"role": "user", "content": "the"}]
    body = {"model": served, "messages": messages, "max_tokens": 1, "tools": [tool], "tool_choice": "auto"}
    try:
        await server.ask("POST", "/v1/chat/completions", body)
    except TokenworksError:
        return False
    return True


async def _llamacpp(server: OpenAiServer, settings: WorkerSettings) -> Dialect:
    api = LlamaServerApi(server.url, settings.openai_api_key, _LLAMACPP_CONNECTIONS, _LLAMACPP_ASK_S)
    loaded = await api.model()
    context_tokens = min(loaded.context_tokens, settings.context_tokens or loaded.context_tokens)
    calls = await LlamaCalls.of(api, settings.models[0], LoadedModel(loaded.vocabulary, context_tokens))
    return Dialect(
        name="llamacpp",
        context_tokens=context_tokens,
        encode=calls.encode,
        call=calls.call,
        reader=calls.reader,
        tokenizer=api,
        close=api.close,
        fingerprint=calls.fingerprint,
        places=calls.slots or None,
        kv_capacity_tokens=loaded.context_tokens * calls.slots or None,
        features=calls.features,
        lacks=LACKS,
    )


def _features(kind: ServerKind, settings: WorkerSettings) -> tuple[str, ...]:
    return tuple(sorted({*kind.features, *settings.openai_features}))


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


async def _encode_text(kind: ServerKind, request: EngineRequest) -> EncodedRequest:
    """Without a tokenizer: prompt tokens are estimated until the server tells, at four characters each."""
    kind.check(request)
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
