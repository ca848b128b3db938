"""Keeps a mesh's processes on this machine: starts them, knows how they are, starts again what dies, stops in order.

In: `ServiceSpec`s. Out: processes whose output is in `<log_dir>/<id>.log` (the run before in `.log.1`), their states,
and events in words. Children are in sessions of their own, so Ctrl-C in the terminal reaches only the supervisor, which
stops them in the mesh's order; and they are tied to it (`mesh/child.py`), so they end when it is killed.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from services.cli.layout import ServiceSpec
from services.cli.output import CommandFailed
from services.cli.readiness import probe
from services.mesh.child import tied

_PROBE_EVERY_S: Final = 0.1
_FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 30.0
_SETTLED_S: Final = 60.0  # a child that ran this long starts again without delay
_STANDS_BY: Final = "stands by: "  # a service that is well, and leaves to another what only one may do
_FAILED: Final = "failed: "  # a service that is up and cannot serve says so, and why
_TAIL_LINES: Final = 15
_TAIL_BYTES: Final = 16_384


class ChildState(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(slots=True)
class Child:
    """One service's process.

    Attributes:
        ready_after_s: from its start until it was ready; None before.
        status: exit status; None while it runs.
        failed_because: what it says of itself while it tries again by itself; empty else.
    """

    spec: ServiceSpec
    log_path: Path
    state: ChildState = ChildState.WAITING
    process: asyncio.subprocess.Process | None = None
    started_s: float = 0.0
    ready_after_s: float | None = None
    status: int | None = None
    restarts: int = 0
    failed_because: str = ""
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int | None:
        """Of its process; None when it does not run."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    @property
    def log_tail(self) -> str:
        """The last lines of its log; empty when there are none."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])


class Supervisor:
    """Use inside one event loop: `start`, `until_ready`, later `stop`.

    Args:
        log_dir: exists.
        on_event: called with words for a person when something unexpected happened.
        longest_backoff_s: until what keeps ending starts again.
    """

    def __init__(
        self,
        specs: Iterable[ServiceSpec],
        log_dir: Path,
        on_event: Callable[[str], None],
        *,
        longest_backoff_s: float = LONGEST_BACKOFF_S,
    ) -> None:
        self.children = {spec.id: Child(spec, log_dir / f"{spec.id}.log") for spec in specs}
        self._on_event = on_event
        self._longest_backoff_s = longest_backoff_s
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._all_were_ready = False

    async def start(self, ids: Sequence[str]) -> None:
        """Starts these services, all at once; they are ready later."""
        for each in ids:
            child = self.children[each]
            if child.log_path.exists():
                child.log_path.replace(child.log_path.with_suffix(".log.1"))
            await self._launch(child)
            self._watchers[each] = asyncio.create_task(self._watch(child), name=f"watch {each}")

    async def until_ready(self, ids: Sequence[str]) -> None:
        """Waits until these services are ready, each for as long as its spec says.

        Raises:
            CommandFailed: one of them ended, says that it has failed, or was not ready in time; the message has its
                last log lines.
        """
        await asyncio.gather(*(self._until_ready(self.children[each]) for each in ids))

    def keep_running(self) -> None:
        """From now on a service that ends unexpectedly starts again, with back-off, instead of failing the start."""
        self._all_were_ready = True

    async def stop(self, ids: Sequence[str], grace_s: float) -> list[str]:
        """SIGTERM to all of these at once, SIGKILL to what still runs after `grace_s`; in words, what went wrong."""
        children = [self.children[each] for each in ids if self.children[each].process is not None]
        for child in children:
            if child.state is not ChildState.STOPPED:
                child.state = ChildState.STOPPING
            self._send(child, signal.SIGTERM)
        await asyncio.gather(*(self._until_exited(child, grace_s) for child in children))
        complaints = []
        for child in children:
            if watcher := self._watchers.pop(child.spec.id, None):
                watcher.cancel()
            # Before a service has taken SIGTERM over, the signal simply ends it; there is nothing to drain yet.
            if child.status == -signal.SIGTERM and child.ready_after_s is None:
                continue
            # The trace explorer is not ours: it may leave the signal to do its work.
            if child.status == -signal.SIGTERM and child.spec.kind == "traces":
                continue
            if child.status != 0:
                how = "had to be killed" if child.status == -signal.SIGKILL else f"ended with status {child.status}"
                complaints.append(f"{child.spec.id} {how}; its log is {child.log_path}")
        return complaints

    def kill_all(self) -> None:
        """SIGKILL to whatever still runs."""
        for child in self.children.values():
            child.state = ChildState.STOPPING
            self._send(child, signal.SIGKILL)

    async def _launch(self, child: Child) -> None:
        child.state = ChildState.STARTING
        child.started_s = time.monotonic()
        child.ready_after_s = child.status = None
        child.exited.clear()
        with child.log_path.open("ab") as log:
            child.process = await asyncio.create_subprocess_exec(
                *tied("-m", *child.spec.module, python=child.spec.python),
                env={**os.environ, **child.spec.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _watch(self, child: Child) -> None:
        """Notices when the child becomes ready and when it ends; starts it again where that is wanted."""
        while child.process is not None:
            readying = asyncio.create_task(self._notice_ready(child))
            child.status = await child.process.wait()
            readying.cancel()
            child.exited.set()
            if child.state is ChildState.STOPPING:
                child.state = ChildState.STOPPED
                return
            if not self._all_were_ready:
                child.state = ChildState.FAILED
                return
            ran_s = time.monotonic() - child.started_s
            child.restarts = 0 if ran_s >= _SETTLED_S else child.restarts + 1
            delay_s = min(self._longest_backoff_s, _FIRST_BACKOFF_S * 2 ** max(0, child.restarts - 1))
            child.state = ChildState.RESTARTING
            ended = "was drained" if child.status == 0 else f"ended unexpectedly ({_how(child.status)})"
            self._on_event(f"{child.spec.id} {ended}; it starts again in {delay_s:g} s; its log: {child.log_path}")
            await asyncio.sleep(delay_s)
            if child.state is not ChildState.RESTARTING:
                return
            await self._launch(child)

    async def _notice_ready(self, child: Child) -> None:
        while True:
            says = await probe(child.spec.ready_at, child.spec.ready_path)
            child.failed_because = says.removeprefix(_FAILED) if says.startswith(_FAILED) else ""
            if says == "ready" or says.startswith(_STANDS_BY):
                child.ready_after_s = time.monotonic() - child.started_s
                child.state = ChildState.READY
                if child.restarts:
                    self._on_event(f"{child.spec.id} is back")
                return
            await asyncio.sleep(_PROBE_EVERY_S)

    async def _until_ready(self, child: Child) -> None:
        within_s = child.spec.ready_within_s
        try:
            async with asyncio.timeout(within_s):
                while child.state is not ChildState.READY:
                    if child.state is ChildState.FAILED:
                        raise _not_started(child, f"ended while starting ({_how(child.status)})")
                    if child.failed_because:
                        raise _not_started(child, f"cannot serve: {child.failed_because}")
                    await asyncio.sleep(_PROBE_EVERY_S / 2)
        except TimeoutError:
            raise _not_started(child, f"was not ready within {within_s:g} s") from None

    async def _until_exited(self, child: Child, grace_s: float) -> None:
        try:
            async with asyncio.timeout(grace_s):
                await child.exited.wait()
        except TimeoutError:
            self._send(child, signal.SIGKILL)
            await child.exited.wait()

    def _send(self, child: Child, number: signal.Signals) -> None:
        if child.process is not None and child.process.returncode is None:
            child.process.send_signal(number)


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"status {status}"


def _not_started(child: Child, what: str) -> CommandFailed:
    tail = child.log_tail
    words = f"the last lines of {child.log_path}:\n{tail}" if tail else f"{child.log_path} is empty"
    return CommandFailed(f"{child.spec.id} {what}; {words}", reason="ServiceNotStarted")
