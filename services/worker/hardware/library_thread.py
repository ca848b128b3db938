"""A thread of its own for a vendor's library, whose calls block, and now and then never return.

The thread is a daemon: a driver that hangs must not keep the process from ending, as a pool's threads would.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class LibraryThread:
    """Runs one call at a time, in order. `stop` lets the thread end once the call that it is in has returned."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises. Whoever is cancelled while waiting leaves the call to itself."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._jobs.put((call, loop, answer))
        return await answer

    def stop(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, loop, answer = job
            value, error = None, None
            try:
                value = call()
            except Exception as raised:  # belongs to whoever asked
                error = raised
            try:
                loop.call_soon_threadsafe(_tell, answer, value, error)
            except RuntimeError:
                return  # the loop is closed: nobody asks any more


def _tell(answer: "asyncio.Future[Any]", value: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(value)
