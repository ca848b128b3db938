"""The process that vLLM makes for its engine core: it ends with the worker that started it, and what ended it else.

A worker that is killed cannot end its core, which would keep the model, and the accelerator's memory with it, for
nobody. vLLM calls `end_with_worker` in each of its processes (an entry point in the group `vllm.general_plugins`); it
acts where `WORKER_VARIABLE` names the process that started this one, and in no other use of vLLM.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Final

WORKER_VARIABLE: Final = "TOKENWORKS_VLLM_WORKER"  # the worker's process id, set where the core is started
_EXIT_S: Final = 1.0  # for a dead process to leave its status


def end_with_worker() -> None:
    """Starts to watch the worker, in a thread; in the core's process only."""
    parent = multiprocessing.parent_process()
    if parent is not None and os.environ.get(WORKER_VARIABLE) == str(parent.pid):
        threading.Thread(target=_outlive, args=(parent.sentinel,), name="worker-watch", daemon=True).start()


def _outlive(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    # Not asked to end: it would wait for the worker to take its last words. What it started itself ends with it.
    os.kill(os.getpid(), signal.SIGKILL)


def cause_of_death(cores: Sequence[BaseProcess]) -> str:
    """Why an engine core has died, as far as its exit status tells; waits a moment for that."""
    multiprocessing.connection.wait([core.sentinel for core in cores], _EXIT_S)
    codes = [core.exitcode for core in cores if not core.is_alive()]
    if not codes or codes[0] is None:
        return "its log has the cause"
    if codes[0] < 0:
        ended_by = signal.Signals(-codes[0]).name
        return f"it was ended by {ended_by}" + (" (out of memory?)" if ended_by == "SIGKILL" else "")
    return f"it exited with status {codes[0]}, and its log has the cause (out of memory, a device error)"
