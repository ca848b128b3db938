"""CI's share of the fuzzing, and what holds the fuzzer itself: targets are found, not listed; a seed is a run.

`make fuzz MESSAGES=100000 SEED=1` sends any number.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

import pytest
from google.protobuf import descriptor_pool, message_factory

from services.mesh.subjects import CHANNELS
from tests.fuzz.grpc_targets import grpc_targets
from tests.fuzz.http_targets import http_targets
from tests.fuzz.mutations import mutated_message
from tests.fuzz.run import culprit, fuzz
from tests.fuzz.world import running_world
from tokenworks.v1 import events_pb2, inference_pb2, metering_pb2, planning_pb2

SEED: Final = 20_261_124
# On the bus thousands are quick; a call takes its time, above all one that has nothing to say.
MESSAGES: Final = {"nats ": 600, "http ": 200, "grpc ": 120}


@pytest.mark.mesh
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", MESSAGES)
async def test_no_message_of_any_kind_breaks_anything(kind: str) -> None:
    report = await fuzz(MESSAGES[kind], SEED, only=lambda name: name.startswith(kind), batch=MESSAGES[kind], halve=0)
    assert not report.findings, (report.findings, report.details)
    assert min(each.messages for each in report.targets.values()) >= MESSAGES[kind]
    if kind == "nats ":
        assert len(report.targets) >= len(CHANNELS) + 3


@pytest.mark.mesh
async def test_every_method_of_every_service_and_every_route_is_a_target(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        methods = {each.name for each in await grpc_targets(world)}
        routes = {each.name for each in http_targets(world)}
    for module in (inference_pb2, metering_pb2, planning_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert any(name.endswith(f" {service.name}/{method.name}") for name in methods), method.full_name
    for service in ("router", "worker", "meter", "optimizer"):
        assert f"grpc {service} Health/Check" in methods
        assert {f"http {service} GET /{path}" for path in ("healthz", "readyz", "metrics")} <= routes
    assert "http router POST /v1/chat/completions" in routes


@pytest.mark.parametrize("guilty", [{700}, {0}, {999}, {3, 500}])
async def test_a_batch_that_did_harm_is_halved_until_one_message_is_named(guilty: set[int]) -> None:
    tried = []

    async def harms(numbers: Sequence[int]) -> bool:
        tried.append(numbers)
        return not guilty.isdisjoint(numbers)

    found = await culprit(range(1000), harms)
    assert len(found) == 1
    assert found[0] in guilty
    assert len(tried) <= 20


async def test_messages_that_do_harm_only_together_are_named_together() -> None:
    async def harms(numbers: Sequence[int]) -> bool:
        return 10 in numbers and 12 in numbers

    found = await culprit(range(1000), harms)
    assert {10, 12} <= set(found)
    assert len(found) < 16


def test_a_seed_gives_the_same_messages_and_another_gives_others() -> None:
    kinds = [
        message_factory.GetMessageClass(each)
        for each in descriptor_pool.Default().FindFileByName(events_pb2.DESCRIPTOR.name).message_types_by_name.values()
    ]

    def messages(seed: int) -> list[bytes]:
        rng = Random(seed)
        return [mutated_message(kind, rng) for kind in kinds for _ in range(20)]

    assert messages(1) == messages(1) != messages(2)
    assert len(set(messages(1))) > 0.8 * len(messages(1))
