"""Requests that run where a plan has no work of theirs any more: they leave if that clearly pays, and else stay."""

import asyncio
from typing import Final

import pytest

from services.mesh.events import PoolPlan, RoutingPlan, Share, TimingCoefficients, WorkloadClass
from tests.mesh.router.fake_worker import MODEL, breaking, say_nothing
from tests.mesh.router.router_under_test import Router, eventually

pytestmark = pytest.mark.mesh

HERE: Final = "pool-here"
THERE: Final = "pool-there"
DEAR: Final = 10 * 10**9  # nano-dollars per hour
H100: Final = TimingCoefficients(
    prefill_overhead_s=0.002,
    prefill_s_per_token=2e-5,
    decode_base_s=0.006,
    decode_s_per_sequence=5e-5,
    decode_s_per_kv_token=2e-8,
    prefill_s_per_attended_token=0.0,
)


def plan(version: int, pool: str) -> RoutingPlan:
    """All of "standard" in one pool of two alike."""
    anything = WorkloadClass(
        slo_class="standard",
        prompt_tokens_from=0,
        prompt_tokens_to=0,
        completion_tokens_from=0,
        completion_tokens_to=0,
        demand_rps=1.0,
        mean_prompt_tokens=500.0,
        mean_completion_tokens=200.0,
    )
    share = Share(
        workload_class=0, pool=pool, share=1.0, feasible=True, device_s_per_request=0.1, usd_per_request=0.0001
    )
    pools = tuple(
        PoolPlan(
            pool=each,
            accelerator="nvidia-h100-sxm",
            workers=1,
            shadow_usd_per_device_s=0.0,
            utilisation=0.5,
            timing=H100,
            observations=100,
            mean_error=0.05,
            rate_usd_per_hour=1.0,
        )
        for each in (HERE, THERE)
    )
    return RoutingPlan(model=MODEL, version=version, made_unix_ms=0, classes=(anything,), shares=(share,), pools=pools)


@pytest.mark.parametrize(
    ("rate_nusd_per_hour", "made", "leaves"),
    [(DEAR // 5, 2, True), (DEAR, 2, False), (DEAR // 5, 498, False)],
    ids=["what costs less elsewhere leaves", "what costs as much stays", "what is nearly done stays"],
)
async def test_a_request_leaves_a_pool_that_a_plan_has_emptied_only_where_that_pays(
    router: Router, rate_nusd_per_hour: int, made: int, leaves: bool
) -> None:
    here = await router.worker("w0", breaking(made, say_nothing), pool=HERE, rate_nusd_per_hour=DEAR)
    sampling = {"ignore_eos": True, "max_tokens": 500}
    asking = asyncio.create_task(router.answer(sampling=sampling, slo_class="standard"))
    await eventually(lambda: bool(here.opened), "the first worker has it")
    (opened,) = here.opened
    (relay,) = router.running.dispatcher.running()
    await eventually(lambda: relay.journal.next_index == made, "the router has what there is of its answer")
    there = await router.worker("w1", pool=THERE, rate_nusd_per_hour=rate_nusd_per_hour)
    fleet, moves = router.running.fleet, router.running.moves
    assert fleet.plan(plan(1, HERE), "", 0.0)
    moves.look()
    assert not opened.cancelled, "it is where the plan has it"
    assert fleet.plan(plan(2, THERE), "", 0.0)
    moves.look()
    if leaves:
        await eventually(lambda: bool(opened.cancelled) and bool(there.opened), "it leaves")
        assert there.opened[0].order.request.resume_from == made
    else:
        assert not there.opened
        assert not opened.cancelled
        opened.send(opened.tokens(500 - made), opened.finish())
    assert (await asking).tokens == 500
