"""The HTTP server on a free port: bad bytes are a peer's, and silence has an end."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from services.mesh.httpd import FIRST_REQUEST_S, HttpServer
from services.mesh.lifecycle import Lifecycle
from services.mesh.telemetry import start_telemetry


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    telemetry = start_telemetry("router", "router-0")
    server = HttpServer(telemetry, Lifecycle("router"))
    await server.start("127.0.0.1", 0)
    yield server
    await server.stop()
    telemetry.shutdown()


async def _answer(server: HttpServer, said: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(said)
    answer = await asyncio.wait_for(reader.read(65_536), 10)
    writer.close()
    return answer


async def test_what_is_no_http_is_refused_and_leaves_no_trace_in_the_log(
    server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert (await _answer(server, b"hello\r\n\r\n")).startswith(b"HTTP/1.0 400")
    assert (await _answer(server, b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.0 400")  # without a Host
    assert not caplog.records


async def test_a_client_that_connects_and_says_nothing_is_hung_up_on(server: HttpServer) -> None:
    silent, _silent_writer = await asyncio.open_connection("127.0.0.1", server.port)
    half, half_writer = await asyncio.open_connection("127.0.0.1", server.port)
    half_writer.write(b"GET /healthz HTTP/1.1\r\nHo")
    spoke, spoke_writer = await asyncio.open_connection("127.0.0.1", server.port)
    spoke_writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200" in await asyncio.wait_for(spoke.readuntil(b"ok\n"), 10)
    assert server.hang_up_on_silent(0.0) == 0
    assert server.hang_up_on_silent(FIRST_REQUEST_S) == 2
    assert await asyncio.wait_for(silent.read(), 10) == await asyncio.wait_for(half.read(), 10) == b""
    spoke_writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200" in await asyncio.wait_for(spoke.readuntil(b"ok\n"), 10)
    for writer in (_silent_writer, half_writer, spoke_writer):
        writer.close()


async def test_what_is_expected_and_not_known_is_refused_whatever_its_bytes(
    server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: %s\r\n\r\n"
    assert (await _answer(server, asked % b"\xff\xfe")).startswith(b"HTTP/1.1 417")
    assert (await _answer(server, asked % b"100-Continue")).startswith(b"HTTP/1.1 100")
    assert not caplog.records
