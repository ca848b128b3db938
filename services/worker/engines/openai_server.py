"""An OpenAI-compatible server as a client sees it: what it serves, whether it is well, its tokenizer, its streams.

In: paths and bodies. Out: parsed JSON, errors of the mesh's tree. Knows HTTP and nothing of requests' lives.
"""

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from services.mesh.errors import EngineFailed, InvalidRequest, PromptTooLong, QueueFull, TokenworksError
from services.worker.engine import ChatMessage
from services.worker.engines.openai_metrics import ServerLoad, read_metrics

_CONNECT_S: Final = 5.0
_ASK_S: Final = 10.0
_EVENT_BYTES: Final = 8 << 20  # of one event in a stream, at most
_HEALTH_S: Final = 5.0
_RETRIABLE: Final = frozenset({429, 502, 503, 504})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class ServerBusy(Exception):
    """Asking again may help; `error` is what to say when it did not.

    Attributes:
        after_s: when to ask again, as the server says; None where it does not.
    """

    def __init__(self, error: TokenworksError, after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s


class OpenAiServer:
    """The client of one server; lives until `close`."""

    def __init__(self, url: str, api_key: str, silence_s: float) -> None:
        """`silence_s`: after which a stream that says nothing is given up."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self._session = aiohttp.ClientSession(
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            connector=aiohttp.TCPConnector(limit=0),  # bounded by the places of the engine
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=silence_s),
        )

    @property
    def on_this_machine(self) -> bool:
        return (urlsplit(self.url).hostname or "") in _LOOPBACK

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One answer.

        Raises:
            InvalidRequest, PromptTooLong, QueueFull: the server refuses.
            EngineFailed: it fails, or does not answer within 10 s.
        """
        try:
            timeout = aiohttp.ClientTimeout(total=_ASK_S, sock_connect=_CONNECT_S)
            async with self._session.request(method, self.url + path, json=body, timeout=timeout) as response:
                if response.status != 200:
                    raise await _refusal(response, path)
                return await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise EngineFailed(f"{self.url}{path} does not answer: {error or type(error).__name__}") from error

    async def has(self, path: str) -> Any:
        """What is at `path`, parsed; None where there is nothing, or nothing that is JSON."""
        try:
            return await self.ask("GET", path)
        except TokenworksError:
            return None

    async def unwell(self, path: str) -> str:
        """Why the server does not seem well, by what it answers at `path`; empty when it is."""
        try:
            timeout = aiohttp.ClientTimeout(total=_HEALTH_S, sock_connect=_HEALTH_S)
            async with self._session.get(self.url + path, timeout=timeout) as response:
                return "" if response.status == 200 else f"answers {response.status}"
        except TimeoutError:
            return f"does not answer within {_HEALTH_S:g} s"
        except aiohttp.ClientError as error:
            return f"cannot be reached: {error}"

    async def load(self, path: str) -> ServerLoad:
        """What the metrics page at `path` says; nothing where it cannot be read."""
        try:
            timeout = aiohttp.ClientTimeout(total=_ASK_S, sock_connect=_CONNECT_S)
            async with self._session.get(self.url + path, timeout=timeout) as response:
                return read_metrics(await response.text()) if response.status == 200 else ServerLoad()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return ServerLoad()

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The events of a stream, those together that came together; ends with the server's `[DONE]` or its silence.

        Raises:
            ServerBusy: it has not begun; asking again may help.
            InvalidRequest, PromptTooLong, EngineFailed: it refuses.
            aiohttp.ClientError, TimeoutError: the connection broke while it ran.
        """
        try:
            response = await self._session.post(self.url + path, json=body)
        except TimeoutError as error:
            raise EngineFailed(f"{self.url}{path} does not begin to answer") from error
        except aiohttp.ClientError as error:
            raise ServerBusy(EngineFailed(f"{self.url} cannot be reached: {error!r}")) from error
        async with response:
            if response.status != 200:
                refusal = await _refusal(response, path)
                if response.status in _RETRIABLE:
                    raise ServerBusy(refusal, refusal.retry_after_s if "Retry-After" in response.headers else None)
                raise refusal
            rest = b""
            async for data in response.content.iter_any():
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > _EVENT_BYTES:
                    raise EngineFailed(f"{self.url}{path} sends an event of more than {_EVENT_BYTES} bytes")
                events = [line[5:].strip() for line in lines if line.startswith(b"data:")]
                ended = b"[DONE]" in events
                if ended:
                    events = events[: events.index(b"[DONE]")]
                parsed: list[dict[str, Any]] = []
                try:
                    parsed.extend(json.loads(event) for event in events)
                except ValueError as error:
                    yield parsed
                    raise EngineFailed(f"{self.url}{path} streams what is not JSON: {error}") from error
                if parsed:
                    yield parsed
                if ended:
                    return


async def _refusal(response: aiohttp.ClientResponse, path: str) -> TokenworksError:
    """The error that an answer other than 200 is."""
    text = await response.text()
    try:
        answer = json.loads(text)
        error = answer.get("error", answer)
        message = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        message = text[:500]
    told = f"{path} answers {response.status}: {message}"
    after_s = _retry_after_s(response.headers.get("Retry-After", ""))
    if response.status == 429:
        return QueueFull(told, retry_after_s=after_s)
    if response.status >= 500 or response.status in {401, 403, 404}:
        return EngineFailed(told, retry_after_s=after_s)
    if "context" in message and ("length" in message or "size" in message):
        return PromptTooLong(told)
    return InvalidRequest(told)


def _retry_after_s(header: str) -> float | None:
    """Seconds; a date, which no server of tokens sends, counts as nothing said."""
    try:
        return max(0.0, float(header))
    except ValueError:
        return None


class VllmTokenizer:
    """The `Tokenizer` that vLLM's server is, and SGLang's: `/tokenize` and `/detokenize`."""

    def __init__(self, server: OpenAiServer, model: str) -> None:
        self._server = server
        self._model = model

    async def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        return await self._ids({"prompt": text, "add_special_tokens": special})

    async def encode_chat(self, chat: Sequence[ChatMessage]) -> tuple[int, ...]:
        messages = [message.as_openai() for message in chat]
        return await self._ids({"messages": messages, "add_generation_prompt": True})

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        body = {"model": self._model, "tokens": list(token_ids)}
        return str((await self._server.ask("POST", "/detokenize", body))["prompt"])

    async def _ids(self, body: dict[str, Any]) -> tuple[int, ...]:
        return tuple((await self._server.ask("POST", "/tokenize", {"model": self._model, **body}))["tokens"])
