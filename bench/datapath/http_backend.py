"""An OpenAI-compatible server without an engine: `python -m bench.datapath.http_backend --port N`.

In: `POST /v1/chat/completions` (and `/v1/completions`), of which `max_tokens`, `seed` (milliseconds per step),
`stream` and `stream_options` count. Out: server-sent events in vLLM's shape, one per token, all streams of a pace in
one step. The routes by which routers look at a server (health, models, versions) answer as vLLM's do.
"""

import argparse
import asyncio
import json
import socket
from dataclasses import dataclass
from typing import Any, Final, cast

import uvloop

from bench.datapath.answers import TOKEN_TEXT
from bench.datapath.pacing import Due, Steps

MODEL: Final = "llama-3.1-8b"  # the mesh has it in its catalogue
CONTEXT_TOKENS: Final = 131_072
PROMPT_TOKENS: Final = 16
_DRAIN_BYTES: Final = 64 << 20
_START: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_JSON: Final = b"Content-Type: application/json\r\n"


@dataclass(slots=True)
class _Stream:
    """One answer under way; `event` is the event of one token."""

    connection: "_Connection"
    event: bytes
    end: bytes


class Engine:
    """All streams of this server, by the milliseconds of their steps."""

    def __init__(self) -> None:
        self._paces: dict[float, Steps[int]] = {}
        self._streams: dict[int, _Stream] = {}
        self._running: dict[float, asyncio.Task[None]] = {}
        self._made = 0

    def start(self, stream: _Stream, wanted: int, step_ms: float) -> int:
        """The number of the stream here."""
        self._made += 1
        self._streams[self._made] = stream
        steps = self._paces.setdefault(step_ms, Steps(step_ms))
        steps.add(self._made, wanted)
        asyncio.get_running_loop().call_soon(self._first, steps, self._made)
        return self._made

    def stop(self, number: int) -> None:
        self._streams.pop(number, None)
        for steps in self._paces.values():
            steps.remove(number)

    def _first(self, steps: Steps[int], number: int) -> None:
        due = steps.first(number)
        if due is not None:
            self._send(due)
        if steps and steps.step_ms not in self._running:
            self._running[steps.step_ms] = asyncio.create_task(self._run(steps))

    async def _run(self, steps: Steps[int]) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while steps:
                await asyncio.sleep(max(0.0, steps.next_step_s(clock()) - clock()))
                for due in steps.step():
                    self._send(due)
        finally:
            del self._running[steps.step_ms]

    def _send(self, due: Due[int]) -> None:
        stream = self._streams[due.key]
        if due.last:
            del self._streams[due.key]
            stream.connection.finish(stream.event + stream.end)
        else:
            stream.connection.transport.write(stream.event)


class _Connection(asyncio.Protocol):
    """One client's connection: requests one after the other."""

    transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = b""
        self._number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        self.transport.set_write_buffer_limits(_DRAIN_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.stop(self._number)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while not self._number:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            lines = head.split(b"\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
            if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
                body, whole, rest = _dechunked(rest)
            else:
                length = int(fields.get(b"content-length", b"0"))
                body, whole, rest = rest[:length], len(rest) >= length, rest[length:]
            if not whole:
                return
            self._buffer = rest
            method, target, _ = lines[0].decode("ascii").split(" ", 2)
            self._answer(method, target.partition("?")[0], body)

    def finish(self, last: bytes) -> None:
        """The last bytes of the answer under way; the next request may follow."""
        self.transport.write(last)
        self._number = 0
        if self._buffer:
            self.data_received(b"")

    def _answer(self, method: str, path: str, body: bytes) -> None:
        if method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
            self._complete(json.loads(body), chat=path.endswith("chat/completions"))
            return
        looked_at = _LOOKED_AT.get(path)
        if looked_at is None:
            self._send(b"404 Not Found", b'{"error": {"message": "no such route", "type": "NotFoundError"}}')
        else:
            self._send(b"200 OK", json.dumps(looked_at).encode())

    def _send(self, status: bytes, body: bytes) -> None:
        self.transport.write(b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, _JSON, len(body), body))

    def _complete(self, asked: dict[str, Any], *, chat: bool) -> None:
        wanted = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 16)
        if not asked.get("stream"):
            self._send(b"200 OK", json.dumps(_whole(wanted, chat=chat)).encode())
            return
        with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        stream = _Stream(self, _TOKEN[chat], _last(wanted, chat=chat, with_usage=with_usage))
        start = (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self.transport.write(start + (_ROLE if chat else b""))
        self._number = self._engine.start(stream, wanted, float(asked.get("seed") or 0))


def _dechunked(data: bytes) -> tuple[bytes, bool, bytes]:
    """A chunked body, whether it is whole, and what follows it."""
    body = b""
    while True:
        line, separator, rest = data.partition(b"\r\n")
        if not separator:
            return body, False, b""
        size = int(line.split(b";")[0], 16)
        if len(rest) < size + 2:
            return body, False, b""
        if size == 0:
            return body, True, rest[2:]
        body, data = body + rest[:size], rest[size + 2 :]


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def _event(choices: list[dict[str, Any]], *, chat: bool, **more: Any) -> bytes:
    shape = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": choices,
        **more,
    }
    return _chunk(b"data: %b\n\n" % json.dumps(shape, separators=(",", ":")).encode())


def _choice(text: str, finish: str | None, *, chat: bool, role: bool = False) -> dict[str, Any]:
    said: dict[str, Any] = {"text": text}
    if chat:
        said = {"delta": {"role": "assistant", "content": text} if role else {"content": text}}
    return {"index": 0, **said, "logprobs": None, "finish_reason": finish}


def _usage(tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + tokens,
        "completion_tokens": tokens,
    }


def _last(tokens: int, *, chat: bool, with_usage: bool) -> bytes:
    """What follows the last token's event."""
    end = _event([_choice("", "length", chat=chat)], chat=chat)
    if with_usage:
        end += _event([], chat=chat, usage=_usage(tokens))
    return end + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _whole(tokens: int, *, chat: bool) -> dict[str, Any]:
    text = TOKEN_TEXT * tokens
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": "length"}],
        "usage": _usage(tokens),
    }


_ROLE: Final = _event([_choice("", None, chat=True, role=True)], chat=True)
_TOKEN: Final = {chat: _event([_choice(TOKEN_TEXT, None, chat=chat)], chat=chat) for chat in (True, False)}
_MODELS: Final = {
    "object": "list",
    "data": [
        {"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "vllm", "max_model_len": CONTEXT_TOKENS}
    ],
}
_LOOKED_AT: Final[dict[str, Any]] = {
    "/health": {},
    "/ping": {},
    "/v1/models": _MODELS,
    f"/v1/models/{MODEL}": _MODELS["data"][0],
    "/version": {"version": "0.11.0"},
}


async def serve(host: str, port: int) -> None:
    engine = Engine()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(engine), host, port, backlog=4096)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvloop.run(serve(options.host, options.port))


if __name__ == "__main__":
    main()
