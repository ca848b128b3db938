"""The optimizer as a service: events in on a bus, plans out on it, questions answered over gRPC."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable
from pathlib import Path

import aiohttp
import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.mesh import conventions as names
from services.mesh.rpc import MESH_SECRET, error_of
from services.mesh.subjects import LATENCY, PLAN
from services.mesh.telemetry import fresh_traceparent, span_context_of, start_telemetry
from tests.mesh.local_mesh import eventually
from tests.mesh.running_optimizer import DEADLINE_S, Optimizer, planned, running_optimizer, shadow
from tests.unit.optimizer.facts import H100, L4, MI300X, MODEL, admitted, finished, steps, timing
from tokenworks.v1 import planning_pb2 as planning

pytestmark = pytest.mark.mesh


async def ask(optimizer: Optimizer, model: str = MODEL) -> planning.RoutingPlan:
    plan: planning.RoutingPlan = await optimizer.stub.GetPlan(planning.GetPlanRequest(model=model), timeout=DEADLINE_S)
    return plan


async def reason_of(call: Awaitable[object]) -> str:
    """The name of the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return error_of(failed.value).reason


async def test_plan_appears_and_its_versions_grow(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        assert await reason_of(optimizer.stub.GetPlan(planning.GetPlanRequest(model=MODEL))) == "UnknownModel"
        optimizer.join("a", H100)
        first = await optimizer.plan_is(lambda plan: bool(plan.pools), "a plan names the pool")
        assert first.status == "idle"
        await optimizer.plan_is(lambda plan: plan.version > first.version, "a later plan")
        versions = [plan.version for plan in optimizer.plans]
        assert versions == sorted(set(versions))
        assert (await ask(optimizer)).version >= versions[-1]


async def test_dear_pool_is_unused_while_a_cheaper_one_has_room(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("dear", H100)
        optimizer.join("cheap", MI300X)
        optimizer.arrive(10, "interactive")
        plan = await optimizer.plan_is(
            lambda plan: len(plan.pools) == 2 and bool(plan.classes) and planned(plan)[MI300X] > 0.99,
            "all work is planned for the cheaper pool",
        )
        assert plan.status == "optimal"
        assert planned(plan)[H100] == pytest.approx(0.0, abs=0.01)
        assert plan.prediction.cost_usd_per_hour < plan.prediction.baseline_cost_usd_per_hour


async def test_tight_class_stays_off_slow_accelerators(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("slow", L4)
        optimizer.join("quick", H100)
        optimizer.arrive(5, "interactive")
        plan = await optimizer.plan_is(
            lambda plan: len(plan.pools) == 2 and bool(plan.classes) and planned(plan)[H100] > 0.99,
            "tight work is planned for the quick pool",
        )
        assert {share.pool: share.feasible for share in plan.shares} == {L4: False, H100: True}


async def test_slowed_pool_loses_its_share_and_gets_it_back(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("a", H100)
        optimizer.join("b", MI300X)
        optimizer.step("b", steps(timing(MI300X), 100))
        optimizer.arrive(10, "interactive")
        await optimizer.plan_is(
            lambda plan: bool(plan.classes) and planned(plan).get(MI300X, 0.0) > 0.99, "the pool has the work"
        )
        optimizer.step("b", steps(timing(MI300X), 10, factor=10.0))
        plan = await optimizer.plan_is(lambda plan: planned(plan)[MI300X] < 0.01, "the slowed pool has none")
        slow = next(pool for pool in plan.pools if pool.pool == MI300X)
        assert slow.timing.decode_base_s > 5 * timing(MI300X).decode_base_s
        optimizer.step("b", steps(timing(MI300X), 10))
        await optimizer.plan_is(lambda plan: planned(plan)[MI300X] > 0.9, "the recovered pool has the work again")


async def test_shadow_price_rises_when_capacity_binds_and_is_zero_when_it_does_not(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("a", L4)
        calm = await optimizer.plan_is(lambda plan: bool(plan.pools), "a plan")
        assert shadow(calm, L4) == 0.0
        optimizer.arrive(30, "batch", 2000, 200)
        busy = await optimizer.plan_is(lambda plan: plan.status == "overloaded", "an overloaded plan")
        assert shadow(busy, L4) > 0.0
        assert busy.prediction.unserved_rps > 0.0
        optimizer.join("b", H100)
        optimizer.join("c", MI300X)
        relieved = await optimizer.plan_is(
            lambda plan: len(plan.pools) == 3 and plan.status == "optimal" and shadow(plan, H100) == 0.0,
            "more workers serve it all, with room",
        )
        assert relieved.prediction.unserved_rps == pytest.approx(0.0, abs=1e-3)


async def test_worker_that_falls_silent_is_planned_for_no_more(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("a", H100)
        optimizer.join("b", MI300X)
        await optimizer.plan_is(lambda plan: len(plan.pools) == 2, "both are planned for")
        optimizer.leave("b")
        plan = await optimizer.plan_is(lambda plan: len(plan.pools) == 1, "one is left")
        assert plan.pools[0].pool == H100


async def test_what_if_answers_and_changes_nothing(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("a", H100)
        optimizer.arrive(10, "interactive")
        await optimizer.plan_is(lambda plan: bool(plan.classes), "a plan with demand")
        answer = await optimizer.stub.WhatIf(
            planning.WhatIfRequest(
                model=MODEL, demand_factor=1000.0, pools=[planning.PoolChange(pool=H100, add_workers=1)]
            ),
            timeout=DEADLINE_S,
        )
        assert answer.now.status == "optimal"
        assert answer.then.status == "overloaded"
        assert shadow(answer.now, H100) == 0.0
        assert shadow(answer.then, H100) > 0.0
        assert [pool.workers for pool in answer.then.pools] == [2]
        assert answer.then.evidence.trigger == "what-if"
        after = await optimizer.plan_is(lambda plan: bool(plan.classes), "a later plan")
        assert after.status == "optimal"
        assert all(plan.evidence.trigger != "what-if" and plan.version > 0 for plan in optimizer.plans)


async def test_decisions_are_listed_with_what_came_true(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("a", H100)
        optimizer.arrive(10, "interactive")
        made = await optimizer.plan_is(lambda plan: bool(plan.classes), "a plan with demand")
        optimizer.routers.publish(dataclasses.replace(admitted(), request_id="r-1", plan=made.name))
        optimizer.routers.publish(dataclasses.replace(finished(10), request_id="r-1", plan=made.name))

        async def so() -> bool:
            asked = planning.ListDecisionsRequest(model=MODEL, most=1000)
            answer = await optimizer.stub.ListDecisions(asked, timeout=DEADLINE_S)
            (found,) = [each for each in answer.decisions if each.plan == made.name]
            assert found.predicted_usd_per_request > 0
            return (found.requests, found.finished_requests) == (1, 1)

        await eventually(so, "its request has ended")
        too_many = planning.ListDecisionsRequest(model=MODEL, most=4000)
        assert await reason_of(optimizer.stub.ListDecisions(too_many, timeout=DEADLINE_S)) == "InvalidRequest"


async def test_an_optimizer_that_only_advises_says_so_in_its_plans(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path, mode="advise") as optimizer:
        optimizer.join("a", H100)
        assert (await optimizer.plan_is(lambda plan: bool(plan.pools), "a plan")).advisory


async def test_why_says_what_a_pool_takes_and_whose_traces_that_rests_on(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("a", H100)
        optimizer.arrive(10, "interactive")
        await optimizer.plan_is(lambda plan: bool(plan.classes), "a plan with classes")
        told = await optimizer.stub.Why(planning.WhyRequest(model=MODEL, pool=H100), timeout=DEADLINE_S)
        assert (told.pool, told.workers, told.status, told.binding) == (H100, 1, "optimal", "")
        assert {each.because for each in told.classes} == {"cheapest"}
        assert told.evidence.request_events > 0
        nowhere = optimizer.stub.Why(planning.WhyRequest(model=MODEL, pool="nowhere"), timeout=DEADLINE_S)
        assert await reason_of(nowhere) == "InvalidRequest"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (planning.WhatIfRequest(), "InvalidRequest"),
        (planning.WhatIfRequest(model="nobody's"), "UnknownModel"),
        (planning.WhatIfRequest(model=MODEL, demand_factor=-1), "InvalidRequest"),
        (planning.WhatIfRequest(model=MODEL, demand_factor=float("nan")), "InvalidRequest"),
        (planning.WhatIfRequest(model=MODEL, pools=[planning.PoolChange(pool="nowhere")]), "InvalidRequest"),
        (planning.WhatIfRequest(model=MODEL, pools=[planning.PoolChange(pool=H100)] * 1001), "InvalidRequest"),
    ],
)
async def test_what_if_names_what_is_wrong(tmp_path: Path, request_: planning.WhatIfRequest, reason: str) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("a", H100)
        await optimizer.plan_is(lambda plan: bool(plan.pools), "a plan")
        assert await reason_of(optimizer.stub.WhatIf(request_, timeout=DEADLINE_S)) == reason


async def test_watcher_sees_each_next_plan_and_ends_with_the_service(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("a", H100)
        await optimizer.plan_is(lambda plan: bool(plan.pools), "a plan")
        watch = optimizer.stub.WatchPlan(planning.GetPlanRequest(model=MODEL), timeout=DEADLINE_S)
        versions = []
        async for plan in watch:
            versions.append(plan.version)
            if len(versions) == 3:
                await optimizer.running.board.stop()
        assert len(versions) >= 3
        assert versions == sorted(set(versions))
        assert await watch.code() == grpc.StatusCode.OK


async def test_plans_evidence_is_the_trace_contexts_of_latency_events_and_its_span_links_to_them(
    tmp_path: Path,
) -> None:
    spans, worker_spans = InMemorySpanExporter(), InMemorySpanExporter()
    telemetry = start_telemetry("optimizer", "optimizer-0", exporter=spans)
    worker_telemetry = start_telemetry("worker", "worker-0", exporter=worker_spans)
    async with running_optimizer(tmp_path, telemetry=telemetry, worker_telemetry=worker_telemetry) as optimizer:
        optimizer.join("a", H100)
        for index in range(20):
            optimizer.step("a", steps(timing(H100), 2, seed=index), fresh_traceparent().removesuffix("00") + "01")
        plan = await optimizer.plan_is(lambda plan: len(plan.evidence.traceparents) == 16, "a plan with evidence")
    await asyncio.to_thread(telemetry.shutdown)
    await asyncio.to_thread(worker_telemetry.shutdown)
    published = {
        (span.context.trace_id, span.context.span_id)
        for span in worker_spans.get_finished_spans()
        if span.context and span.name == names.publish_span(LATENCY.template)
    }
    evidence = [span_context_of(each) for each in plan.evidence.traceparents]
    assert {(each.trace_id, each.span_id) for each in evidence} <= published
    ended = spans.get_finished_spans()
    solved = next(
        span
        for span in ended
        if span.name == names.SOLVE_SPAN.format(model=MODEL) and (span.attributes or {})[names.PLAN] == plan.name
    )
    assert {link.context.span_id for link in solved.links} == {each.span_id for each in evidence}
    assert solved.context is not None
    publish = [
        span
        for span in ended
        if span.name == names.publish_span(PLAN.template)
        and span.parent
        and span.parent.span_id == solved.context.span_id
    ]
    assert len(publish) == 1


async def test_a_plan_says_when_its_news_was_heard_and_its_span_begins_then(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    telemetry = start_telemetry("optimizer", "optimizer-0", exporter=spans)
    began_ms = time.time_ns() // 1_000_000
    async with running_optimizer(tmp_path, telemetry=telemetry, changes={"interval_s": 60.0}) as optimizer:
        for workers in (1, 2):
            optimizer.join(f"w{workers}", H100)
            plan = await optimizer.plan_is(
                lambda plan, workers=workers: bool(plan.pools) and plan.pools[0].workers == workers,
                "a plan for the newcomer",
            )
    assert plan.evidence.trigger == "fleet"
    await asyncio.to_thread(telemetry.shutdown)
    assert began_ms <= plan.evidence.seen_unix_ms <= plan.made_unix_ms
    solved = [span for span in spans.get_finished_spans() if (span.attributes or {}).get(names.PLAN) == plan.name]
    assert plan.evidence.seen_unix_ms * 1_000_000 in {span.start_time for span in solved}


async def test_restarted_optimizer_goes_on_from_the_plan_that_stands(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as before:
        before.join("a", H100)
        before.step("a", steps(timing(H100), 300, factor=2.0))
        stands = await before.plan_is(lambda plan: bool(plan.pools) and plan.pools[0].observations == 300, "a refit")
    async with running_optimizer(tmp_path, broker=before.broker) as after:
        after.join("a", H100)
        plan = await after.plan_is(
            lambda plan: bool(plan.pools) and plan.version > before.plans[-1].version, "a plan of the second"
        )
        assert plan.pools[0].observations == 0
        assert plan.pools[0].timing.decode_base_s == pytest.approx(stands.pools[0].timing.decode_base_s, rel=0.01)


async def test_operators_view_needs_the_meshs_secret_where_there_is_one(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path, secret="s3cret") as optimizer:
        optimizer.join("a", H100)
        await optimizer.plan_is(lambda plan: bool(plan.pools), "a plan")
        asked = planning.GetPlanRequest(model=MODEL)
        assert await reason_of(optimizer.stub.GetPlan(asked, timeout=DEADLINE_S)) == "Unauthenticated"
        what_if = planning.WhatIfRequest(model=MODEL)
        assert await reason_of(optimizer.stub.WhatIf(what_if, timeout=DEADLINE_S)) == "Unauthenticated"
        known = await optimizer.stub.GetPlan(asked, timeout=DEADLINE_S, metadata=((MESH_SECRET, "s3cret"),))
        assert known.model == MODEL


async def test_metrics_show_cost_age_and_error_by_pool(tmp_path: Path) -> None:
    async with running_optimizer(tmp_path) as optimizer:
        optimizer.join("a", H100)
        optimizer.step("a", steps(timing(H100), 50))
        optimizer.arrive(10)
        await optimizer.plan_is(lambda plan: bool(plan.classes) and bool(plan.pools), "a plan")
        url = f"http://{optimizer.running.host}:{optimizer.running.http_port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            text = await answer.text()
    for name in (
        "tokenworks_optimizer_solve_duration_seconds",
        "tokenworks_optimizer_plan_age_seconds",
        "tokenworks_optimizer_plan_cost",
        "tokenworks_optimizer_plan_unserved",
        "tokenworks_optimizer_realised_cost",
        "tokenworks_optimizer_timing_error",
        "tokenworks_optimizer_pool_shadow_price",
    ):
        assert name in text
    assert f'tokenworks_pool="{H100}"' in text
