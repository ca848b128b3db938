"""In the process that vLLM makes for its engine core: the core ends with the worker that started it.

A worker that is killed cannot end its core, which would keep the model, and the accelerator's memory with it, for
nobody. vLLM calls `end_with_worker` in each of its processes (an entry point in the group `vllm.general_plugins`); it
acts where `WORKER_VARIABLE` names the process that started this one, and in no other use of vLLM.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from typing import Final

WORKER_VARIABLE: Final = "TOKENWORKS_VLLM_WORKER"  # the worker's process id, set where the core is started


def end_with_worker() -> None:
    """Starts to watch the worker, in a thread; in the core's process only."""
    parent = multiprocessing.parent_process()
    if parent is not None and os.environ.get(WORKER_VARIABLE) == str(parent.pid):
        threading.Thread(target=_outlive, args=(parent.sentinel,), name="worker-watch", daemon=True).start()


def _outlive(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    # Not asked to end: it would wait for the worker to take its last words. What it started itself ends with it.
    os.kill(os.getpid(), signal.SIGKILL)
