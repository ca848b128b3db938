"""Our router as a subject: its own process (or several), a NATS server, and two workers without engines."""

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import grpc

import tokenworks
from bench.datapath.http_backend import MODEL
from bench.datapath.processes import Child, answers, free_port
from bench.datapath.subject import BACKENDS, Running, Subject
from services.mesh.keys import KeyStore
from services.mesh.nats_server import find_binary
from tokenworks.v1 import inference_pb2 as wire
from tokenworks.v1 import inference_pb2_grpc

_MAX_IN_FLIGHT: Final = 16_384
_ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Ours:
    """Relaying over HTTP or gRPC."""

    kind: Literal["http", "grpc"]

    @property
    def name(self) -> str:
        return f"Tokenworks, relayed {'HTTP' if self.kind == 'http' else 'gRPC'}"

    def facts(self) -> Mapping[str, Any]:
        return {"version": tokenworks.__version__, "policy": "expected dollars", "source": source_of_ours()}

    def start(self, folder: Path) -> Running:
        folder.mkdir(parents=True, exist_ok=True)
        nats, nats_url = start_nats(folder)
        key = KeyStore(folder / "keys.json").create("bench", "bench", 0)
        port, http_port = free_port(), free_port()
        backends = [start_backend(folder, number, nats_url) for number in range(BACKENDS)]
        router = Child(
            ["-m", "services.router"],
            folder / "router.log",
            {
                "TOKENWORKS_CONFIG": os.devnull,
                "TOKENWORKS_MESH_DATA_DIR": str(folder),
                "TOKENWORKS_NATS_URL": nats_url,
                "TOKENWORKS_ROUTER_PORT": str(port),
                "TOKENWORKS_ROUTER_HTTP_PORT": str(http_port),
                "TOKENWORKS_ROUTER_MAX_IN_FLIGHT": str(_MAX_IN_FLIGHT),
            },
        )
        router.wait_until(lambda: answers(f"http://127.0.0.1:{http_port}/readyz"), "the router")
        router.wait_until(lambda: _workers(port, key) == BACKENDS, "the router with its workers")
        address = f"127.0.0.1:{http_port if self.kind == 'http' else port}"
        return Running(self.kind, address, [router], backends, key=key, beside={"nats-server": nats})


SUBJECTS: Final[Sequence[Subject]] = (Ours("http"), Ours("grpc"))


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


def start_backend(folder: Path, number: int, nats_url: str) -> Child:
    """See `session_backend.py`; it reports itself, so nobody need wait for it."""
    command = ["-m", "bench.datapath.session_backend", "--name", f"bench-{number}"]
    return Child([*command, "--port", str(free_port()), "--nats", nats_url], folder / f"session_backend-{number}.log")


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
