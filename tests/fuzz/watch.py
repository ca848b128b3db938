"""What a fuzzed process must not do: log a traceback, keep tasks, files or streams, or grow.

In: the process itself and a mesh under test. Out: findings, in words; none where all is well.
"""

import asyncio
import ctypes
import gc
import logging
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import psutil

MOST_GROWTH_BYTES: Final = 96 << 20  # of a whole run: bounded tables fill up, and SQLite and the allocator keep pages
_GRPC_CORE: Final = "grpc._cython.cygrpc"  # logs a header that is no text, and goes on; nothing of ours sees it
_WARNINGS: Final = "py.warnings"
_TRACES_KEPT: Final = 20
_MAY_BE: Final = Counter({
    "WorkerSession.run": 128,  # one for each name of a worker that was made up
    # The fuzzer's own: grpcio's client keeps those of calls that were ended while it wrote to them.
    "_AioCall._handle_status_once_received": 1 << 20,
})  # fmt: skip
_TASKS_SPARE: Final = 4  # a heartbeat's or a sweep's own


class Complaints(logging.Handler):
    """Records every warning and every log line with a traceback: each is a defect.

    Attributes:
        traces: the first of each, by the place that it was raised at.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.traces: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _WARNINGS:
            self._count(f"warned: {record.getMessage().strip()}"[:200], "")
        elif record.exc_info and record.exc_info[0] is not None and record.name != _GRPC_CORE:
            _, error, trace = record.exc_info
            key = f"{record.name}: {type(error).__name__} at {_place(trace)}"
            self._count(key, f"{record.getMessage()}\n{''.join(traceback.format_exception(error))}")

    def _count(self, key: str, trace: str) -> None:
        self._counts[key] += 1
        if len(self.traces) < _TRACES_KEPT:
            self.traces.setdefault(key, trace)

    def take(self) -> Counter[str]:
        """How often each came since the last call."""
        taken, self._counts = self._counts, Counter()
        return taken

    def __enter__(self) -> "Complaints":
        root = logging.getLogger()
        self._level = root.level
        root.setLevel(logging.WARNING)
        # No other keeps what is logged, or writes it: of most messages there is something to say.
        self._others, root.handlers = root.handlers, [self]
        logging.captureWarnings(True)  # what is computed from nonsense, say
        return self

    def __exit__(self, *_: object) -> None:
        logging.captureWarnings(False)
        logging.getLogger().setLevel(self._level)
        logging.getLogger().handlers = self._others


def _place(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    ours = [each for each in frames if "site-packages" not in each.filename and "/lib/python" not in each.filename]
    last = (ours or frames)[-1] if frames else None
    return f"{Path(last.filename).name}:{last.lineno}" if last else "nowhere"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the process holds."""

    tasks: Counter[str]
    files: int
    memory_bytes: int

    @classmethod
    def now(cls) -> "Footprint":
        names = Counter(_kind(task) for task in asyncio.all_tasks())
        return cls(names, psutil.Process().num_fds(), resident_bytes())

    def more_than(self, before: "Footprint", *, spare_files: int) -> list[str]:
        """Tasks and files that are there now and were not before, beyond what may come and go."""
        found = []
        more = self.tasks - before.tasks - _MAY_BE
        if sum(more.values()) > _TASKS_SPARE:
            found.append(f"{sum(more.values())} tasks more than before: {dict(more.most_common(5))}")
        if self.files > before.files + spare_files:
            found.append(f"{self.files} file descriptors open, {before.files} before")
        return found

    def memory_grown_since(self, before: "Footprint") -> list[str]:
        """What is held now beyond what may be."""
        grown_bytes = self.memory_bytes - before.memory_bytes
        return [f"memory grew by {grown_bytes / 2**20:.0f} MiB"] if grown_bytes > MOST_GROWTH_BYTES else []


def let_go() -> None:
    """Gives back what nobody holds any more: garbage, and what the allocator keeps of large messages that have gone."""
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(psutil.Process().memory_info().rss)


def _kind(task: "asyncio.Task[object]") -> str:
    coroutine = task.get_coro()
    return getattr(coroutine, "__qualname__", type(coroutine).__name__)
