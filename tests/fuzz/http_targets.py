"""Every route of every HTTP server of a mesh, found by asking the applications, and what is no route.

In: a mesh. Out: a target for each. A request goes out as bytes on a connection of its own, wrong in its line, headers,
framing or body, or broken off in the middle. What may come of it: an answer below 500, or 503 and 504 where the mesh
says so by name; errors of our routes in OpenAI's shape; or, where the bytes are no HTTP, a connection that is closed.
"""

import asyncio
import json
from random import Random
from typing import Any, Final

from tests.fuzz.mutations import mutated_bytes
from tests.fuzz.samples import MODEL, TRACEPARENT
from tests.fuzz.target import Wrong
from tests.fuzz.world import MAX_MESSAGE_BYTES, Service, World

_DEADLINE_S: Final = 15.0
_SILENCE_S: Final = 0.02  # a client that said half of it goes away after this
_MOST_READ: Final = 1 << 20
_ALLOWED_5XX: Final = frozenset({503, 504, 505})
_METHODS: Final = (
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "get",
    "B\u00c4D",
    "",
    "X" * 300,
)
_TARGETS: Final = ("/", "//", "/../..", "*", "/v1/%00", "/v1/%zz", "/v1/" + "a" * 9000, "http://elsewhere/v1/models",
                   "/v1/models/%F0%9F%98%80", "/v1/models/a/b/c", "/metrics?x=%ff", "/\x00")  # fmt: skip
_HEADERS: Final = (
    "Expect: 100-continue", "Connection: close", "Connection: upgrade\r\nUpgrade: websocket", "Content-Encoding: gzip",
    "Content-Type: text/plain", "Content-Type: application/json; charset=nonsense", "Content-Type: ;;;",
    "Host: a\r\nHost: b",
    "X-Odd: " + "v" * 7000, "X-Odd: " + "v" * 9000, "Range: bytes=0-1", "Accept: " + "a/b," * 500, "Cookie: a=b; =; c",
    f"traceparent: {TRACEPARENT}", "traceparent: nonsense", "X-Bad\x00Name: v", "No colon", " folded: yes",
    "X-L: \x80\xff",
)  # fmt: skip
_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 16, 1e308, -1e308, 2**31, 2**63, 2**64, 10**400, 0.5, "", "x", "\u0000", "\ud800",
    "y" * 3000, [], {}, [[]], [None], [1, 2, "3"], {"a": {"b": [1]}}, ["x"] * 200, float("nan"), float("inf"),
)  # fmt: skip
_CHAT: Final = {
    "model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "stream": False,
    "temperature": 0.5, "top_p": 0.9, "n": 1, "seed": 7, "stop": ["x"], "slo_class": "standard", "workload": "w",
    "session_id": "s", "request_id": "", "logprobs": False, "top_logprobs": 0, "stream_options": None, "tools": None,
    "tool_choice": None, "response_format": None, "user": "u", "frequency_penalty": 0, "presence_penalty": 0,
    "max_completion_tokens": None, "prompt_cache_key": "", "logit_bias": None, "best_of": None, "suffix": None,
    "top_k": 0, "ignore_eos": False, "metadata": None, "service_tier": None,
}  # fmt: skip
_COMPLETION: Final = {**{key: value for key, value in _CHAT.items() if key != "messages"}, "prompt": "hello"}
_NESTED: Final = ("[" * 5000, '{"a":' * 5000, '{"messages":' + "[" * 2000)


def http_targets(world: World) -> "list[HttpTarget]":
    """One for each route of each service's server, and one for what is none."""
    found = []
    for service in world.services.values():
        routes = {(method, path) for method, path in service.running.http.routes() if method != "HEAD"}
        found += [HttpTarget(world, service, method, path) for method, path in sorted(routes)]
        found.append(HttpTarget(world, service, "", ""))
    return found


class HttpTarget:
    """One route of one service; the empty one is what is no route."""

    def __init__(self, world: World, service: Service, method: str, path: str) -> None:
        self.name = f"http {service.name} {method} {path}" if path else f"http {service.name} no route"
        self._world = world
        self._port = service.http_port
        self._method = method
        self._path = path
        self._worker = service.name == "worker"

    async def one(self, rng: Random) -> str:
        said, whole = self._request(rng)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=_MOST_READ)
        try:
            writer.write(said)
            if not whole:
                return await self._broken_off(reader)
            async with asyncio.timeout(_DEADLINE_S):
                return await self._answer(reader, bodyless=said.startswith(b"HEAD "))
        except TimeoutError:
            raise Wrong(f"no answer within {_DEADLINE_S:g} s to {said[:200]!r}") from None
        except ConnectionError:
            return "hung up on"
        finally:
            writer.transport.abort()

    async def rest(self) -> None:
        pass  # each message has a connection of its own

    async def _broken_off(self, reader: asyncio.StreamReader) -> str:
        try:
            async with asyncio.timeout(_SILENCE_S):
                first = await reader.read(64)
        except TimeoutError:
            return "left in the middle"
        self._judge(_status(first), b"")
        return "answered early" if first else "hung up on"

    async def _answer(self, reader: asyncio.StreamReader, *, bodyless: bool) -> str:
        head = b""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100"):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return "hung up on"
        status, body = _status(head), b""
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:") and status >= 300 and not bodyless:
                body = await reader.readexactly(min(int(line.partition(b":")[2]), _MOST_READ))
        self._judge(status, body)
        return str(status)

    def _judge(self, status: int, body: bytes) -> None:
        if status >= 500 and status not in _ALLOWED_5XX:
            raise Wrong(f"{status}: {body[:300]!r}")
        if status == 503 and self._path.startswith("/v1/") and b'"error"' not in body:
            raise Wrong(f"503 that names no error: {body[:300]!r}")

    def _request(self, rng: Random) -> tuple[bytes, bool]:
        """The bytes, and whether they are a whole request that must be answered."""
        method = self._method or "GET"
        target = self._path.replace("{model:.+}", "{model}").replace("{model}", rng.choice((MODEL, "x", "%2F")))
        if not self._path or rng.random() < 0.05:
            target = rng.choice(_TARGETS)
        if rng.random() < 0.08:
            method = rng.choice(_METHODS)
        if self._worker and self._method == "POST" and rng.random() > 0.05:
            target += f"?placement={self._world.placement(rng)}"
        elif rng.random() < 0.05:
            target += rng.choice(("?", "?a=b&a", "?placement=", "?%", "?" + "q" * 2000, "?traceparent=x"))
        body = self._body(rng) if self._method == "POST" or rng.random() < 0.1 else b""
        headers = [f"Host: 127.0.0.1:{self._port}"] if rng.random() > 0.03 else []
        if rng.random() > 0.04:
            headers.append(f"Authorization: Bearer {self._world.key}")
        elif rng.random() < 0.7:
            headers.append(rng.choice(("Authorization: ", "Authorization: Basic x", "Authorization: Bearer \xff\xfe")))
        if rng.random() < 0.25:
            headers.append(rng.choice(_HEADERS))
        framing, framed = _framed(body, rng)
        headers += framing
        version = rng.choice(("HTTP/1.1",) * 20 + ("HTTP/1.0", "HTTP/2.0", "HTTP/9.9", "HTP/1.1", ""))
        head = "\r\n".join((f"{method} {target} {version}", *headers, "", "")).encode("latin-1", "replace")
        said = head + framed
        if rng.random() < 0.1:
            return said[: rng.randrange(len(said))], False
        if rng.random() < 0.08:
            return mutated_bytes(said, rng), False
        return said, framing != ["Content-Length: 999999"] and not (framing and framed == b"")

    def _body(self, rng: Random) -> bytes:
        whole: dict[str, Any] = dict(_CHAT if "chat" in self._path else _COMPLETION)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
            name = rng.choice((*whole, "no_such_field", "prompt", "messages"))
            whole[name] = rng.choice(_VALUES)
        if rng.random() < 0.3 and "messages" in whole:
            whole["messages"] = _messages(rng)
        if rng.random() < 0.1:
            whole["stream"] = True
        raw = json.dumps(whole).encode()
        match rng.randrange(30):
            case 0:
                return mutated_bytes(raw, rng)
            case 1:
                return rng.choice(_NESTED).encode()
            case 2:
                return b"x" * (MAX_MESSAGE_BYTES + 1)
            case 3:
                return b""
            case 4:
                return raw.decode().encode("utf-16")
            case 5:
                return rng.randbytes(64)
            case _:
                return raw


def _messages(rng: Random) -> list[Any]:
    message: dict[str, Any] = {"role": "user", "content": "hello"}
    name = rng.choice(("role", "content", "tool_calls", "tool_call_id", "name", "audio", "function_call", "refusal"))
    message[name] = rng.choice(_VALUES)
    if rng.random() < 0.3:
        message["content"] = [{"type": rng.choice(("text", "image_url", 7)), "text": rng.choice(_VALUES)}]
    return [message] * rng.choice((1, 1, 2, 300))


def _framed(body: bytes, rng: Random) -> tuple[list[str], bytes]:
    """Headers that say how long the body is, and the body so framed; rarely both are wrong."""
    kind = rng.randrange(24)
    if not body and kind > 3:
        return [], b""
    match kind:
        case 0:
            return ["Content-Length: 999999"], body
        case 1:
            return [f"Content-Length: {rng.choice(('-1', 'x', '1e3', '99999999999999999999', '+1', ''))}"], body
        case 2:
            return ["Transfer-Encoding: chunked"], rng.choice(
                (b"zz\r\n", b"-1\r\n\r\n", b"FFFFFFFFFFFFFFFFF\r\n")
            ) + body
        case 3:
            return ["Transfer-Encoding: chunked", f"Content-Length: {len(body)}"], _chunked(body)
        case 4 | 5 | 6:
            return ["Transfer-Encoding: chunked"], _chunked(body)
        case _:
            return [f"Content-Length: {len(body)}"], body


def _chunked(body: bytes) -> bytes:
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def _status(head: bytes) -> int:
    """Of an answer's first line; 0 for none."""
    if not head:
        return 0
    parts = head.split(b" ", 2)
    if not head.startswith(b"HTTP/") or len(parts) < 2 or not parts[1].isdigit():
        raise Wrong(f"an answer that is no HTTP: {head[:80]!r}")
    return int(parts[1])
