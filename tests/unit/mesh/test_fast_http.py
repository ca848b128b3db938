"""The fast HTTP server on a free port: what a client may rely on of HTTP/1.1, and what no client may do to it."""

import asyncio
import gzip
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from services.mesh.errors import CallerError, Unauthenticated
from services.mesh.fast_http import FastHttpServer, HttpRoute, rest_of
from services.mesh.http1 import BODY_S, FIRST_REQUEST_S, HEAD_S, HIGH_WATER_BYTES, IDLE_S, UNREAD_S
from services.mesh.http_call import EVENT_STREAM, TEXT, HttpCall, fields_of
from services.mesh.lifecycle import Lifecycle
from services.mesh.telemetry import start_telemetry

LIMIT = 100_000
DEADLINE_S = 10.0


class Site:
    """Routes that say what they got; `gate` holds those of `/held` until it is set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.served: list[HttpCall] = []
        self.cancelled = 0
        self.parts: asyncio.Queue[bytes] = asyncio.Queue()

    def routes(self) -> list[HttpRoute]:
        return [
            HttpRoute("POST", "/echo", self._echo),
            HttpRoute("GET", "/held", self._held),
            HttpRoute("GET", "/parts", self._parts),
            HttpRoute("GET", "/flood", self._flood),
            HttpRoute("GET", "/under/{name}", self._under),
            HttpRoute("POST", "/locked", self._echo, _locked),
            HttpRoute("GET", "/defect", self._defect),
        ]

    async def _echo(self, call: HttpCall) -> None:
        self.served.append(call)
        call.answer(200, TEXT, call.inflated(LIMIT))

    async def _held(self, call: HttpCall) -> None:
        self.served.append(call)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        call.answer(200, TEXT, b"held " + call.query)

    async def _parts(self, call: HttpCall) -> None:
        call.begin(EVENT_STREAM, fields_of([("x-odd", "a\r\nb: c")]))
        while part := await self.parts.get():
            call.push(part)
        call.end(b"end")

    async def _flood(self, call: HttpCall) -> None:
        self.served.append(call)
        call.begin(EVENT_STREAM)
        for _ in range(1000):
            if not call.has_room:
                room = asyncio.Event()
                call.tell_of_room(room.set)
                await room.wait()
            call.push(b"x" * 10_000)
        call.end()

    async def _under(self, call: HttpCall) -> None:
        call.answer(200, TEXT, rest_of(call, "/under/{name}").encode())

    async def _defect(self, call: HttpCall) -> None:
        raise ZeroDivisionError


def _locked(call: HttpCall) -> None:
    if not call.header(b"authorization"):
        raise Unauthenticated("no key was sent")


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
async def server(site: Site) -> AsyncIterator[FastHttpServer]:
    telemetry = start_telemetry("router", "router-0")
    server = FastHttpServer(telemetry, Lifecycle("router"), routes=site.routes(), max_body_bytes=LIMIT)
    await server.start("127.0.0.1", 0)
    yield server
    await server.stop(0.1)
    telemetry.shutdown()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, said: bytes) -> None:
        self.writer.write(said)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next one."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        status = int(head.split(b" ")[1])
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return status, await asyncio.wait_for(self.reader.readexactly(int(line[15:])), DEADLINE_S)
        return status, head

    async def rest(self) -> bytes:
        """All that comes until the server hangs up."""
        return await asyncio.wait_for(self.reader.read(-1), DEADLINE_S)


Connect = Callable[[], Awaitable[Client]]


@pytest.fixture
async def connect(server: FastHttpServer) -> AsyncIterator[Connect]:
    clients: list[Client] = []

    async def one() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", server.port)))
        return clients[-1]

    yield one
    for each in clients:
        each.writer.transport.abort()


async def _eventually(holds: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < ends_s, f"not within {DEADLINE_S:g} s"
        await asyncio.sleep(0.001)


def request(line: str, body: bytes = b"", *fields: str) -> bytes:
    length = [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join((f"{line} HTTP/1.1", "Host: x", *length, *fields, "", "")).encode() + body


async def test_requests_on_one_connection_are_answered_in_their_order(connect: Connect, site: Site) -> None:
    client = await connect()
    client.say(request("GET /held?1") + request("GET /held?2") + request("POST /echo", b"three"))
    await _eventually(lambda: len(site.served) == 1)
    site.gate.set()
    answers = [await client.answer() for _ in range(3)]
    assert answers == [(200, b"held 1"), (200, b"held 2"), (200, b"three")]


async def test_a_client_that_sends_far_ahead_is_not_read_until_it_is_answered(connect: Connect, site: Site) -> None:
    client = await connect()
    wanted = 5000
    client.say(b"".join(request("POST /echo", b"%d" % each) for each in range(wanted)))
    assert [await client.answer() for _ in range(wanted)] == [(200, b"%d" % each) for each in range(wanted)]


async def test_a_request_may_come_byte_by_byte(connect: Connect) -> None:
    client = await connect()
    for byte in request("POST /echo", b"slow"):
        client.say(bytes((byte,)))
        await asyncio.sleep(0)
    assert await client.answer() == (200, b"slow")


async def test_a_body_in_chunks_is_put_together_and_its_trailers_are_nobodys_headers(
    connect: Connect, site: Site
) -> None:
    client = await connect()
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.say(head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nAuthorization: Bearer x\r\n\r\n" + request("POST /echo", b"2"))
    assert [await client.answer(), await client.answer()] == [(200, b"abcde"), (200, b"2")]
    assert all(not each.header(b"authorization") for each in site.served)


async def test_what_two_servers_could_read_differently_is_refused(connect: Connect) -> None:
    for said in (
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"hello\r\n\r\n",
    ):
        client = await connect()
        client.say(said)
        assert (await client.rest()).startswith(b"HTTP/1.1 400"), said


async def test_bad_bytes_leave_no_trace_in_the_log_and_what_came_before_them_is_answered(
    connect: Connect, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = await connect()
    client.say(request("GET /held?x") + b"nonsense\r\n\r\n")
    await _eventually(lambda: len(site.served) == 1)
    site.gate.set()
    said = await client.rest()
    assert said.startswith(b"HTTP/1.1 200")
    assert b"held xHTTP/1.1 400" in said
    assert not caplog.records


async def test_a_head_has_a_bound_however_it_comes(connect: Connect) -> None:
    for said in (
        request("GET /healthz", b"", "X: " + "v" * 70_000),
        request("GET /healthz", b"", *(f"X-{each}: v" for each in range(200))),
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"v" * 100_000,
    ):
        client = await connect()
        client.say(said)
        assert (await client.rest()).startswith(b"HTTP/1.1 431")
    client = await connect()
    client.say(request("GET /" + "a" * 9000))
    assert (await client.rest()).startswith(b"HTTP/1.1 414")


async def test_a_body_has_a_bound_which_is_told_while_it_is_still_being_sent(connect: Connect) -> None:
    chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for said in (request("POST /echo", b"x" * (LIMIT + 1)), chunked + b"%x\r\n" % LIMIT * 2 + b"x" * 2 * LIMIT):
        client = await connect()
        client.say(said)
        answer = await client.rest()
        assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
    client = await connect()
    client.say(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n")
    assert (await client.rest()).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


async def test_a_body_that_need_not_come_is_refused_before_it_does(connect: Connect) -> None:
    client = await connect()
    client.say(b"POST /locked HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
    status, body = await client.answer()
    assert (status, b"no key" in body) == (401, True)
    assert await client.rest() == b""


async def test_of_a_refused_request_nothing_is_read_any_more(connect: Connect, site: Site) -> None:
    locked = b"POST /locked HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for behind in (b"zz\r\n", b"0\r\n\r\n" + request("POST /echo", b"abc")):
        client = await connect()
        client.say(locked + behind)
        said = await client.rest()
        assert (said.startswith(b"HTTP/1.1 401"), said.count(b"HTTP/1.1")) == (True, 1)
    assert not site.served


async def test_a_client_that_waits_for_100_is_told_to_go_on(connect: Connect) -> None:
    client = await connect()
    client.say(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert (await client.answer())[0] == 100
    client.say(b"abc")
    assert await client.answer() == (200, b"abc")
    client.say(request("POST /echo", b"abc", "Expect: the-unexpected"))
    assert (await client.rest()).startswith(b"HTTP/1.1 417")


async def test_an_offer_of_another_protocol_is_passed_over(connect: Connect) -> None:
    client = await connect()
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    client.say(b"".join(request("POST /echo", b"%d" % each, *upgrade) for each in range(500)))
    assert [await client.answer() for _ in range(500)] == [(200, b"%d" % each) for each in range(500)]
    client.say(b"CONNECT elsewhere:80 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 405")


async def test_versions_other_than_1_are_told_so(connect: Connect) -> None:
    client = await connect()
    client.say(b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 505")


async def test_an_older_client_gets_its_answer_without_chunks(connect: Connect, site: Site) -> None:
    client = await connect()
    for part in (b"one ", b"two ", b""):
        site.parts.put_nowait(part)
    client.say(b"GET /parts HTTP/1.0\r\n\r\n")
    head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert body == b"one two end"
    assert b"connection: close" in head.lower()


async def test_parts_leave_as_they_are_pushed_and_headers_hold_one_line(connect: Connect, site: Site) -> None:
    client = await connect()
    client.say(request("GET /parts"))
    site.parts.put_nowait(b"one")
    head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
    assert b"x-odd: ab: c\r\n" in head
    assert await asyncio.wait_for(client.reader.readexactly(8), DEADLINE_S) == b"3\r\none\r\n"
    site.parts.put_nowait(b"")
    assert await asyncio.wait_for(client.reader.readexactly(13), DEADLINE_S) == b"3\r\nend\r\n0\r\n\r\n"


async def test_a_client_that_leaves_cancels_what_is_done_for_it(
    connect: Connect, site: Site, server: FastHttpServer
) -> None:
    client = await connect()
    client.say(request("GET /held"))
    await _eventually(lambda: len(site.served) == 1)
    client.writer.transport.abort()
    await _eventually(lambda: site.cancelled == 1 and not server.connections)


async def test_a_client_that_does_not_read_holds_little_and_is_hung_up_on_in_the_end(
    server: FastHttpServer, site: Site
) -> None:
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(small, ("127.0.0.1", server.port))
    await loop.sock_sendall(small, request("GET /flood"))
    await _eventually(lambda: any(each.full for each in server.connections))
    (connection,) = server.connections
    assert connection._transport.get_write_buffer_size() < 4 * HIGH_WATER_BYTES + 10_000
    now_s = loop.time()
    server.hang_up_on_silent(now_s)
    server.hang_up_on_silent(now_s + UNREAD_S / 2)
    assert not connection._transport.is_closing()
    server.hang_up_on_silent(now_s + UNREAD_S + 1)
    await _eventually(lambda: not server.connections)
    small.close()


async def test_silence_has_an_end(connect: Connect, server: FastHttpServer, site: Site) -> None:
    silent, half, spoke, slow, busy = [await connect() for _ in range(5)]
    half.say(b"GET /healthz HTTP/1.1\r\nHo")
    spoke.say(request("GET /healthz"))
    assert await spoke.answer() == (200, b"ok\n")
    slow.say(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na")
    busy.say(request("GET /held"))
    await _eventually(lambda: len(site.served) == 1 and len(server.connections) == 5)
    now_s = asyncio.get_running_loop().time()
    assert server.hang_up_on_silent(now_s) == 0
    assert server.hang_up_on_silent(now_s + max(FIRST_REQUEST_S, HEAD_S)) == 2
    assert (await silent.rest(), await half.rest()) == (b"", b"")
    spoke.say(request("GET /healthz"))
    assert await spoke.answer() == (200, b"ok\n")
    server.hang_up_on_silent(now_s + BODY_S + 1)
    assert (await slow.rest()).startswith(b"HTTP/1.1 504")
    server.hang_up_on_silent(now_s + IDLE_S + 60)
    assert await spoke.rest() == b""
    site.gate.set()
    assert (await busy.answer())[0] == 200


async def test_a_server_that_stops_lets_what_runs_finish(connect: Connect, server: FastHttpServer, site: Site) -> None:
    idle, busy = await connect(), await connect()
    busy.say(request("GET /held?x"))
    await _eventually(lambda: len(site.served) == 1)
    stopping = asyncio.create_task(server.stop(DEADLINE_S))
    assert await idle.rest() == b""
    site.gate.set()
    assert (await busy.rest()).endswith(b"held x")
    await stopping


async def test_a_server_that_stops_does_not_wait_for_ever(connect: Connect, server: FastHttpServer, site: Site) -> None:
    busy = await connect()
    busy.say(request("GET /held"))
    await _eventually(lambda: len(site.served) == 1)
    await server.stop(0.01)
    assert site.cancelled == 1


async def test_a_body_may_be_compressed_within_the_limit(connect: Connect) -> None:
    client = await connect()
    client.say(request("POST /echo", gzip.compress(b"abc" * 100), "Content-Encoding: gzip"))
    assert await client.answer() == (200, b"abc" * 100)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_a_body_that_is_not_compressed_as_it_says_is_the_callers_error(encoding: str) -> None:
    nobody: Any = None
    call = HttpCall(
        nobody, b"POST", b"/", b"", {b"content-encoding": encoding.encode()}, version_11=True, keep_alive=True
    )
    for body in (b"{}", gzip.compress(b"x" * (LIMIT + 1)), gzip.compress(b"abc" * 50)[:-9]):
        call.body = body
        with pytest.raises(CallerError):
            call.inflated(LIMIT)


async def test_paths_and_methods(connect: Connect) -> None:
    client = await connect()
    client.say(request("GET /nothing") + request("DELETE /echo") + request("GET /under/a%2Fb/c"))
    client.say(request("HEAD /healthz") + request("GET http://x/healthz?y"))
    assert (await client.answer())[0] == 404
    head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
    assert head.startswith(b"HTTP/1.1 405")
    assert b"Allow: POST\r\n" in head
    await client.reader.readexactly(len(b"405: Method Not Allowed\n"))
    assert await client.answer() == (200, b"a/b/c")
    assert (await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), DEADLINE_S)).startswith(b"HTTP/1.1 200")
    assert await client.answer() == (200, b"ok\n")


async def test_a_defect_hangs_up_and_is_logged(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    client = await connect()
    client.say(request("GET /defect"))
    assert await client.rest() == b""
    assert "a defect in an answer" in caplog.text


async def test_metrics_and_readiness_are_served(connect: Connect) -> None:
    client = await connect()
    client.say(request("GET /metrics") + request("GET /readyz"))
    assert (await client.answer())[0] == 200
    assert await client.answer() == (503, b"starting\n")
