"""Our router as a subject: its own process (or several), a NATS server, and two workers without engines."""

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import grpc

import tokenworks
from bench.datapath.http_backend import MODEL
from bench.datapath.processes import Child, answers, free_port
from bench.datapath.subject import BACKENDS, SCENARIOS, Running, Subject
from services.mesh.keys import KeyStore
from services.mesh.nats.server import find_binary
from tokenworks.v1 import inference_pb2 as wire
from tokenworks.v1 import inference_pb2_grpc

_SECRET: Final = secrets.token_hex(32)
_FULL_SPEED: Final = "1000"
_PACED_SPEED: Final = "0.4"
_MAX_IN_FLIGHT: Final = 16_384
_GATHER_MS: Final = 60.0  # three steps of those 20 ms apart
_QUESTIONS: Final = 6  # per process: that none is asked has then a chance of 1 in 4,000
_ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Relayed:
    """Every token passes the router, over HTTP or gRPC towards the client.

    Attributes:
        processes: that share the router's ports. Of several, it is measured what they get done together.
        gather_ms: the router's setting. Where it is more than a step, it is measured what that saves.
    """

    kind: Literal["http", "grpc"]
    processes: int = 1
    gather_ms: float = 0.0

    @property
    def name(self) -> str:
        several = f", {self.processes} processes" if self.processes > 1 else ""
        gathered = f", {self.gather_ms:g} ms gathered" if self.gather_ms else ""
        return f"Tokenworks, relayed {'HTTP' if self.kind == 'http' else 'gRPC'}{several}{gathered}"

    @property
    def scenarios(self) -> tuple[str, ...]:
        if self.processes > 1:
            return ("throughput",)
        return ("cost", "hold") if self.gather_ms else SCENARIOS

    def facts(self) -> Mapping[str, Any]:
        return {"version": tokenworks.__version__, "policy": "expected dollars", "source": source_of_ours()}

    def start(self, folder: Path, *, paced: bool) -> Running:
        mesh = _Mesh(folder)
        backends = []
        for number in range(BACKENDS):
            command = ["-m", "bench.datapath.session_backend", "--name", f"bench-{number}"]
            command += ["--port", str(free_port()), "--nats", mesh.nats_url]
            backends.append(Child(command, folder / f"session_backend-{number}.log"))
        return mesh.running(self.kind, backends, self.processes, self.gather_ms)


@dataclass(frozen=True, slots=True)
class Direct:
    """The router places, and its client streams from the worker. The workers are real ones with simulated engines.

    Engines without work make tokens back to back, whatever pace is asked for; where streams must last, they make them
    about 20 ms apart. What the worker does for a direct stream is not the router's cost, and part of the added TTFT.
    """

    name: str = "Tokenworks, direct"

    @property
    def scenarios(self) -> tuple[str, ...]:
        return ("cost", "ttft", "kill")  # there are no streams at the router to hold

    def facts(self) -> Mapping[str, Any]:
        return {"version": tokenworks.__version__, "policy": "expected dollars", "source": source_of_ours()}

    def start(self, folder: Path, *, paced: bool) -> Running:
        mesh = _Mesh(folder, _SECRET)
        backends = []
        for number in range(BACKENDS):
            settings = {
                "TOKENWORKS_WORKER_ID": f"bench-{number}",
                "TOKENWORKS_WORKER_ENGINE": "simulated",
                "TOKENWORKS_WORKER_MODELS": json.dumps([MODEL]),
                "TOKENWORKS_WORKER_PORT": "0",
                "TOKENWORKS_WORKER_HTTP_PORT": "0",
                "TOKENWORKS_WORKER_SPEED": _PACED_SPEED if paced else _FULL_SPEED,
            }
            child = Child(["-m", "services.worker"], folder / f"worker-{number}.log", mesh.environment | settings)
            backends.append(child)
        return mesh.running("direct", backends)


class _Mesh:
    """A NATS server and a router; workers are started beside it with its `environment`."""

    def __init__(self, folder: Path, secret: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._nats, self.nats_url = start_nats(folder)
        self.environment = {
            "TOKENWORKS_CONFIG": os.devnull,
            "TOKENWORKS_MESH_DATA_DIR": str(folder),
            "TOKENWORKS_NATS_URL": self.nats_url,
            "TOKENWORKS_MESH_SECRET": secret,
            # The path is measured, not the policy: no router beside ours refuses what would break a promise.
            "TOKENWORKS_SLO_CLASSES": json.dumps({"standard": {"ttft_s": 600.0, "tpot_s": 60.0}}),
        }

    def running(
        self, kind: Literal["http", "grpc", "direct"], backends: list[Child], processes: int = 1, gather_ms: float = 0.0
    ) -> Running:
        """Starts the router in front of workers that are starting, and waits until it would send them requests."""
        key = KeyStore(self._folder / "keys.json").create("bench", "bench", 0)
        port, http_port = free_port(), free_port()
        settings = {
            "TOKENWORKS_ROUTER_PORT": str(port),
            "TOKENWORKS_ROUTER_HTTP_PORT": str(http_port),
            "TOKENWORKS_ROUTER_PROCESSES": str(processes),
            "TOKENWORKS_ROUTER_GATHER_MS": str(gather_ms),
            "TOKENWORKS_ROUTER_MAX_IN_FLIGHT": str(_MAX_IN_FLIGHT),
            "TOKENWORKS_ROUTER_WORKER_QUEUE_S": "60",  # nor does any of the others have requests wait
        }
        router = Child(["-m", "services.router"], self._folder / "router.log", self.environment | settings)
        running = Running(kind, "", [router], backends, key=key, beside={"nats-server": self._nats})
        with running.starting():
            router.wait_until(lambda: answers(f"http://127.0.0.1:{http_port}/readyz"), "the router")
            # Each question is a connection of its own, which the kernel gives to any of the processes.
            asked = range(1 if processes == 1 else _QUESTIONS * processes)
            router.wait_until(
                lambda: all(_workers(port, key) == BACKENDS for _ in asked), "the router with its workers"
            )
        running.address = f"127.0.0.1:{http_port if kind == 'http' else port}"
        return running


SUBJECTS: Final[Sequence[Subject]] = (
    Direct(),
    Relayed("http"),
    Relayed("grpc"),
    Relayed("http", processes=2),
    Relayed("grpc", processes=2),
    Relayed("http", gather_ms=_GATHER_MS),
    Relayed("grpc", gather_ms=_GATHER_MS),
)


def source_of_ours() -> str:
    """A digest of what is measured: figures of other source are not kept as if they were of this one."""
    told = hashlib.sha256()
    for folder in ("services", "tokenworks"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            told.update(path.read_bytes())
    return told.hexdigest()[:12]


def start_nats(folder: Path) -> tuple[Child, str]:
    """A server with JetStream in `folder`, and its URL."""
    port, monitor = free_port(), free_port()
    config = folder / "nats.conf"
    config.write_text(
        f"listen: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor}\n"
        f"jetstream {{ store_dir: {json.dumps(str(folder.resolve()))}, max_file_store: 16GB }}\n",
        encoding="utf-8",
    )
    child = Child([str(find_binary()), "-c", str(config)], folder / "nats.log")
    child.wait_until(lambda: answers(f"http://127.0.0.1:{monitor}/healthz"), "nats-server")
    return child, f"nats://127.0.0.1:{port}"


def _workers(port: int, key: str) -> int:
    """How many workers of the benchmark's model the router would send requests to."""

    async def ask() -> int:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = inference_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]
            answer = await stub.ListModels(
                wire.ListModelsRequest(), metadata=(("authorization", f"Bearer {key}"),), timeout=2.0
            )
            return next((each.workers for each in answer.models if each.name == MODEL), 0)

    try:
        return asyncio.run(ask())
    except grpc.RpcError:
        return 0
