"""Tenants and keys whose requests stay where they may be computed, through a real mesh."""

import asyncio
from pathlib import Path
from typing import Final

import pytest

from services.mesh.confines import ConfinesSettings
from services.mesh.keys import KeyStore
from services.mesh.settings import MeshSettings, PlacementSettings
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import MODEL, eventually, simulated
from tokenworks import GenerateError
from tokenworks.v1 import inference_pb2 as wire
from tokenworks.v1 import inference_pb2_grpc, planning_pb2, planning_pb2_grpc

pytestmark = pytest.mark.mesh

CONFINED: Final = PlacementSettings(
    tenants={
        "clinic": ConfinesSettings(regions=("eu",), data_classes=("health",)),
        "lunar": ConfinesSettings(regions=("moon",)),
    }
)


async def test_confined_requests_stay_inside_relayed_and_direct_and_are_planned_so(
    start_mesh: StartMesh, tmp_path: Path
) -> None:
    mesh = await start_mesh(
        simulated("eu-0", region="eu", data_classes=("health",)),
        simulated("eu-1", region="eu"),
        simulated("us-0", "amd-mi300x", region="us", data_classes=("health",)),
        mesh=MeshSettings(secret="hush", drain_grace_s=5.0),
        placement=CONFINED,
    )
    keys = KeyStore(tmp_path / "mesh-0" / "keys.json")
    clinic, lunar = keys.create("clinic", "", 0), keys.create("lunar", "", 0)
    within = keys.create("local", "", 0, within="vendor=AMD")
    seen: dict[str, set[str]] = {"clinic": set(), "local": set()}
    for key, tenant in ((clinic, "clinic"), (within, "local")):
        for direct in (False, True):
            client = mesh.client(key=key, direct=direct)
            streams = [client.generate(text=f"river {n}", model=MODEL, max_tokens=4) for n in range(8)]
            await asyncio.gather(*[each.text() for each in streams])
        stub = inference_pb2_grpc.RouterStub(mesh.channel("router"))
        for _ in range(4):
            placed = await stub.Place(
                wire.GenerateRequest(text="hill", model=MODEL), metadata=(("authorization", f"Bearer {key}"),)
            )
            seen[tenant].add(placed.worker)
    assert seen == {"clinic": {"eu-0"}, "local": {"us-0"}}
    usage = await mesh.usage("tenant", "pool")
    assert {(each.key.tenant, each.key.pool) for each in usage.rows if each.delivered_tokens} <= {
        ("clinic", "nvidia-h100-sxm-eu"),
        ("local", "amd-mi300x-us"),
    }
    with pytest.raises(GenerateError, match="region=moon is kept by 0 of 3 workers"):
        await mesh.client(key=lunar).generate(text="sea", model=MODEL, max_tokens=4).text()
    optimizer = planning_pb2_grpc.OptimizerStub(mesh.channel("optimizer"))
    expected = {("region=eu;data=health", "nvidia-h100-sxm-eu"), ("vendor=AMD", "amd-mi300x-us")}

    async def planned_inside() -> bool:
        plan = await optimizer.GetPlan(planning_pb2.GetPlanRequest(model=MODEL), metadata=mesh.operator)
        feasible = {(plan.classes[each.workload_class].within, each.pool) for each in plan.shares if each.feasible}
        assert feasible <= expected
        return feasible == expected

    await eventually(planned_inside, "a plan has classes of their own for confined requests")
