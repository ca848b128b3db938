"""Plans that are tried first, and targets for replicas, from a running optimizer."""

from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from services.mesh.settings import ElasticPool, ElasticSettings
from tests.mesh.running_optimizer import Optimizer, planned, running_optimizer
from tests.unit.optimizer.facts import H100, L4, MI300X, admitted, finished

pytestmark = pytest.mark.mesh


def serve(optimizer: Optimizer, plan: str, count: int, *, kept: bool) -> None:
    """Requests placed under a plan, that ended."""
    for number in range(count):
        request_id = f"{plan}-{number}"
        optimizer.routers.publish(replace(admitted("interactive"), request_id=request_id, plan=plan))
        optimizer.routers.publish(replace(finished(100, "interactive"), request_id=request_id, slo_met=kept))


async def test_a_plan_that_breaks_promises_is_tried_rolled_back_and_listed(tmp_path: Path) -> None:
    terms = {"canary_share": 0.2, "canary_s": 0.2, "canary_requests": 20, "window_s": 2.0}
    async with running_optimizer(tmp_path, changes=terms) as optimizer:
        optimizer.join("dear", H100)
        optimizer.join("cheap", MI300X)
        optimizer.arrive(10, "interactive")
        standing = await optimizer.plan_is(
            lambda plan: bool(plan.classes) and planned(plan).get(MI300X, 0.0) > 0.99, "the cheap pool has the work"
        )
        optimizer.arrive(900, "interactive")
        tried = await optimizer.plan_is(lambda plan: plan.canary_share > 0, "another plan is tried")
        assert tried.canary_share == 0.2
        standing = next(plan for plan in reversed(optimizer.plans) if not plan.canary_share)
        serve(optimizer, standing.name, 60, kept=True)
        serve(optimizer, tried.name, 40, kept=False)
        back = await optimizer.plan_is(lambda plan: bool(plan.rolled_back), "it is rolled back")
        assert back.rolled_back == tried.name
        assert back.shares == standing.shares
        assert "promises kept" in back.because


async def test_targets_are_in_plans_and_served_as_an_autoscaler_reads_them(tmp_path: Path) -> None:
    pools = (
        ElasticPool(pool=MI300X, accelerator=MI300X, least=2, most=9),
        ElasticPool(pool=L4, accelerator=L4, most=4),
    )
    async with running_optimizer(tmp_path, elastic=ElasticSettings(pools=pools)) as optimizer:
        optimizer.join("a", MI300X)
        plan = await optimizer.plan_is(lambda plan: bool(plan.targets), "a plan has targets")
        assert {each.pool: (each.replicas, each.because) for each in plan.targets}[MI300X] == (2, "least")
        url = f"http://{optimizer.running.host}:{optimizer.running.http_port}/v1/targets"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/{MI300X}") as answer:
                found = await answer.json()
                assert (answer.status, found["replicas"]) == (200, 2)
            async with session.get(url) as answer:
                assert {each["pool"] for each in (await answer.json())["targets"]} == {MI300X, L4}
            async with session.get(f"{url}/nowhere") as answer:
                assert answer.status == 404
                assert MI300X in (await answer.json())["error"]
