"""A mesh whose hosts' clocks differ by minutes: it serves, bounds and bills as one whose clocks agree."""

from pathlib import Path
from typing import Any

import pytest

from services.mesh.clock import SystemClock
from services.mesh.settings import MeshSettings
from tests.mesh.local_mesh import DEADLINE_S, MODEL, LocalMesh, eventually, simulated
from tokenworks.v1 import metering_pb2, metering_pb2_grpc

pytestmark = pytest.mark.mesh

MINUTE_MS = 60_000


class WrongClock(SystemClock):
    """The machine's clock, wrong by so much; it runs as fast."""

    def __init__(self, ahead_ms: int) -> None:
        self._ahead_ms = ahead_ms

    def unix_ms(self) -> int:
        return super().unix_ms() + self._ahead_ms


CLOCKS = {
    "router": WrongClock(4 * MINUTE_MS),
    "h100-0": WrongClock(-3 * MINUTE_MS),
    "mi300x-0": WrongClock(9 * MINUTE_MS),
    "meter": WrongClock(-MINUTE_MS - 20_000),
    "optimizer": WrongClock(-6 * MINUTE_MS),
}


@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_clocks_that_differ_by_minutes_refuse_nobody_and_lose_no_token(tmp_path: Path, *, direct: bool) -> None:
    mesh = LocalMesh(tmp_path, clocks=CLOCKS)
    try:
        await mesh.start(
            (simulated("h100-0", speed=20.0), simulated("mi300x-0", "amd-mi300x", speed=20.0)),
            mesh=MeshSettings(drain_grace_s=5.0, secret="a secret of the mesh"),
        )
        client = mesh.client(direct=direct)
        await set_budget(mesh, unit="tokens", period="hour", limit=1_000_000)
        await set_budget(mesh, unit="tokens", period="minute", limit=400_000)
        for number in range(6):
            stream = client.generate(
                text=f"tell of river {number}", model=MODEL, max_tokens=60, seed=number, ignore_eos=True
            )
            await stream.text()
            assert stream.result is not None
            assert stream.result.completion_tokens == 60
            bill = await ended(mesh, stream.request_id)
            assert (bill.delivered_tokens, bill.price_nusd) == (60, stream.result.price_nusd)
        total = await mesh.settled(6)
        assert (total.delivered_tokens, total.generated_tokens) == (360, 360)
        plans = mesh.parts["router"].running.fleet.plans

        async def planned() -> bool:
            return MODEL in plans

        await eventually(planned, "a plan is in force")
    finally:
        await mesh.stop()


async def set_budget(mesh: LocalMesh, **terms: Any) -> None:
    """Sets a budget and waits until the router knows it."""
    meter = metering_pb2_grpc.MeterStub(mesh.channel("meter"))
    request = metering_pb2.SetBudgetRequest(tenant="local", **terms)
    await meter.SetBudget(request, timeout=DEADLINE_S, metadata=mesh.operator)
    budgets = mesh.parts["router"].running.funds.budgets

    async def known() -> bool:
        return any(each.limit == terms["limit"] for each in budgets.terms("local"))

    await eventually(known, "the router knows the budget")


async def ended(mesh: LocalMesh, request_id: str) -> metering_pb2.RequestBill:
    """Its bill, once its end is booked."""
    bill = metering_pb2.RequestBill()

    async def booked() -> bool:
        nonlocal bill
        try:
            bill = await mesh.bill(request_id)
        except Exception:  # nothing of it is booked yet
            return False
        return bool(bill.finished_unix_ms) and bill.generated_tokens >= bill.delivered_tokens

    await eventually(booked, f"the end of {request_id} is booked")
    return bill
