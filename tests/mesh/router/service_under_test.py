"""`python -m services.router` with several processes, a worker, and clients on connections of their own."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import grpc
import psutil

from services.mesh.clock import SystemClock
from services.mesh.keys import KeyStore
from services.mesh.nats.bus import NatsBus
from services.mesh.nats.server import NatsServer
from services.mesh.settings import NatsSettings, RouterSettings, load_settings
from services.mesh.telemetry import start_telemetry
from services.router.processes import Processes
from tests.mesh.router.fake_worker import MODEL, FakeWorker
from tests.mesh.router.router_under_test import DEADLINE_S
from tokenworks.v1 import inference_pb2 as pb
from tokenworks.v1 import inference_pb2_grpc

COUNT: Final = 2


class Service:
    """Started by `start`, ready after `until_all_serve`.

    Attributes:
        process: the one that starts the routers.
        routers: those it started.
    """

    process: asyncio.subprocess.Process
    worker: FakeWorker

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nats = NatsServer(folder / "nats", sync_always=False)
        self._metadata = (("authorization", f"Bearer {KeyStore(folder / 'keys.json').create('acme', 'test', 0)}"),)
        self.environment: dict[str, str] = {}
        self.routers: list[psutil.Process] = []
        self.grpc_port = self.http_port = 0

    async def start(self) -> None:
        url = await self._nats.start()
        ports = Processes(load_settings(router=RouterSettings(port=0, http_port=0)))
        self.grpc_port, self.http_port = ports.reserve()
        await ports.release()
        self.environment = {
            **os.environ,
            "TOKENWORKS_MESH_DATA_DIR": str(self._folder),
            "TOKENWORKS_NATS_URL": url,
            "TOKENWORKS_ROUTER_PROCESSES": str(COUNT),
            "TOKENWORKS_ROUTER_PORT": str(self.grpc_port),
            "TOKENWORKS_ROUTER_HTTP_PORT": str(self.http_port),
        }
        command = (sys.executable, "-m", "services.router")
        self.process = await asyncio.create_subprocess_exec(*command, env=self.environment)
        bus = NatsBus(NatsSettings(url=url), "worker", "w0", start_telemetry("worker", "w0"), SystemClock())
        self.worker = FakeWorker("w0", bus)
        await self.worker.start()

    async def until_all_serve(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.sessions) < COUNT:
                self.worker.beat()
                await asyncio.sleep(0.05)
            while True:
                self.routers = psutil.Process(self.process.pid).children()
                if len(self.routers) == COUNT and await self.try_answer():
                    return
                await asyncio.sleep(0.05)

    @property
    def sessions(self) -> list[str]:
        """Ids of the routers that opened a session to the worker, in order."""
        return [each["x-tokenworks-router"] for each in self.worker.metadata]

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=options)

    async def answer(self, channel: grpc.aio.Channel) -> str:
        """A whole answer; its request's id."""
        stub: Any = inference_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]
        request = pb.GenerateRequest(model=MODEL, text="river", sampling=pb.Sampling(max_tokens=4))
        found = ""
        async for message in stub.Generate(request, metadata=self._metadata, timeout=DEADLINE_S):
            found = message.request_id
        return found

    async def try_answer(self) -> bool:
        """Whether an answer comes on a new connection; its router may be away."""
        async with self.channel() as channel:
            try:
                return bool(await self.answer(channel))
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL):
                    raise
                return False

    async def explain(self, channel: grpc.aio.Channel, request_id: str) -> pb.Explanation:
        stub: Any = inference_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]
        asked = pb.ExplainRequest(request_id=request_id)
        found: pb.Explanation = await stub.Explain(asked, metadata=self._metadata, timeout=DEADLINE_S)
        return found

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            assert await self.process.wait() == 0
        assert not any(each.is_running() for each in self.routers)
        await self.worker.stop()
        await self._nats.stop()
