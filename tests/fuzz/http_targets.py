"""Every route of every HTTP server of a mesh, found by asking the applications, and what is no route.

In: a mesh. Out: a target for each. A request goes out as bytes, wrong in its line, headers, framing or body, or broken
off in the middle; unless its framing is right, on a connection of its own. What may come of it: an answer below 500, or
503 and 504 where the mesh says so by name; errors of our routes in OpenAI's shape; or, where the bytes are no HTTP, a
connection that is closed.
"""

import json
from random import Random
from typing import Any, Final

from tests.fuzz.http_caller import HttpConnection
from tests.fuzz.mutations import mutated_bytes
from tests.fuzz.samples import MODEL, TRACEPARENT
from tests.fuzz.target import Wrong
from tests.fuzz.world import MAX_MESSAGE_BYTES, Service, World

_DEADLINE_S: Final = 15.0
_SILENCE_S: Final = 0.02  # a client that said half of it goes away after this
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

    at_once = 64

    def __init__(self, world: World, service: Service, method: str, path: str) -> None:
        self.name = f"http {service.name} {method} {path}" if path else f"http {service.name} no route"
        self._world = world
        self._port = service.http_port
        self._method = method
        self._path = path
        self._worker = service.name == "worker"
        self._warm: list[HttpConnection] = []

    async def one(self, rng: Random, number: int) -> str:
        said, whole, usual = self._request(rng)
        # What is framed as usual leaves its connection as it was; the rest has one of its own, as an attacker would.
        connection = self._warm.pop() if usual and self._warm else await HttpConnection.connect(self._port)
        keeps = False
        try:
            answer = await connection.ask(
                said, _DEADLINE_S if whole else _SILENCE_S, bodyless=said.startswith(b"HEAD ")
            )
            keeps = usual and answer.whole
        except TimeoutError:
            if not whole:
                return "answered in the middle" if connection.heard_anything() else "left in the middle"
            raise Wrong(f"no answer within {_DEADLINE_S:g} s to {said[:200]!r}") from None
        except ConnectionError:
            return "hung up on"
        finally:
            if keeps and not connection.lost:
                self._warm.append(connection)
            else:
                connection.abort()
        self._judge(answer.status, answer.body)
        return str(answer.status) if answer.status else "hung up on"

    async def rest(self) -> None:
        while self._warm:
            self._warm.pop().abort()

    def _judge(self, status: int, body: bytes) -> None:
        if status >= 500 and status not in _ALLOWED_5XX:
            raise Wrong(f"{status}: {body[:300]!r}")
        if status == 503 and self._path.startswith("/v1/") and b'"error"' not in body:
            raise Wrong(f"503 that names no error: {body[:300]!r}")

    def _request(self, rng: Random) -> tuple[bytes, bool, bool]:
        """The bytes, whether they are a whole request that must be answered, and whether their framing is as usual."""
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
        odd = rng.random() < 0.25
        if odd:
            headers.append(rng.choice(_HEADERS))
        framing, framed, usual = _framed(body, rng)
        headers += framing
        version = rng.choice(("HTTP/1.1",) * 20 + ("HTTP/1.0", "HTTP/2.0", "HTTP/9.9", "HTP/1.1", ""))
        head = "\r\n".join((f"{method} {target} {version}", *headers, "", "")).encode("latin-1", "replace")
        said = head + framed
        if rng.random() < 0.1:
            return said[: rng.randrange(len(said))], False, False
        if rng.random() < 0.08:
            return mutated_bytes(said, rng), False, False
        whole = framing != ["Content-Length: 999999"] and not (framing and framed == b"")
        return said, whole, whole and usual and not odd and version == "HTTP/1.1"

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


def _framed(body: bytes, rng: Random) -> tuple[list[str], bytes, bool]:
    """Headers that say how long the body is, the body so framed, and whether that is right; rarely both are wrong."""
    kind = rng.randrange(24)
    if not body and kind > 3:
        return [], b"", True
    match kind:
        case 0:
            return ["Content-Length: 999999"], body, False
        case 1:
            length = rng.choice(("-1", "x", "1e3", "99999999999999999999", "+1", ""))
            return [f"Content-Length: {length}"], body, False
        case 2:
            broken = rng.choice((b"zz\r\n", b"-1\r\n\r\n", b"FFFFFFFFFFFFFFFFF\r\n"))
            return ["Transfer-Encoding: chunked"], broken + body, False
        case 3:
            return ["Transfer-Encoding: chunked", f"Content-Length: {len(body)}"], _chunked(body), False
        case 4 | 5 | 6:
            return ["Transfer-Encoding: chunked"], _chunked(body), True
        case _:
            return [f"Content-Length: {len(body)}"], body, True


def _chunked(body: bytes) -> bytes:
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
