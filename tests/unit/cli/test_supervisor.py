"""With real processes: what counts here is what the operating system does."""

import asyncio
import os
import select
import signal
import sys
from dataclasses import replace

import pytest

from services.cli.layout import ServiceSpec
from services.cli.output import CommandFailed
from services.cli.readiness import free_ports, is_free, probe
from services.cli.supervisor import ChildState, Supervisor

DEADLINE_S = 30


def service(name, behaviour="obedient"):
    (port,) = free_ports("127.0.0.1", 1)
    return ServiceSpec(
        id=name,
        kind="worker",
        module=("tests.unit.cli.child_service",),
        environment={"BEHAVIOUR": behaviour, "PORT": str(port)},
        ready_at=f"127.0.0.1:{port}",
    )


@pytest.fixture
async def supervise(tmp_path):
    made = []

    def make(*specs, on_event=lambda words: None):
        made.append(Supervisor(specs, tmp_path, on_event))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.kill_all()
        await supervisor.stop(list(supervisor.children), DEADLINE_S)


async def test_services_become_ready_and_stop_when_told(supervise):
    supervisor = supervise(service("a"), service("b"))
    await supervisor.start(["a", "b"])
    await supervisor.until_ready(["a", "b"])
    child = supervisor.children["a"]
    assert (child.state, child.ready_after_s is not None) == (ChildState.READY, True)
    assert await supervisor.stop(["a", "b"], DEADLINE_S) == []
    assert child.state is ChildState.STOPPED
    assert await probe(child.spec.ready_at) == ""


async def test_early_death_fails_the_start_with_the_last_log_lines(supervise):
    supervisor = supervise(service("a", "crash"))
    await supervisor.start(["a"])
    with pytest.raises(CommandFailed, match=r"a ended while starting \(status 3\).*\n.*\nwhat went wrong") as caught:
        await supervisor.until_ready(["a"])
    assert caught.value.reason == "ServiceNotStarted"
    assert any("status 3" in words for words in await supervisor.stop(["a"], DEADLINE_S))


async def test_service_that_is_not_ready_in_time_is_named(supervise):
    supervisor = supervise(replace(service("a", "never ready"), ready_within_s=0.2))
    await supervisor.start(["a"])
    with pytest.raises(CommandFailed, match=r"a was not ready within 0\.2 s"):
        await supervisor.until_ready(["a"])


async def test_service_that_says_it_has_failed_is_not_waited_for(supervise):
    supervisor = supervise(service("a", "failing"))
    await supervisor.start(["a"])
    with pytest.raises(CommandFailed, match="a cannot serve: no such model"):
        await supervisor.until_ready(["a"])
    assert await supervisor.stop(["a"], DEADLINE_S) == []


async def test_service_runs_with_the_interpreter_that_its_spec_names(supervise, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho chosen\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    supervisor = supervise(replace(service("a"), python=str(python)))
    await supervisor.start(["a"])
    await supervisor.until_ready(["a"])
    assert "chosen" in supervisor.children["a"].log_tail


async def test_service_that_dies_later_is_started_again_and_told(supervise):
    told = asyncio.Queue()
    supervisor = supervise(service("a"), on_event=told.put_nowait)
    await supervisor.start(["a"])
    await supervisor.until_ready(["a"])
    supervisor.keep_running()
    os.kill(supervisor.children["a"].process.pid, signal.SIGKILL)
    async with asyncio.timeout(DEADLINE_S):
        assert "a ended unexpectedly (signal SIGKILL); it starts again in 0.5 s" in await told.get()
        assert await told.get() == "a is back"
    assert await supervisor.stop(["a"], DEADLINE_S) == []


async def test_service_that_ignores_the_signal_is_killed_and_told(supervise):
    supervisor = supervise(service("a", "stubborn"))
    await supervisor.start(["a"])
    await supervisor.until_ready(["a"])
    (complaint,) = await supervisor.stop(["a"], 0.2)
    assert "a had to be killed" in complaint


async def test_log_of_the_run_before_is_kept_beside(supervise, tmp_path):
    (tmp_path / "a.log").write_text("before")
    supervisor = supervise(service("a"))
    await supervisor.start(["a"])
    await supervisor.until_ready(["a"])
    assert (tmp_path / "a.log.1").read_text() == "before"
    assert "obedient as" in supervisor.children["a"].log_tail


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties children to parents on Linux only")
async def test_children_end_when_the_parent_is_killed(tmp_path):
    spec = service("a")
    script = (
        "import asyncio, pathlib\n"
        "from services.cli.layout import ServiceSpec\n"
        "from services.cli.supervisor import Supervisor\n"
        "async def main():\n"
        f"    spec = {spec!r}\n"
        f"    supervisor = Supervisor([spec], pathlib.Path({str(tmp_path)!r}), print)\n"
        "    await supervisor.start(['a'])\n"
        "    await supervisor.until_ready(['a'])\n"
        "    print(supervisor.children['a'].process.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(DEADLINE_S):
        child = os.pidfd_open(int(await parent.stdout.readline()))
        parent.kill()
        await parent.wait()
        ended, _, _ = await asyncio.to_thread(select.select, [child], [], [], DEADLINE_S)
    os.close(child)
    assert ended == [child]
    assert await probe(spec.ready_at) == ""


async def test_taken_port_is_seen():
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert not is_free("127.0.0.1", port)
    server.close()
    await server.wait_closed()
    assert is_free("127.0.0.1", port)


async def test_probe_tells_states_apart():
    async def draining(reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.0 503 Service Unavailable\r\n\r\ndraining\n")
        writer.close()

    server = await asyncio.start_server(draining, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await probe(f"127.0.0.1:{port}") == "draining"
    server.close()
    await server.wait_closed()
    assert await probe(f"127.0.0.1:{port}") == ""
