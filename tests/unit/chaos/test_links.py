"""A link carries bytes, holds them back while it is cut, resets and refuses when it is severed, and carries again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from services.chaos.links import Link

DEADLINE_S = 10.0


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionResetError):
        while line := await reader.readline():
            writer.write(line)
    await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    """Before a server that says again what it is told."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    link = Link("127.0.0.1", ("127.0.0.1", server.sockets[0].getsockname()[1]))
    await link.open()
    yield link
    await link.close()
    server.close()
    await server.wait_closed()


async def said_again(link: Link, line: bytes = b"hello\n") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        writer.write(line)
        async with asyncio.timeout(DEADLINE_S):
            return await reader.readline()
    finally:
        await _closed(writer)


async def test_what_is_sent_while_a_link_is_cut_arrives_once_it_is_mended(link: Link) -> None:
    assert await said_again(link) == b"hello\n"
    link.cut()
    saying = asyncio.create_task(said_again(link, b"late\n"))
    done, _ = await asyncio.wait([saying], timeout=0.05)
    assert not done
    await link.mend()
    assert await saying == b"late\n"


async def test_a_severed_link_resets_what_stands_refuses_what_comes_and_carries_again_on_its_port(link: Link) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    writer.write(b"first\n")
    assert await reader.readline() == b"first\n"
    port = link.port
    await link.sever()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    await _closed(writer)
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await said_again(link)
    await link.mend()
    assert link.port == port
    assert await said_again(link) == b"hello\n"


async def test_a_late_link_holds_everything_for_that_long(link: Link) -> None:
    link.delay(0.1)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert await said_again(link) == b"hello\n"
    assert loop.time() - began_s >= 0.2  # there and back
