"""llama.cpp's server as it is spoken to: its requests, the chunks that it streams, and its tokenizer over HTTP.

In: sampling values and token ids, chunks as parsed JSON. Out: request bodies, `Arrival`s, token ids. Nothing here knows
whether the server runs in this process.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from services.mesh.errors import EngineFailed, InvalidRequest
from services.worker.core.measured_steps import Arrival
from services.worker.core.stop_strings import StopMatcher
from services.worker.engine import ChatMessage, FinishReason, Sampling, TokenLogprob
from services.worker.engines.openai_logprobs import read_logprobs
from services.worker.engines.prompts import LoadedModel

_RANDOM_SEED: Final = 0xFFFF_FFFF  # llama.cpp draws a seed of its own for this one


def completion_body(
    token_ids: Sequence[int], sampling: Sampling, max_tokens: int, context_tokens: int, resume_from: int = 0
) -> dict[str, Any]:
    """The body of a streaming completion of `token_ids` that reports ids and progress.

    Stop strings are left out: the reader of the chunks looks for them, because only it knows what was held back before
    a break.
    """
    body = {
        "prompt": list(token_ids),
        "n_predict": max_tokens,
        "stream": True,
        "verbose": True,  # what reports token ids and exact counts in a stream
        "return_tokens": True,
        "return_progress": True,
        "cache_prompt": True,
        # Temperature first, then the cuts: the order that vLLM and OpenAI's reference use.
        "samplers": ["penalties", "temperature", "top_k", "top_p"],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repeat_last_n": context_tokens,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "ignore_eos": sampling.ignore_eos,
        "seed": _RANDOM_SEED if sampling.seed is None else _seed32(sampling.seed, resume_from),
    }
    if sampling.logprobs is not None:
        body["n_probs"] = max(1, sampling.logprobs)  # 0 would be none at all
    return body


def _seed32(seed: int, resume_from: int) -> int:
    """64 bits folded into llama.cpp's 32; another draw after a resume, so that the first draws are not repeated."""
    folded = (seed ^ (seed >> 32) ^ (resume_from * 0x9E37_79B1)) & 0xFFFF_FFFF
    return folded if folded != _RANDOM_SEED else 0


class ChunkReader:
    """Turns the chunks of one completion into arrivals.

    llama.cpp holds a chunk back while the text ends within a character, so one chunk may stand for several tokens and
    then has the id of the last one only: the count is taken from the server's own counter, and ids are reported only
    where there is one for each token.
    """

    def __init__(self, sequence: int, sampling: Sampling, held: str = "") -> None:
        """`held`: text of the tokens made before a break that was not shown yet."""
        self._sequence = sequence
        self._logprobs = sampling.logprobs
        self._stop = StopMatcher(sampling.stop)
        self._text = self._stop.feed(held)  # may be shown, and goes out with the next arrival
        self._computed = 0  # tokens of the prompt
        self._prefill = 0  # of these, done in the step that the next token comes from
        self._cached = 0
        self._made = 0
        self.begun = False
        self.finished = False
        self.complaint = ""

    def read(self, chunk: dict[str, Any], at_s: float) -> Arrival | None:
        """The arrival that a chunk is, None where nothing happened. `finished` tells when no other may be read."""
        assert not self.finished
        if (error := chunk.get("error")) is not None:
            return self._end(at_s, FinishReason.ERROR, error=(EngineFailed.__name__, str(error.get("message", error))))
        detail = chunk["__verbose"]
        if (progress := detail.get("prompt_progress")) is not None:
            return self._progress(progress, at_s)
        count = detail["tokens_predicted"] - self._made
        self._made += count
        ids = tuple(detail["tokens"])
        text, self._text = self._text + self._stop.feed(detail["content"]), ""
        finish: FinishReason | None = None
        if self._stop.stopped:
            finish = FinishReason.STOP
        elif (reason := chunk["choices"][0]["finish_reason"]) is not None:
            finish = FinishReason.LENGTH if reason == "length" else FinishReason.STOP
            text += self._stop.flush()
        self.begun = True
        self.finished = finish is not None
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._logprobs is not None and count:
            logprobs = read_logprobs(chunk["choices"][0].get("logprobs"), self._logprobs)[-count:]
        prefill, self._prefill = self._prefill, 0
        return Arrival(
            sequence=self._sequence,
            at_s=at_s,
            token_count=count,
            token_ids=ids if len(ids) == count else (),
            text=text,
            prefill_tokens=prefill,
            cached_tokens=self._cached,
            finish=finish,
            logprobs=logprobs,
        )

    def cancelled(self, at_s: float) -> Arrival:
        """The last arrival of a completion that was broken off; text that was held back is let out."""
        return self._end(at_s, FinishReason.CANCELLED, text=self._text + self._stop.flush())

    def failed(self, at_s: float, message: str, error: str = EngineFailed.__name__) -> Arrival:
        return self._end(at_s, FinishReason.ERROR, error=(error, message))

    def done(self, at_s: float) -> Arrival:
        """The stream ended without the chunk that says how."""
        return self.failed(at_s, "llama.cpp ended the stream without a finish reason")

    def _progress(self, progress: dict[str, int], at_s: float) -> Arrival | None:
        processed, self._cached = progress["processed"], progress["cache"]
        fresh = processed - max(self._computed, self._cached)
        self._computed = max(processed, self._cached)
        if fresh <= 0:
            return None
        if processed >= progress["total"]:
            self._prefill = fresh  # the same step makes the first token
            return None
        return Arrival(sequence=self._sequence, at_s=at_s, prefill_tokens=fresh, cached_tokens=self._cached)

    def _end(
        self, at_s: float, finish: FinishReason, *, text: str = "", error: tuple[str, str] | None = None
    ) -> Arrival:
        self.finished = True
        return Arrival(sequence=self._sequence, at_s=at_s, text=text, finish=finish, error=error)


@dataclass(frozen=True, slots=True)
class LlamaAbilities:
    """What one llama.cpp tells of itself.

    Attributes:
        slots: requests at once; 0 where it does not tell.
        tools: the model's chat template has a place for tools.
    """

    slots: int
    tools: bool


class LlamaServerApi:
    """The `Tokenizer` that llama.cpp's server is over HTTP, beside its completions."""

    def __init__(self, base_url: str, api_key: str, connections: int, deadline_s: float) -> None:
        self._base_url = base_url
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._connections = connections
        self._deadline_s = deadline_s
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def model(self) -> LoadedModel:
        meta = (await self._ask("GET", "/v1/models"))["data"][0]["meta"]
        return LoadedModel(int(meta["n_vocab"]), min(int(meta["n_ctx"]), int(meta["n_ctx_train"])))

    async def abilities(self) -> LlamaAbilities:
        told = await self._ask("GET", "/props")
        caps = told.get("chat_template_caps") or {}
        return LlamaAbilities(int(told.get("total_slots") or 0), bool(caps.get("supports_tools")))

    async def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        body = {"content": text, "add_special": special, "parse_special": special}
        return tuple((await self._ask("POST", "/tokenize", body))["tokens"])

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return str((await self._ask("POST", "/detokenize", {"tokens": list(token_ids)}))["content"])

    async def encode_chat(self, chat: Sequence[ChatMessage]) -> tuple[int, ...]:
        return await self.tokenize(await self.render(chat), special=True)

    async def render(self, chat: Sequence[ChatMessage], tools_json: str = "") -> str:
        """The text of a chat in the model's template; without the first token of a text, which `tokenize` adds."""
        body: dict[str, Any] = {"messages": [message.as_openai() for message in chat]}
        if tools_json:
            body["tools"] = json.loads(tools_json)
        return str((await self._ask("POST", "/apply-template", body))["prompt"])

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                # Each open connection keeps one of the server's threads.
                connector=aiohttp.TCPConnector(limit=self._connections),
                timeout=aiohttp.ClientTimeout(total=self._deadline_s),
            )
        try:
            async with self._session.request(method, self._base_url + path, json=body) as response:
                answer = await response.json(content_type=None)
                if response.status == 200:
                    return answer
                message = answer.get("error", {}).get("message", answer)
                if response.status < 500 or path == "/apply-template":
                    raise InvalidRequest(f"llama.cpp refuses {path}: {message}")
                raise EngineFailed(f"llama.cpp fails at {path}: {message}")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise EngineFailed(f"llama.cpp does not answer {path}: {error or type(error).__name__}") from error
