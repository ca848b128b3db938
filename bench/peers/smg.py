"""SMG, the Shepherd model gateway (Rust, with a Python launcher): least load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.datapath.processes import free_port
from bench.datapath.subject import HttpBackend
from bench.peers.peer import Environment, HttpPeer, Started

_ENVIRONMENT: Final = Environment("smg", ("smg",))


def _run(port: int, backends: Sequence[HttpBackend], folder: Path) -> Started:
    urls = [each.url for each in backends]
    command = [_ENVIRONMENT.program("smg"), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *urls, "--policy", "least_load", "--log-level", "warn"]
    return Started([*command, "--prometheus-port", str(free_port()), "--max-concurrent-requests", "8192"])


PEER: Final = HttpPeer("SMG", "least load", _ENVIRONMENT.install, _run)
