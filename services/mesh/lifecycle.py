"""A service's life: wire, ready, run, drain, stop. Every `__main__.py` calls `run`.

    async def start(life: Lifecycle, settings: Settings) -> None: ...
    run("router", start)

`wire(life)` starts things top to bottom and registers how each is stopped (`life.on_stop`). When it returns, the
service is ready (`/readyz`, gRPC health), unless it holds itself back (`life.hold`) until what it needs is there.
SIGTERM or SIGINT, or a background task that fails, ends it: the stop steps run last in, first out, each with a
deadline, so what was started first (the bus) is closed last. The exit status is 0 after a signal and 1 after a failure.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import uvloop

from services.mesh.errors import SettingInvalid, TokenworksError
from services.mesh.settings import Settings, load_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _StopStep:
    name: str
    action: Callable[[], Awaitable[None]]
    deadline_s: float


class Lifecycle:
    """Readiness, background tasks and the order of stopping of one service.

    Attributes:
        held_because: why it takes no work though it is wired; empty while nothing holds it back.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.draining = False
        self.held_because = ""
        self.failure: BaseException | None = None
        self._wired = False
        self._told = False  # what the listeners heard last
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

    @property
    def ready(self) -> bool:
        """It takes work: it is wired, does not drain, and nothing holds it back."""
        return self._wired and not self.draining and not self.held_because

    @property
    def state(self) -> str:
        """`ready`, or in a word or two why it takes no work."""
        if self.ready:
            return "ready"
        return "draining" if self.draining else self.held_because or "starting"

    async def set_ready(self) -> None:
        """The service is wired."""
        self._wired = True
        await self._tell()

    async def hold(self, because: str) -> None:
        """It is not ready from now on, `because` of something that may pass; `release` ends it."""
        self.held_because = because
        await self._tell()

    async def release(self) -> None:
        """Nothing holds it back any more."""
        self.held_because = ""
        await self._tell()

    async def wait_until_ending(self) -> None:
        await self._ending.wait()

    async def stop(self) -> None:
        """Runs the stop steps, last in first out, then cancels what still runs in the background."""
        self.draining = True
        await self._tell()
        for step in reversed(self._steps):
            try:
                async with asyncio.timeout(step.deadline_s):
                    await step.action()
            except TimeoutError:
                log.warning("%s: stop step %r passed its deadline of %g s", self.name, step.name, step.deadline_s)
            except Exception:
                log.exception("%s: stop step %r failed", self.name, step.name)
        await cancel_all(list(self._tasks))

    async def _tell(self) -> None:
        if self.ready is self._told:
            return
        self._told = self.ready
        for listener in self._ready_listeners:
            await listener(self._told)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.error("%s: background task %s failed", self.name, task.get_name(), exc_info=task.exception())
        self.end(task.exception())


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels the tasks and waits until each has ended, however it ends."""
    cancelled = list(tasks)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)


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
        if life.ready:
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


def run(name: str, start: Callable[[Lifecycle, Settings], Awaitable[None]]) -> None:
    """Runs a service as this process, with the settings of file and environment, and exits with its status."""

    async def wire(life: Lifecycle) -> None:
        settings = load_settings()
        logging.getLogger().setLevel(settings.mesh.log_level.upper())
        await start(life, settings)

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s {name} %(levelname)s %(name)s: %(message)s"
    )
    sys.exit(uvloop.run(serve(name, wire)))
