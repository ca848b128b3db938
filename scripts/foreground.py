"""Runs a command as the terminal's foreground process group, so that Ctrl-C reaches it and not `make`.

    foreground.py COMMAND [ARGUMENT...]

`make` answers Ctrl-C with an error of its own, whatever the command it waits for does; a mesh that has drained cleanly
should end with status 0. Exits with the command's status. Without a terminal the command simply takes this process's
place.
"""

import os
import signal
import subprocess
import sys


def main() -> None:
    command = sys.argv[1:]
    if not sys.stdin.isatty():
        os.execvp(command[0], command)
    # Giving the terminal away stops a background process; this one becomes it.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    terminal = sys.stdin.fileno()
    owner = os.tcgetpgrp(terminal)
    child = subprocess.Popen(command, process_group=0)
    os.tcsetpgrp(terminal, child.pid)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: child.send_signal(received))
    try:
        status = child.wait()
    finally:
        os.tcsetpgrp(terminal, owner)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
