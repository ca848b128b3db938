"""SGLang's router (Rust, with a Python launcher): power of two choices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.datapath.processes import free_port
from bench.datapath.subject import HttpBackend
from bench.peers.peer import Environment, HttpPeer, Started

_ENVIRONMENT: Final = Environment("sglang-router", ("sglang-router",))


def _run(port: int, backends: Sequence[HttpBackend], folder: Path) -> Started:
    urls = [each.url for each in backends]
    command = [_ENVIRONMENT.python, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *urls, "--policy", "power_of_two", "--log-level", "warn"]
    return Started([*command, "--prometheus-port", str(free_port()), "--max-concurrent-requests", "8192"])


PEER: Final = HttpPeer("SGLang router", "power of two", _ENVIRONMENT.install, _run)
