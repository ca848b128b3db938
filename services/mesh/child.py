"""Starts a process that ends with its parent: `python -m services.mesh.child PARENT_PID -m MODULE …`, or a program's
path in place of `-m MODULE`.

Asks the kernel (Linux) to send SIGTERM when the parent is gone, however it went, so that nothing is left running; then
becomes the module, as if it had been started by itself, or the program. `tied` makes the command line.
"""

import ctypes
import os
import runpy
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def tied(*command: str, python: str = "") -> tuple[str, ...]:
    """The command line that runs `command` (`-m MODULE …`, or a program's path and arguments) tied to this process.

    Args:
        python: the interpreter; empty: this one.
    """
    return (python or sys.executable, "-m", "services.mesh.child", str(os.getpid()), *command)


def die_with(parent_pid: int) -> None:
    """Ties this process to its parent; ends at once if the parent is gone already."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit("the process that started this one is gone")


def main() -> None:
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    die_with(parent_pid)
    if command[0] != "-m":
        os.execv(command[0], command)
    sys.argv = command[1:]
    runpy.run_module(command[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
