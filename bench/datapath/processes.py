"""Children of a benchmark: started, waited for, their CPU time and memory read, ended by pid."""

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from services.mesh.child import tied

OPEN_FILES: Final = 20_000
_TERM_S: Final = 5.0


class Child:
    """A process that ends with this one; its output goes to `log`, of which an error shows the end.

    Args:
        command: the program and its arguments; `python -m …` of this environment begins with `-m`.
        environment: in place of this process's variables of Tokenworks, OpenTelemetry and proxies, which are left out.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        dropped = ("TOKENWORKS_", "OTEL_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
        variables = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                tied(*command),
                env=variables | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.pid = self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
        """Raises RuntimeError: it ended, or was not ready in time; the message has the last lines of its log."""
        ends_s = time.monotonic() + within_s
        while not ready():
            if not self.alive() or time.monotonic() > ends_s:
                how = "is not ready" if self.alive() else f"ended with status {self._process.returncode}"
                lines = self.log.read_text(errors="replace").splitlines()[-8:]
                raise RuntimeError(f"{what} {how} after {within_s:g} s at most; {self.log} ends:\n" + "\n".join(lines))
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self.alive():
            for process in self._tree():
                process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what has not ended after some seconds."""
        tree = self._tree()
        if self.alive():
            self._process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs([each for each in tree if each.pid != self.pid], timeout=0)
        try:
            self._process.wait(_TERM_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in psutil.wait_procs(left, timeout=1.0)[1]:
            process.kill()

    def cpu_s(self) -> float:
        """CPU seconds so far, user and system, of the process and its living descendants."""
        return sum(_cpu_s(process.pid) for process in self._tree())

    def rss_bytes(self) -> int:
        """Resident memory of the process and its descendants; what they share is counted for each."""
        total = 0
        for process in self._tree():
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total

    def _tree(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _cpu_s(pid: int) -> float:
    # A process's own CPU clock counts nanoseconds; /proc/<pid>/stat, which psutil reads, counts hundredths of a second.
    # Its id is made as clock_getcpuclockid(3) makes it on Linux, where these benchmarks run.
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0  # it has ended


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str, timeout_s: float = 1.0) -> bool:
    """Whether a GET has status 200."""
    try:
        with urlopen(url, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (URLError, OSError, ValueError):
        return False


def raise_open_files() -> None:
    """As many open files as thousands of streams need, for this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
