"""Kinds of servers that speak OpenAI's API, by what their documentation says beyond it or short of it.

Each is asked only for what it takes: strict servers refuse a field that they do not know, others leave it out of what
they do without a word, so what a kind does not take is refused here, by name.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from services.mesh.errors import Unsupported
from services.mesh.features import LOGPROBS, RESPONSE_FORMAT, TOOLS
from services.worker.engine import EngineRequest

_ALL_FEATURES: Final = (LOGPROBS, RESPONSE_FORMAT, TOOLS)
_VLLM_FIELDS: Final = frozenset({"top_k", "ignore_eos", "return_token_ids", "continuous_usage_stats"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKind:
    """What may be asked of one kind of server.

    Attributes:
        health, metrics: paths; `metrics` empty where there is no such page.
        fields: of a request, beyond OpenAI's, that it takes.
        takes_ids: a prompt may be token ids.
        formats_completions: /v1/completions takes a response_format too, not only the chat.
        whole_top_p: takes a top_p of 1, which asks for nothing.
        features: what it can do, see `EngineInfo`.
        lacks: see `EngineInfo`; beside what having no tokenizer means.
    """

    name: str
    health: str = "/health"
    metrics: str = "/metrics"
    fields: frozenset[str] = frozenset({"top_k", "ignore_eos"})
    takes_ids: bool = True
    formats_completions: bool = False
    whole_top_p: bool = True
    features: tuple[str, ...] = ()
    lacks: tuple[tuple[str, str], ...] = ()

    def check(self, request: EngineRequest) -> None:
        """Raises Unsupported: names what of the request this kind of server does not take."""
        sampling = request.sampling
        if sampling.top_k and "top_k" not in self.fields:
            raise Unsupported(f"top_k = {sampling.top_k}: a server of the kind {self.name} does not take it")
        if sampling.ignore_eos and "ignore_eos" not in self.fields:
            raise Unsupported(f"ignore_eos: a server of the kind {self.name} does not take it")
        if request.prompt.token_ids is not None and not self.takes_ids:
            raise Unsupported(f"a prompt of token ids: a server of the kind {self.name} takes text and chats")
        if request.tools_json and request.prompt.chat is None:
            raise Unsupported("tools are for chats; send messages")
        if request.response_format_json and request.prompt.chat is None and not self.formats_completions:
            raise Unsupported(f"response_format: a server of the kind {self.name} takes it in chats; send messages")

    def response_format(self, asked: str) -> Any:
        """The field as this kind takes it."""
        wanted = json.loads(asked)
        if self.name != "tgi" or wanted.get("type") == "text":
            return wanted
        # TGI's grammar is the schema itself.
        schema = (wanted.get("json_schema") or {}).get("schema") or {"type": "object"}
        return {"type": "json_object", "value": schema}


_NO_IGNORING: Final = (("ignore_eos", "its API does not take it"),)

KINDS: Final[dict[str, ServerKind]] = {
    kind.name: kind
    for kind in (
        # https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
        ServerKind(name="vllm", fields=_VLLM_FIELDS, formats_completions=True, features=_ALL_FEATURES),
        # https://docs.sglang.io: vLLM's fields, but for the ids of tokens, which newer ones tell
        ServerKind(name="sglang", fields=_VLLM_FIELDS, features=_ALL_FEATURES),
        # https://docs.nvidia.com/nim/large-language-models: vLLM behind paths of its own
        ServerKind(
            name="nim",
            health="/v1/health/ready",
            metrics="/v1/metrics",
            fields=_VLLM_FIELDS,
            formats_completions=True,
            features=_ALL_FEATURES,
        ),
        # https://nvidia.github.io/TensorRT-LLM: refuses fields that it does not know
        ServerKind(
            name="trtllm",
            fields=frozenset({"top_k", "ignore_eos", "continuous_usage_stats"}),
            formats_completions=True,
            features=_ALL_FEATURES,
        ),
        # https://docs.ollama.com/api/openai-compatibility
        ServerKind(
            name="ollama",
            health="/api/version",
            metrics="",
            fields=frozenset(),
            takes_ids=False,
            features=_ALL_FEATURES,
            lacks=_NO_IGNORING,
        ),
        # https://huggingface.co/docs/text-generation-inference/reference/api_reference
        ServerKind(
            name="tgi",
            fields=frozenset(),
            takes_ids=False,
            whole_top_p=False,
            features=(RESPONSE_FORMAT, TOOLS),
            lacks=_NO_IGNORING,
        ),
        ServerKind(name="plain"),
    )
}
