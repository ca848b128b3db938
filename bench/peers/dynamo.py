"""NVIDIA Dynamo's frontend (Rust, with a Python launcher): round robin; backends are Dynamo workers of its own kind.

Discovery by files, requests over TCP: no etcd, no NATS. `--only-binary` keeps pip from one distribution that would
fetch a wheel of its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import urlopen

from bench.datapath.processes import Child, free_port
from bench.datapath.subject import BACKENDS, SCENARIOS, Running
from bench.peers.dynamo_worker import write_model
from bench.peers.peer import Environment

_ENVIRONMENT: Final = Environment("ai-dynamo", ("ai-dynamo",), ("--only-binary", ":all:"))
_ROOT: Final = Path(__file__).resolve().parents[2]
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Dynamo:
    """`migrations`: how many times the frontend moves a stream whose worker is lost; its default is 0."""

    name: str
    migrations: int = 0

    @property
    def scenarios(self) -> Sequence[str]:
        return ("kill",) if self.migrations else SCENARIOS  # the other figures are those without it

    def facts(self) -> Mapping[str, Any]:
        policy = f"round robin, migration limit {self.migrations}" if self.migrations else "round robin"
        return {"version": _ENVIRONMENT.install(), "policy": policy}

    def start(self, folder: Path, *, paced: bool) -> Running:
        model = folder / "model"
        write_model(model)
        environment = {
            "DYN_FILE_KV": str(folder / "discovery"),
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_REQUEST_PLANE": "tcp",
            "DYN_EVENT_PLANE": "zmq",
            "DYN_LOG": "error",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(_ROOT),
        }
        command = [_ENVIRONMENT.python, "-m", "bench.peers.dynamo_worker", "--model", str(model)]
        backends = [Child(command, folder / f"worker-{number}.log", environment) for number in range(BACKENDS)]
        port = free_port()
        frontend = [_ENVIRONMENT.python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
        frontend += ["--router-mode", "round-robin", "--migration-limit", str(self.migrations)]
        router = Child(frontend, folder / "router.log", environment)
        running = Running("http", f"127.0.0.1:{port}", [router], backends)
        with running.starting():
            router.wait_until(lambda: _workers(port) == BACKENDS, "Dynamo's frontend with its workers", _START_S)
        return running


def _workers(port: int) -> int:
    """How many workers the frontend knows."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0) as response:
            told = json.load(response)
    except (URLError, OSError, ValueError):
        return 0
    return len([each for each in told.get("instances", []) if each.get("endpoint") == "generate"])


PEER: Final = Dynamo("Dynamo frontend")
MIGRATING: Final = Dynamo("Dynamo frontend, migration on", migrations=3)
