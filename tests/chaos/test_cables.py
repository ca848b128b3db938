"""A network between two hosts that is cut by the kernel; nothing of it stays, however who made it ended."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.chaos.cables import Cable, CableUnavailable, laid

pytestmark = pytest.mark.mesh

_NAMESPACES, _INTERFACES = Path("/var/run/netns"), Path("/sys/class/net")
_HOLD = """
import sys
from services.chaos.cables import laid
with laid() as cable:
    print(cable.namespace, flush=True)
    sys.stdin.read()
"""
_SERVE = """
import asyncio
import sys
from services.chaos.cables import enter

async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()

async def main():
    server = await asyncio.start_server(echo, sys.argv[2], 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

enter(sys.argv[1])
asyncio.run(main())
"""


@pytest.fixture
def cable() -> Iterator[Cable]:
    try:
        with laid() as cable:
            yield cable
    except CableUnavailable as reason:
        pytest.skip(str(reason))


def _left(namespace: str) -> list[Path]:
    return [each for each in (_NAMESPACES / namespace, _INTERFACES / f"{namespace}h") if each.exists()]


async def test_what_is_sent_while_a_cable_is_unplugged_arrives_once_it_is_plugged_in(cable: Cable) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVE, cable.namespace, cable.far, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60.0):
            assert server.stdout is not None
            port = int(await server.stdout.readline())
            reader, writer = await asyncio.open_connection(cable.far, port)
            writer.write(b"one\n")
            assert await reader.readline() == b"one\n"
            cable.unplug()
            writer.write(b"two\n")
            answer = asyncio.create_task(reader.readline())
            done, _ = await asyncio.wait([answer], timeout=0.3)
            assert not done
            cable.plug_in()
            assert await answer == b"two\n"
            writer.close()
    finally:
        server.kill()
        await server.wait()


async def test_whoever_lays_a_cable_removes_those_of_runs_that_were_killed(cable: Cable) -> None:
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    namespace = (await holder.stdout.readline()).decode().strip()
    assert namespace == f"twc{holder.pid}"
    assert len(_left(namespace)) == 2
    holder.send_signal(signal.SIGKILL)
    await holder.wait()
    assert len(_left(namespace)) == 2, "nobody has cleaned up yet"
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", _HOLD, stdin=asyncio.subprocess.DEVNULL)
    assert await other.wait() == 0
    assert _left(namespace) == _left(f"twc{other.pid}") == []
    assert len(_left(cable.namespace)) == 2, "that of a run that goes on stays"


def test_without_the_right_to_make_one_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CableUnavailable, match="iproute2"), laid():
        pass
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CableUnavailable, match=r"root|iproute2"), laid():
        pass
