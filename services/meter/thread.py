"""Threads for what blocks: the database is synchronous, the event loop must not wait for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.mesh.errors import QueueFull

T = TypeVar("T")


class WorkThreads:
    """`threads` threads with a bounded queue: one thread makes it a place that runs one thing at a time, in order."""

    def __init__(self, name: str, threads: int, max_waiting: int) -> None:
        self._name = name
        self._bound = threads + max_waiting
        self._jobs = 0
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, job: Callable[[], T]) -> T:
        """Runs `job` in a thread. A cancelled call does not stop it: it is finished and its result dropped.

        Raises:
            QueueFull: as many jobs wait as may.
        """
        if self._jobs >= self._bound:
            raise QueueFull(f"{self._jobs} jobs wait for the {self._name} thread; try again")
        self._jobs += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, job)
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    async def stop(self) -> None:
        """Waits for what runs; what only waits is dropped."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)

    def _done(self, future: asyncio.Future[T]) -> None:
        self._jobs -= 1
        if not future.cancelled():
            future.exception()  # seen: a caller that was cancelled does not ask for it any more
