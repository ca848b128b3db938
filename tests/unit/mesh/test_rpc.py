"""A gRPC server on a free port: errors keep their names, sizes are held, and tools find their way."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.mesh.errors import (
    InvalidRequest,
    InvariantBroken,
    MessageTooLarge,
    QueueFull,
    TokenworksError,
    UnknownModel,
)
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.lifecycle import Lifecycle
from services.mesh.rpc import error_of, open_channel
from services.mesh.telemetry import start_telemetry
from tokenworks.v1 import planning_pb2, planning_pb2_grpc

LIMIT_BYTES = 2048
FAILURES: dict[str, Exception] = {
    "unknown": UnknownModel("model 'x' is not served; use one of: m"),
    "full": QueueFull("32 requests wait", retry_after_s=2.5),
    "defect": RuntimeError("a secret of ours"),
}


class _Optimizer(planning_pb2_grpc.OptimizerServicer):
    async def GetPlan(self, request: Any, context: Any) -> Any:
        if request.model in FAILURES:
            raise FAILURES[request.model]
        return planning_pb2.RoutingPlan(model=request.model, version=7)

    async def WatchPlan(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield planning_pb2.RoutingPlan(model=request.model, version=1)
        if request.model in FAILURES:
            raise FAILURES[request.model]


@pytest.fixture
async def life() -> Lifecycle:
    return Lifecycle("optimizer")


@pytest.fixture
async def channel(life: Lifecycle) -> AsyncIterator[grpc.aio.Channel]:
    telemetry = start_telemetry("optimizer", "optimizer-0")
    server = FastGrpcServer(telemetry, life, max_message_bytes=LIMIT_BYTES)
    server.add(planning_pb2_grpc.add_OptimizerServicer_to_server, _Optimizer(), "tokenworks.v1.Optimizer")
    port = await server.start("127.0.0.1", 0)
    channel = open_channel(f"127.0.0.1:{port}")
    yield channel
    await channel.close()
    await server.drain(0)
    telemetry.shutdown()


async def _failure(channel: grpc.aio.Channel, model: str) -> tuple[grpc.StatusCode, TokenworksError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await planning_pb2_grpc.OptimizerStub(channel).GetPlan(planning_pb2.GetPlanRequest(model=model), timeout=10)
    return caught.value.code(), error_of(caught.value)


async def test_a_call_is_answered(channel: grpc.aio.Channel) -> None:
    plan = await planning_pb2_grpc.OptimizerStub(channel).GetPlan(planning_pb2.GetPlanRequest(model="m"), timeout=10)
    assert (plan.model, plan.version) == ("m", 7)


async def test_an_error_keeps_its_name_its_words_and_when_to_come_back(channel: grpc.aio.Channel) -> None:
    code, error = await _failure(channel, "unknown")
    assert code is grpc.StatusCode.NOT_FOUND
    assert (type(error), str(error), error.retry_after_s) == (UnknownModel, str(FAILURES["unknown"]), None)
    code, error = await _failure(channel, "full")
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (type(error), error.retry_after_s) == (QueueFull, 2.5)


async def test_a_defect_is_told_without_its_details(channel: grpc.aio.Channel) -> None:
    code, error = await _failure(channel, "defect")
    assert code is grpc.StatusCode.INTERNAL
    assert type(error) is InvariantBroken
    assert "secret" not in str(error)


async def test_a_request_over_the_limit_is_refused_by_name(channel: grpc.aio.Channel) -> None:
    code, error = await _failure(channel, "m" * (LIMIT_BYTES + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert type(error) is MessageTooLarge
    assert str(LIMIT_BYTES) in str(error)


async def test_bytes_that_are_no_request_are_the_callers_error_and_no_defect(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    for service, method in (("tokenworks.v1.Optimizer", "GetPlan"), ("grpc.health.v1.Health", "Check")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{service}/{method}")(b"\x0a\x02\xff\xfe", timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = error_of(caught.value)
        assert type(error) is InvalidRequest
        assert f"4 bytes are no request of /{service}/{method}" in str(error)
    assert not caplog.records


async def test_an_error_that_quotes_at_length_arrives_shortened(channel: grpc.aio.Channel) -> None:
    FAILURES["long"] = UnknownModel("\u65e5" * 10_000)
    _, error = await _failure(channel, "long")
    assert type(error) is UnknownModel
    assert str(error).endswith("\u65e5\u2026 (10000 characters)")


async def test_a_stream_that_fails_gives_what_it_had_and_then_the_error(channel: grpc.aio.Channel) -> None:
    call = planning_pb2_grpc.OptimizerStub(channel).WatchPlan(planning_pb2.GetPlanRequest(model="full"), timeout=10)
    assert (await call.read()).version == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert type(error_of(caught.value)) is QueueFull


async def test_health_follows_readiness(channel: grpc.aio.Channel, life: Lifecycle) -> None:
    stub = health_pb2_grpc.HealthStub(channel)

    async def statuses() -> set[int]:
        names = ("", "tokenworks.v1.Optimizer")
        return {(await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)).status for name in names}

    no, yes = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING
    assert await statuses() == {no}
    await life.set_ready()
    assert await statuses() == {yes}
    await life.stop()
    assert await statuses() == {no}


async def test_reflection_lists_the_service(channel: grpc.aio.Channel) -> None:
    async def ask() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    listed = [
        service.name
        async for answer in stub.ServerReflectionInfo(ask(), timeout=10)
        for service in answer.list_services_response.service
    ]
    assert {"tokenworks.v1.Optimizer", "grpc.health.v1.Health"} <= set(listed)


async def test_a_taken_port_is_named(life: Lifecycle) -> None:
    telemetry = start_telemetry("optimizer", "optimizer-0")
    first = FastGrpcServer(telemetry, life, max_message_bytes=LIMIT_BYTES)
    port = await first.start("127.0.0.1", 0)
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        await FastGrpcServer(telemetry, life, max_message_bytes=LIMIT_BYTES).start("127.0.0.1", port)
    await first.drain(0)
    telemetry.shutdown()
