"""Two meters on one set of books: they share its tenants out, whichever is killed the other goes on, and the books are
as if there had been one, and nobody had been killed.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from services.cli.readiness import free_ports, probe
from services.mesh.clock import SystemClock
from services.mesh.errors import SettingInvalid
from services.mesh.events import Funding
from services.mesh.holds import Bound, RequestCredit
from services.mesh.lessee import Lessees
from services.mesh.lifecycle import Lifecycle
from services.mesh.memory_bus import MemoryBroker
from services.mesh.nats.bus import NatsBus
from services.mesh.nats.server import NatsServer
from services.mesh.paying import Paid, Payer, Slice
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import PriceCalendar
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

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(400)]  # dead meters have some seconds to come back

REQUESTS = 60
TENANTS = ("initech", "umbrella", "globex", "acme")  # partitions 0, 6, 10, 14
DEADLINE_S = 180.0  # a meter that is stopped within a transaction is waited for by the server as well


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
            "TOKENWORKS_METER_HOLDING_TTL_S": "3",
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


@dataclass
class Surroundings:
    """A worker, a router, and a client of the meters."""

    router: NatsBus
    worker: NatsBus
    stub: metering_pb2_grpc.MeterStub

    def publish(self, request_id: str, tenant: str, funding: tuple[Funding, ...]) -> None:
        """One request of 15 tokens; its worker reports it together with another tenant's."""
        self.router.publish(replace(admitted(request_id, tenant=tenant), funding=funding))
        mine = replace(entry(request_id, 0, 10, tenant=tenant), funding=funding)
        self.worker.publish(tokens(mine, entry("", 0, 1, tenant="nobody")))
        self.worker.publish(tokens(entry(request_id, 10, 5, tenant=tenant, last=True)))
        self.router.publish(replace(finished(request_id, 15, tenant=tenant), funding=funding))

    async def booked(self, requests: int) -> None:
        async def so() -> bool:
            asked = metering.GetUsageRequest()
            total = (await self.stub.GetUsage(asked, timeout=DEADLINE_S, wait_for_ready=True)).total
            return bool(total.finished_requests == requests and total.generated_tokens == 15 * requests)

        await eventually(so, f"{requests} requests are booked", DEADLINE_S)

    async def same_as_rebuilt(self, url: str, folder: Path) -> None:
        """The books are those that one meter makes of the streams."""
        chosen = load_settings()
        with closing(Database(url)) as live, closing(Database(f"sqlite:///{folder}/rebuilt.db")) as rebuilt:
            await rebuild(self.router, rebuilt, chosen.prices, rate_card(chosen), SystemClock())
            assert differences(live, rebuilt, since_unix_ms=0) == []


@asynccontextmanager
async def _surroundings(nats: str, *meters: MeterProcess) -> AsyncIterator[Surroundings]:
    async with AsyncExitStack() as stack:
        buses = []
        for service in ("router", "worker"):
            telemetry = start_telemetry(service, f"{service}-0")
            bus = NatsBus(NatsSettings(url=nats), service, f"{service}-0", telemetry, SystemClock())
            await bus.connect()
            stack.push_async_callback(bus.close)
            buses.append(bus)
        addresses = ",".join(f"127.0.0.1:{each.grpc_port}" for each in meters)
        channel = await stack.enter_async_context(open_channel(addresses))
        yield Surroundings(*buses, metering_pb2_grpc.MeterStub(channel))  # type: ignore[no-untyped-call]  # generated


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
        around = await stack.enter_async_context(_surroundings(nats_server.url, first, second))
        booked = around.booked

        def publish(number: int) -> None:
            around.publish(f"r-{number}", TENANTS[number % len(TENANTS)], ())

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

        await around.same_as_rebuilt(url, tmp_path)


async def test_two_meters_share_tenants_with_budgets_and_the_books_are_exact_when_one_is_killed(
    tmp_path: Path, nats_server: NatsServer, postgres: str
) -> None:
    url = await asyncio.to_thread(new_database, postgres, "shared")
    async with AsyncExitStack() as stack:
        first, second = await stack.enter_async_context(_meters(tmp_path, nats_server.url, url))
        await first.start()
        await first.says("ready")
        await second.start()
        await second.says("this one books partitions 8-15")
        around = await stack.enter_async_context(_surroundings(nats_server.url, first, second))
        lessees = Lessees("router-0", around.router, SystemClock(), linger_ms=500)
        for talking in (lessees.run(), lessees.listen()):
            stack.callback(asyncio.create_task(talking).cancel)
        rates = PriceCalendar(PriceBook()).at(0).rates("llama-3.1-8b", "", "standard")
        budgets = {}
        for tenant in TENANTS:  # just enough for all
            limit = (100 + 15) * REQUESTS // len(TENANTS)
            asked = metering.SetBudgetRequest(tenant=tenant, unit="tokens", limit=limit)
            budgets[tenant] = (await around.stub.SetBudget(asked, timeout=DEADLINE_S)).state.budget

        async def serve(number: int) -> None:
            tenant = TENANTS[number % len(TENANTS)]
            bound = Bound(budgets[tenant], "", "tokens", "once", hard=True)
            credit = RequestCredit([bound], rates, told={})
            payer = Payer(lessees.of(tenant), SystemClock())

            async def paid() -> bool:
                return await payer.pay(credit, Slice(100, 100, 15, 15), 1.0) in (Paid.AT_ONCE, Paid.AFTER_A_WAIT)

            await eventually(paid, f"{tenant} has credit", DEADLINE_S)
            around.publish(f"r-{number}", tenant, credit.funding())

        third = REQUESTS // 3
        await asyncio.gather(*map(serve, range(third)))
        await around.booked(third)
        await asyncio.gather(*map(serve, range(third, 2 * third)))  # some of these are under way as it dies
        await second.end(signal.SIGKILL)
        await asyncio.gather(*map(serve, range(2 * third, REQUESTS - 8)))
        await around.booked(REQUESTS - 8)
        await second.start()
        await second.says("this one books partitions 8-15")
        await asyncio.gather(*map(serve, range(REQUESTS - 8, REQUESTS)))
        await around.booked(REQUESTS)

        async def spent() -> bool:
            found = (await around.stub.ListBudgets(metering.ListBudgetsRequest(), timeout=DEADLINE_S)).budgets
            accounts = [each.accounts[0] for each in found]
            return len(accounts) == len(TENANTS) and not any(each.held or each.remaining for each in accounts)

        await eventually(spent, "all budgets are spent to their last token", DEADLINE_S)
        await around.same_as_rebuilt(url, tmp_path)


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
