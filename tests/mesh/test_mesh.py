"""The mesh's promises, end to end: a client on one side, the meter's books on the other, everything between real."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import grpc
import pytest

from services.mesh.price_book import Price, PriceBook
from services.mesh.settings import MeshSettings, RouterSettings
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import DEADLINE_S, MODEL, LocalMesh, eventually, simulated
from tokenworks import CallError, Client, GenerateError, Result
from tokenworks.v1 import inference_pb2, metering_pb2, metering_pb2_grpc, pricing_pb2, pricing_pb2_grpc

pytestmark = pytest.mark.mesh

Fault: Final = inference_pb2.InjectFaultRequest


async def stream(client: Client, text: str = "river", max_tokens: int = 16, model: str = MODEL) -> Result:
    """One whole stream; the client itself fails it when its indexes are not contiguous from 0."""
    async with client.generate(text=text, model=model, max_tokens=max_tokens, ignore_eos=True) as generation:
        tokens = sum([piece.token_count async for piece in generation])
    assert generation.result is not None
    assert generation.result.completion_tokens == tokens
    return generation.result


async def streams(client: Client, count: int, max_tokens: int = 16) -> list[Result]:
    return await asyncio.gather(*[stream(client, f"river {each}", max_tokens) for each in range(count)])


def workers_of(results: Sequence[Result]) -> Counter[str]:
    """Streams by the worker that made their first token."""
    return Counter(result.segments[0].worker for result in results)


async def test_two_hundred_streams_at_once_are_contiguous_and_metered_to_the_token(mesh: LocalMesh) -> None:
    results = await streams(mesh.client(), 200, max_tokens=24)
    total = await mesh.settled(200)
    tokens = sum(each.completion_tokens for each in results)
    assert tokens == 200 * 24
    assert total.delivered_tokens == total.generated_tokens == tokens
    assert total.prompt_tokens == sum(each.prompt_tokens for each in results)
    assert total.price_nusd == sum(each.price_nusd for each in results) > 0
    assert total.requests == total.finished_requests == 200


async def test_usage_names_the_accelerators_that_served(mesh: LocalMesh) -> None:
    results = await streams(mesh.client(), 30)
    await mesh.settled(30)
    made: Counter[str] = Counter()
    for result in results:
        for segment in result.segments:
            made[segment.accelerator] += segment.count
    rows = [row for row in (await mesh.usage("accelerator")).rows if row.requests]  # others may have been idle
    assert {row.key.accelerator: row.delivered_tokens for row in rows} == made
    assert all(row.use_cost_nusd > 0 and row.energy_cost_nusd > 0 for row in rows)


async def test_one_request_has_one_bill_that_the_client_was_told(mesh: LocalMesh) -> None:
    result = await stream(mesh.client())
    await mesh.settled(1)
    bill = await metering_pb2_grpc.MeterStub(mesh.channel("meter")).GetRequest(
        metering_pb2.GetRequestRequest(request_id=result.request_id), timeout=DEADLINE_S
    )
    assert (bill.price_nusd, bill.delivered_tokens) == (result.price_nusd, result.completion_tokens)
    assert [(each.worker, each.from_index, each.count) for each in bill.segments] == [
        (each.worker, each.from_index, each.count) for each in result.segments
    ]
    costs_nusd = bill.use_cost_nusd + bill.energy_cost_nusd + bill.idle_cost_nusd + bill.house_cost_nusd
    assert bill.margin_nusd == bill.price_nusd - costs_nusd
    assert bill.trace_id == result.trace_id


async def test_explain_returns_the_decision(mesh: LocalMesh) -> None:
    client = mesh.client()
    result = await stream(client)
    explained = await client.explain(result.request_id)
    assert explained.picked_worker == result.segments[0].worker
    assert {each.worker for each in explained.candidates} == {"h100-0", "h100-1", "mi300x-0"}
    feasible = [each.score_usd for each in explained.candidates if each.feasible]
    assert feasible == sorted(feasible)
    assert explained.outcome == result.reason == "length"
    assert explained.tenant == "local"


async def test_a_slowed_worker_loses_new_requests_and_regains_them_when_it_recovers(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(simulated("h100-0"), simulated("h100-1"))
    client = mesh.client()

    async def share_of_slowed() -> float:
        found = workers_of(await streams(client, 20, max_tokens=8))
        return found["h100-0"] / found.total()

    async def shunned() -> bool:
        return await share_of_slowed() < 0.2

    async def used_again() -> bool:
        return await share_of_slowed() > 0.2

    await eventually(used_again, "an unbroken worker gets its part of the requests")
    await mesh.inject("h100-0", Fault.KIND_SLOW, factor=10.0)
    await eventually(shunned, "less than a fifth of new requests go to the slowed worker")
    await mesh.inject("h100-0", Fault.KIND_NONE)
    await eventually(used_again, "the recovered worker gets its part again")


async def test_cancelling_a_stream_stops_the_engine_and_bills_what_was_delivered(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(simulated("h100-0"))
    delivered = 0
    async with mesh.client().generate(text="river", model=MODEL, max_tokens=100_000, ignore_eos=True) as generation:
        async for piece in generation:
            delivered += piece.token_count
            if delivered >= 5:
                break
    total = await mesh.settled(1)
    assert delivered <= total.delivered_tokens <= total.generated_tokens < 1_000
    bill = await metering_pb2_grpc.MeterStub(mesh.channel("meter")).GetRequest(
        metering_pb2.GetRequestRequest(request_id=generation.request_id), timeout=DEADLINE_S
    )
    assert bill.outcome == "cancelled"

    async def idle() -> bool:
        return mesh.parts["h100-0"].running.engine.stats().running == 0

    await eventually(idle, "the engine has dropped the sequence")


BAD_REQUESTS: Final = {
    "unknown model": ({"model": "gpt-none", "text": "river"}, grpc.StatusCode.NOT_FOUND, "UnknownModel"),
    "unknown class": ({"text": "river", "slo_class": "never"}, grpc.StatusCode.INVALID_ARGUMENT, "UnknownSloClass"),
    "prompt longer than any context": (
        {"token_ids": [7] * 200_000},
        grpc.StatusCode.INVALID_ARGUMENT,
        "PromptTooLong",
    ),
    "temperature": ({"text": "river", "temperature": 3.0}, grpc.StatusCode.INVALID_ARGUMENT, "InvalidSampling"),
    "top_p": ({"text": "river", "top_p": 0.0}, grpc.StatusCode.INVALID_ARGUMENT, "InvalidSampling"),
    "max_tokens": ({"text": "river", "max_tokens": 0}, grpc.StatusCode.INVALID_ARGUMENT, "InvalidSampling"),
    "empty stop": ({"text": "river", "stop": [""]}, grpc.StatusCode.INVALID_ARGUMENT, "InvalidSampling"),
    "empty prompt": ({"text": ""}, grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest"),
}


async def refused(client: Client, **request: object) -> GenerateError:
    with pytest.raises(GenerateError) as caught:
        await client.generate(**{"model": MODEL, "max_tokens": 4, **request}).text()  # type: ignore[arg-type]
    return caught.value


async def test_every_bad_request_has_its_own_status_and_counts_for_nothing(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(simulated("h100-0"), mesh=MeshSettings(max_message_bytes=1 << 20))
    client = mesh.client()
    for what, (request, code, reason) in BAD_REQUESTS.items():
        error = await refused(client, **request)
        assert (error.code, error.reason) == (code, reason), what
        assert error.message, what
    too_large = await refused(client, text="river " * 400_000)
    assert (too_large.code, too_large.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MessageTooLarge")
    for key in ("", "tw-not-a-key"):
        error = await refused(mesh.client(key=key), text="river")
        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated")
    with pytest.raises(CallError, match="UnknownRequest"):
        await client.explain("never-sent")

    await stream(client)  # its booking comes after anything the refused ones could have left
    total = await mesh.settled(1)
    assert (total.requests, total.delivered_tokens, total.generated_tokens) == (1, 16, 16)


async def test_a_full_router_refuses_with_a_time_to_come_back(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(simulated("h100-0"), router=RouterSettings(port=0, http_port=0, max_in_flight=2))
    client = mesh.client()
    # On a slowed machine a class that promises its first token soon may be refused before the router is full, and what
    # fills it must not end before its client asks for more.
    long: dict[str, Any] = {"max_tokens": 100_000, "ignore_eos": True, "slo_class": "batch", "deadline_s": 600.0}
    async with (
        client.generate(text="a", model=MODEL, **long) as first,
        client.generate(text="b", model=MODEL, **long) as second,
    ):
        await anext(first)
        await anext(second)
        error = await refused(client, text="c")
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QueueFull")
    assert error.retry_after_s
    total = await mesh.settled(2)
    assert total.requests == 2


async def test_a_tenant_out_of_credit_is_refused_until_it_is_topped_up(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(simulated("h100-0"))
    client, meter = mesh.client(), metering_pb2_grpc.MeterStub(mesh.channel("meter"))
    spent = await stream(client)

    async def served() -> bool:
        try:
            await stream(client)
        except GenerateError:
            return False
        return True

    async def refused_at_last() -> bool:
        return not await served()

    await mesh.settled(1)
    await meter.SetBudget(metering_pb2.SetBudgetRequest(tenant="local", limit_nusd=spent.price_nusd), timeout=5)
    await eventually(refused_at_last, "an exhausted tenant is refused")
    error = await refused(client, text="river")
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CreditExhausted")
    await meter.SetBudget(metering_pb2.SetBudgetRequest(tenant="local", limit_nusd=10**12), timeout=5)
    await eventually(served, "a topped-up tenant is served")


async def test_a_drained_worker_finishes_its_streams_and_gets_no_more(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(simulated("h100-0"), simulated("h100-1"))
    client = mesh.client()
    running = asyncio.gather(*[stream(client, f"river {each}", max_tokens=100) for each in range(12)])

    async def all_started() -> bool:
        answer = await mesh.usage("worker")
        return {row.key.worker for row in answer.rows if row.generated_tokens} == {"h100-0", "h100-1"}

    await eventually(all_started, "both workers serve")
    await mesh.stop_part("h100-0")
    assert all(each.completion_tokens == 100 for each in await running)
    assert workers_of(await streams(client, 10)) == {"h100-1": 10}
    total = await mesh.settled(22)
    assert total.delivered_tokens == 12 * 100 + 10 * 16


async def test_health_and_reflection_are_served(mesh: LocalMesh) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    wanted = {"router": "Router", "meter": "Meter", "optimizer": "Optimizer", "h100-0": "Worker"}
    for part, service in wanted.items():
        channel = mesh.channel(part)
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=f"tokenworks.v1.{service}"), timeout=5
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5
        )
        listed = {each.name for each in (await anext(aiter(answers))).list_services_response.service}
        assert f"tokenworks.v1.{service}" in listed


async def test_fault_control_exists_only_where_the_settings_allow_it(start_mesh: StartMesh) -> None:
    guarded = simulated("h100-0").model_copy(update={"faults": False})
    mesh = await start_mesh(guarded)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.inject("h100-0", Fault.KIND_SLOW, factor=10.0)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_book_that_is_loaded_prices_what_is_told_and_billed_from_then_on(mesh: LocalMesh) -> None:
    client = mesh.client()
    before = await stream(client)
    rate = Decimal(7)
    book = PriceBook(
        version=2, prices=(Price(input_usd_per_mtok=rate, cached_input_usd_per_mtok=rate, output_usd_per_mtok=rate),)
    )
    service = pricing_pb2_grpc.PricingStub(mesh.channel("meter"))
    await service.OpenPrices(pricing_pb2.OpenPricesRequest(body_json=book.model_dump_json()), timeout=DEADLINE_S)
    results = [before]

    async def dearer() -> bool:
        results.append(await stream(client))
        told = results[-1]
        return told.price_nusd == 7000 * (told.prompt_tokens + told.completion_tokens)

    await eventually(dearer, "the router prices by the book that was loaded")
    total = await mesh.settled(len(results))
    assert total.price_nusd == sum(each.price_nusd for each in results)
