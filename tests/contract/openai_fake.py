"""A server that speaks OpenAI's API, or nearly: what it answers, and what it has beside it, is up to the case."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from services.mesh.clock import SystemClock
from services.mesh.settings import WorkerSettings
from services.worker.contract.running import Running, started
from services.worker.engines.openai import OpenAiEngine

WORDS = ("one", " two", " three", " four", " five")
Answer = Callable[["Server", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Server:
    """An OpenAI-compatible server whose answers the case decides."""

    def __init__(
        self, answer: Answer, *, tells_ids: bool = False, pages: Mapping[str, Any] | None = None, **entry: Any
    ) -> None:
        """`pages`: what else it answers, by path; text as it is, else as JSON. `entry`: more of its model's."""
        self._answer = answer
        self._tells_ids = tells_ids
        self._entry = {"id": "served-name", "object": "model"} | ({"max_model_len": 64} if tells_ids else {}) | entry
        self.pages = dict(pages or {})
        self.healthy = True
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.asked = asyncio.Event()
        self.left = asyncio.Event()  # a client has gone away while it was answered
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        for path in self.pages:
            app.router.add_get(path, self._page)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._completions)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        self.http = TestServer(app)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [self._entry]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 500)

    async def _page(self, request: web.Request) -> web.Response:
        page = self.pages[request.path]
        return web.Response(text=page) if isinstance(page, str) else web.json_response(page)

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not self._tells_ids:
            raise web.HTTPNotFound
        body = await request.json()
        text = body.get("prompt") or "".join(message["content"] for message in body["messages"])
        return web.json_response({"tokens": list(text.encode()), "max_model_len": 64})

    async def _detokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"prompt": bytes((await request.json())["tokens"]).decode()})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):  # the engine finds out whether ids are told
            return web.json_response({"choices": [{"text": "o", "token_ids": [1] if self._tells_ids else None}]})
        self.bodies.append(body)
        self.paths.append(request.path)
        self.asked.set()
        try:
            return await self._answer(self, request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left.set()
            raise


async def begin(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


async def send(response: web.StreamResponse, chunk: dict[str, Any] | str) -> None:
    data = chunk if isinstance(chunk, str) else json.dumps(chunk)
    await response.write(f"data: {data}\n\n".encode())


def piece(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


def usage(completion_tokens: int, prompt_tokens: int = 5) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}


def words(told: int, **more: Any) -> Answer:
    """Five tokens, one a chunk; the usage tells `told`."""

    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin(request)
        for number, word in enumerate(WORDS):
            extra = {"token_ids": [number + 1]} if body.get("return_token_ids") else {}
            await send(response, piece(word, **extra))
        await send(response, piece("", "stop", **more))
        await send(response, usage(told))
        await send(response, "[DONE]")
        return response

    return answer


@asynccontextmanager
async def serving(
    answer: Answer,
    *,
    tells_ids: bool = False,
    pages: Mapping[str, Any] | None = None,
    entry: Mapping[str, Any] | None = None,
    watch_s: float = 1.0,
    on_failure: Callable[[str], None] | None = None,
    **changes: Any,
) -> AsyncIterator[tuple[Running, Server]]:
    """A server, and the engine in front of it."""
    server = Server(answer, tells_ids=tells_ids, pages=pages, **(entry or {}))
    await server.http.start_server()
    base = {"models": ("ours",), "openai_url": str(server.http.make_url("/v1")), "context_tokens": 64, "max_batch": 4}
    engine = OpenAiEngine(WorkerSettings(**{**base, **changes}), SystemClock(), watch_s=watch_s, retry_for_s=1.0)
    try:
        async with started(Running(engine, "ours", on_failure=on_failure)) as running:
            yield running, server
    finally:
        await server.http.close()


def complaints(running: Running) -> int:
    return running.engine.stats().complaints
