"""Budgets through a real mesh: streams end at their last funded token, and not one token past it is billed."""

import asyncio
from typing import Any, Final

import pytest

from services.mesh.settings import MeshSettings, RouterSettings
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import DEADLINE_S, MODEL, LocalMesh, eventually, simulated
from tokenworks import Client, GenerateError, Generation
from tokenworks.v1 import metering_pb2, metering_pb2_grpc

pytestmark = pytest.mark.mesh

SETTINGS: Final = MeshSettings(secret="hush", drain_grace_s=5.0)
ROUTER: Final = RouterSettings(port=0, http_port=0, credit_slice_tokens=32, credit_wait_s=10.0)


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> LocalMesh:
    return await start_mesh(simulated("h100-0", speed=20.0), mesh=SETTINGS, router=ROUTER)


def asked(client: Client, max_tokens: int = 500, **changes: Any) -> Generation:
    return client.generate(token_ids=list(range(10)), model=MODEL, max_tokens=max_tokens, ignore_eos=True, **changes)


async def set_budget(mesh: LocalMesh, **terms: Any) -> None:
    """Sets a budget and waits until the router knows it."""
    meter = metering_pb2_grpc.MeterStub(mesh.channel("meter"))
    request = metering_pb2.SetBudgetRequest(tenant="local", **terms)
    await meter.SetBudget(request, timeout=DEADLINE_S, metadata=mesh.operator)
    budgets = mesh.parts["router"].running.funds.budgets

    async def known() -> bool:
        return any(each.limit == terms.get("limit", terms.get("limit_nusd")) for each in budgets.terms("local"))

    await eventually(known, "the router knows the budget")


async def states(mesh: LocalMesh) -> list[metering_pb2.BudgetState]:
    meter = metering_pb2_grpc.MeterStub(mesh.channel("meter"))
    request = metering_pb2.ListBudgetsRequest(tenant="local")
    found = await meter.ListBudgets(request, timeout=DEADLINE_S, metadata=mesh.operator)
    return list(found.budgets)


async def spent(mesh: LocalMesh, expected: int) -> None:
    """Waits until the meter's first budget has that much spent, and nothing of it is held by running requests."""

    async def so() -> bool:
        state = (await states(mesh))[0]
        (account,) = state.accounts
        assert account.spent + account.held + account.remaining == state.limit
        return account.spent == expected

    await eventually(so, f"{expected} is spent")


@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_a_stream_ends_at_its_last_funded_token_and_is_billed_to_it(mesh: LocalMesh, *, direct: bool) -> None:
    await set_budget(mesh, unit="tokens", limit=100)
    stream = asked(mesh.client(direct=direct))
    await stream.text()
    assert stream.result is not None
    assert (stream.result.reason, stream.result.completion_tokens) == ("budget", 90)
    total = await mesh.settled(1)
    assert total.prompt_tokens + total.delivered_tokens == 100
    await spent(mesh, 100)


@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_added_credit_lets_the_next_request_run_at_once(mesh: LocalMesh, *, direct: bool) -> None:
    client = mesh.client(direct=direct)
    await set_budget(mesh, unit="tokens", limit=50)
    await asked(client).text()
    await spent(mesh, 50)
    with pytest.raises(GenerateError) as refused:
        await asked(client).text()
    assert refused.value.reason == "CreditExhausted"
    await set_budget(mesh, unit="tokens", limit=90)
    stream = asked(client)
    await stream.text()
    assert stream.result is not None
    assert (stream.result.reason, stream.result.completion_tokens) == ("budget", 30)
    await spent(mesh, 90)


async def test_a_rate_that_refills_says_when_to_come_back(mesh: LocalMesh) -> None:
    await set_budget(mesh, unit="tokens", period="hour", limit=40)
    client = mesh.client()
    await asked(client, 30).text()
    await spent(mesh, 40)
    with pytest.raises(GenerateError) as refused:
        await asked(client, 30).text()
    assert refused.value.reason == "RateLimited"
    assert refused.value.retry_after_s is not None
    assert 0 < refused.value.retry_after_s <= 3600


@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_what_short_answers_leave_of_their_holds_is_free_again(mesh: LocalMesh, *, direct: bool) -> None:
    client = mesh.client(direct=direct)
    await set_budget(mesh, limit_nusd=100_000)  # what twenty answers hold at once is more
    streams = [asked(client, 4) for _ in range(20)]
    await asyncio.gather(*[stream.text() for stream in streams])
    await spent(mesh, sum(each.result.price_nusd for each in streams if each.result is not None))


async def test_a_request_needs_credit_at_every_level_that_applies(mesh: LocalMesh) -> None:
    await set_budget(mesh, unit="tokens", limit=1000)
    await set_budget(mesh, unit="tokens", scope="workload", subject="*", limit=30)
    client = mesh.client()
    first, other = asked(client, workload="a"), asked(client, workload="b")
    await asyncio.gather(first.text(), other.text())
    assert [each.result and each.result.completion_tokens for each in (first, other)] == [20, 20]
    await mesh.settled(2)

    async def counted() -> bool:
        by_scope = {each.scope: {a.subject: a.spent for a in each.accounts} for each in await states(mesh)}
        return by_scope == {"tenant": {"": 60}, "workload": {"a": 30, "b": 30}}

    await eventually(counted, "both levels have it")


async def test_a_soft_budget_stops_nothing(mesh: LocalMesh) -> None:
    await set_budget(mesh, unit="tokens", limit=20, soft=True)
    stream = asked(mesh.client(), 100)
    await stream.text()
    assert stream.result is not None
    assert stream.result.reason == "length"

    async def counted() -> bool:
        (account,) = (await states(mesh))[0].accounts
        return account.spent == 110

    await eventually(counted, "it is counted all the same")


# What has gone wrong elsewhere, by name.


@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_concurrent_requests_do_not_overspend_and_leave_nothing_unused(mesh: LocalMesh, *, direct: bool) -> None:
    client = mesh.client(direct=direct)
    await set_budget(mesh, unit="tokens", limit=700)
    ends = await asyncio.gather(*[asked(client, 40).text() for _ in range(40)], return_exceptions=True)
    refused = [each for each in ends if isinstance(each, BaseException)]
    assert {getattr(each, "reason", str(each)) for each in refused} == {"CreditExhausted"}
    await spent_at_least(mesh, 690)
    total = (await mesh.usage()).total
    assert total.prompt_tokens + total.delivered_tokens <= 700


@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_a_cancelled_stream_is_billed_what_was_delivered_and_its_hold_comes_back(
    mesh: LocalMesh, *, direct: bool
) -> None:
    client = mesh.client(direct=direct)
    await set_budget(mesh, unit="tokens", limit=500)
    async with asked(client, 400) as stream:
        async for piece in stream:
            if piece.first_index >= 5:
                break
    total = await mesh.settled(1)
    await spent(mesh, total.prompt_tokens + total.delivered_tokens)
    rest = asked(client, 1000)
    await rest.text()
    await spent(mesh, 500)


async def test_a_request_without_max_tokens_pins_a_slice_not_the_budget(mesh: LocalMesh) -> None:
    await set_budget(mesh, unit="tokens", limit=300)
    client = mesh.client()
    async with client.generate(token_ids=list(range(10)), model=MODEL, max_tokens=None, ignore_eos=False) as unbounded:
        await anext(aiter(unbounded))
        others = [asked(client, 20) for _ in range(4)]
        await asyncio.gather(*[each.text() for each in others])
        assert [each.result and each.result.reason for each in others] == ["length"] * 4


async def spent_at_least(mesh: LocalMesh, least: int) -> None:
    async def so() -> bool:
        (account,) = (await states(mesh))[0].accounts
        return least <= account.spent

    await eventually(so, f"at least {least} is spent")
