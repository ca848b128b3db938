"""Two meters on one set of books: whichever is killed, the other goes on, and the books are as if none had been."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from services.cli.readiness import free_ports, probe
from services.mesh.clock import SystemClock
from services.mesh.errors import SettingInvalid
from services.mesh.lifecycle import Lifecycle
from services.mesh.memory_bus import MemoryBroker
from services.mesh.nats.bus import NatsBus
from services.mesh.nats.server import NatsServer
from services.mesh.rpc import open_channel
from services.mesh.settings import MeshSettings, MeterSettings, NatsSettings, load_settings
from services.mesh.telemetry import start_telemetry
from services.meter.rates import rate_card
from services.meter.rebuild import rebuild
from services.meter.store.compare import differences
from services.meter.store.database import Database
from services.meter.wiring import wire
from tests.mesh.local_mesh import eventually
from tests.mesh.running_meter import running_meter
from tests.postgres import new_database
from tests.unit.meter.facts import admitted, entry, finished, tokens
from tokenworks.v1 import metering_pb2 as metering
from tokenworks.v1 import metering_pb2_grpc

pytestmark = pytest.mark.mesh

REQUESTS = 60
DEADLINE_S = 30.0


class MeterProcess:
    """One meter's process, started again under the same name as often as it takes."""

    def __init__(self, meter_id: str, folder: Path, nats: str, database: str) -> None:
        self.grpc_port, self._http_port = free_ports("127.0.0.1", 2)
        self._log = folder / f"{meter_id}.log"
        self._environment = {
            "TOKENWORKS_METER_ID": meter_id,
            "TOKENWORKS_METER_PORT": str(self.grpc_port),
            "TOKENWORKS_METER_HTTP_PORT": str(self._http_port),
            "TOKENWORKS_METER_DATABASE_URL": database,
            "TOKENWORKS_METER_HOLDING_TTL_S": "1",
            "TOKENWORKS_MESH_DATA_DIR": str(folder),
            "TOKENWORKS_NATS_URL": nats,
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            environment = os.environ | self._environment
            command = (sys.executable, "-m", "services.meter")
            self.process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)

    async def says(self, what: str) -> None:
        """Waits until it says so of itself: "ready", or that it stands by."""
        said = ""

        async def so() -> bool:
            nonlocal said
            said = await probe(f"127.0.0.1:{self._http_port}")
            return what in said

        await eventually(so, f"it says {what!r}", DEADLINE_S)

    async def end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            await self.process.wait()


@asynccontextmanager
async def _meters(tmp_path: Path, nats: str, database: str) -> AsyncIterator[tuple[MeterProcess, MeterProcess]]:
    both = MeterProcess("meter-0", tmp_path, nats, database), MeterProcess("meter-1", tmp_path, nats, database)
    try:
        yield both
    finally:
        for each in both:
            await each.end(signal.SIGKILL)


async def test_a_killed_meter_is_succeeded_and_the_books_are_exact(
    tmp_path: Path, nats_server: NatsServer, postgres: str
) -> None:
    url = await asyncio.to_thread(new_database, postgres, "two_meters")
    async with AsyncExitStack() as stack:
        first, second = await stack.enter_async_context(_meters(tmp_path, nats_server.url, url))
        await first.start()
        await first.says("ready")
        await second.start()
        await second.says("stands by")
        buses = {}
        for service in ("worker", "router"):
            telemetry = start_telemetry(service, f"{service}-0")
            settings = NatsSettings(url=nats_server.url)
            buses[service] = NatsBus(settings, service, f"{service}-0", telemetry, SystemClock())
            await buses[service].connect()
            stack.push_async_callback(buses[service].close)
        channel = await stack.enter_async_context(
            open_channel(f"127.0.0.1:{first.grpc_port},127.0.0.1:{second.grpc_port}")
        )
        stub = metering_pb2_grpc.MeterStub(channel)  # type: ignore[no-untyped-call]  # generated

        def publish(number: int) -> None:
            request_id = f"r-{number}"
            buses["router"].publish(admitted(request_id))
            buses["worker"].publish(tokens(entry(request_id, 0, 10)))
            buses["worker"].publish(tokens(entry(request_id, 10, 5, last=True)))
            buses["router"].publish(finished(request_id, 15))

        async def booked(requests: int) -> None:
            async def so() -> bool:
                asked = metering.GetUsageRequest()
                total = (await stub.GetUsage(asked, timeout=DEADLINE_S, wait_for_ready=True)).total
                return bool(total.finished_requests == requests and total.generated_tokens == 15 * requests)

            await eventually(so, f"{requests} requests are booked", DEADLINE_S)

        for number in range(REQUESTS // 3):
            publish(number)
        await booked(REQUESTS // 3)
        for number in range(REQUESTS // 3, 2 * REQUESTS // 3):  # some of these are under way as it dies
            publish(number)
        await first.end(signal.SIGKILL)
        await second.says("ready")
        await first.start()
        await first.says("stands by")
        await booked(2 * REQUESTS // 3)
        for number in range(2 * REQUESTS // 3, REQUESTS):
            publish(number)
        await second.end(signal.SIGTERM)
        await first.says("ready")
        await booked(REQUESTS)

        settings_of = load_settings(nats=NatsSettings(url=nats_server.url))
        live, rebuilt = Database(url), Database(f"sqlite:///{tmp_path}/rebuilt.db")
        stack.callback(live.close)
        stack.callback(rebuilt.close)
        await rebuild(buses["router"], rebuilt, settings_of.prices, rate_card(settings_of), SystemClock())
        assert differences(live, rebuilt, since_unix_ms=0) == []


async def test_a_meter_that_slept_through_its_time_books_no_more(
    tmp_path: Path, nats_server: NatsServer, postgres: str
) -> None:
    url = await asyncio.to_thread(new_database, postgres, "slept")
    async with _meters(tmp_path, nats_server.url, url) as (first, second):
        await first.start()
        await first.says("ready")
        await second.start()
        await second.says("stands by")
        assert first.process is not None
        first.process.send_signal(signal.SIGSTOP)
        await second.says("ready")
        first.process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(DEADLINE_S):
            assert await first.process.wait() == 1


async def test_a_sqlite_file_refuses_a_second_meter(tmp_path: Path) -> None:
    async with running_meter(tmp_path):
        chosen = load_settings(
            mesh=MeshSettings(data_dir=tmp_path), meter=MeterSettings(id="meter-1", port=0, http_port=0)
        )
        life, telemetry = Lifecycle("meter"), start_telemetry("meter", "meter-1")
        bus = MemoryBroker().bus("meter", "meter-1", telemetry)
        with pytest.raises(SettingInvalid, match=r"another meter writes these books .* PostgreSQL"):
            await wire(life, chosen, bus=bus, telemetry=telemetry)
        await life.stop()
    async with running_meter(tmp_path):  # free again
        pass
