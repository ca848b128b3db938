"""A service's life: wire, ready, run, drain, stop. Every `__main__.py` calls `run`.

    def main() -> None:
        run("router", wire)

`wire(life)` starts things top to bottom and registers how each is stopped (`life.on_stop`). When it returns, the
service is ready (`/readyz`, gRPC health). SIGTERM or SIGINT, or a background task that fails, ends it: the stop steps
run last in, first out, each with a deadline, so what was started first (the bus) is closed last. The exit status is 0
after a signal and 1 after a failure.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import uvloop

from services.mesh.errors import SettingInvalid, TokenworksError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _StopStep:
    name: str
    action: Callable[[], Awaitable[None]]
    deadline_s: float


class Lifecycle:
    """Readiness, background tasks and the order of stopping of one service."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = False
        self.draining = False
        self.failure: BaseException | None = None
        self._steps: list[_StopStep] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ready_listeners: list[Callable[[bool], Awaitable[None]]] = []
        self._ending = asyncio.Event()

    def on_stop(self, name: str, action: Callable[[], Awaitable[None]], deadline_s: float = 5.0) -> None:
        """Registers a stop step; the last registered runs first."""
        self._steps.append(_StopStep(name, action, deadline_s))

    def on_ready_changed(self, listener: Callable[[bool], Awaitable[None]]) -> None:
        """Calls `listener(True)` once the service is ready and `listener(False)` when it starts to drain."""
        self._ready_listeners.append(listener)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Runs `work` in the background until the service stops; its failure ends the service."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def end(self, failure: BaseException | None = None) -> None:
        """Asks the service to drain and stop; the first failure given is the one reported."""
        if failure is not None and self.failure is None:
            self.failure = failure
        self._ending.set()

    async def set_ready(self) -> None:
        self.ready = True
        for listener in self._ready_listeners:
            await listener(True)

    async def wait_until_ending(self) -> None:
        await self._ending.wait()

    async def stop(self) -> None:
        """Runs the stop steps, last in first out, then cancels what still runs in the background."""
        self.ready, self.draining = False, True
        for listener in self._ready_listeners:
            await listener(False)
        for step in reversed(self._steps):
            try:
                async with asyncio.timeout(step.deadline_s):
                    await step.action()
            except TimeoutError:
                log.warning("%s: stop step %r passed its deadline of %g s", self.name, step.name, step.deadline_s)
            except Exception:
                log.exception("%s: stop step %r failed", self.name, step.name)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.error("%s: background task %s failed", self.name, task.get_name(), exc_info=task.exception())
        self.end(task.exception())


Wire = Callable[[Lifecycle], Awaitable[None]]


async def serve(name: str, wire: Wire) -> int:
    """Wires and runs a service until a signal; the exit status."""
    life = Lifecycle(name)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, life.end)
    try:
        await wire(life)
        await life.set_ready()
        log.info("%s is ready", name)
        await life.wait_until_ending()
        log.info("%s drains", name)
    except (SettingInvalid, TokenworksError, OSError) as error:
        log.error("%s cannot start: %s", name, error)
        life.failure = error
    finally:
        await life.stop()
    log.info("%s stopped", name)
    return 1 if life.failure is not None else 0


def run(name: str, wire: Wire) -> None:
    """Runs a service as this process and exits with its status."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s {name} %(levelname)s %(name)s: %(message)s"
    )
    try:
        status = uvloop.run(serve(name, wire))
    except SettingInvalid as error:
        print(f"{name}: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
