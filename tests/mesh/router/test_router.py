"""The router's whole path, with real gRPC on both sides and workers that do what the test says.

Promises: one contiguous stream whatever a worker does, nothing counted for what was refused, one last word per request.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import aiohttp
import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.mesh import conventions as names
from services.mesh.errors import (
    DuplicateRequest,
    EngineFailed,
    PromptTooLong,
    QueueFull,
    TokenworksError,
    Unsupported,
    WorkerLost,
)
from services.mesh.events import CreditChanged, RoutingPlan
from services.mesh.rpc import error_of
from tests.mesh.router.conftest import StartRouter
from tests.mesh.router.fake_worker import MODEL, Opened, answer_at_once, breaking, say_nothing, text_of
from tests.mesh.router.router_under_test import TRACEPARENT, Answer, Router, eventually
from tokenworks.v1 import inference_pb2 as pb

pytestmark = pytest.mark.mesh


async def test_a_stream_is_relayed_with_its_price_its_segments_and_its_trace(router: Router) -> None:
    await router.worker("w0")
    answer = await router.answer(5, request_id="mine", workload="support")
    assert answer.tokens == 5
    assert {each.request_id for each in answer.messages} == {"mine"}
    finish = answer.finish
    assert (finish.reason, finish.usage.prompt_tokens, finish.usage.completion_tokens) == ("length", 7, 5)
    assert finish.price_nusd == 7 * 50 + 5 * 100  # 0.05 and 0.10 USD per million tokens
    segment = pb.Segment(worker="w0", accelerator="nvidia-h100-sxm", from_index=0, count=5)
    assert list(finish.segments) == [segment]
    assert (answer.worker, answer.trace_id) == ("w0", TRACEPARENT[3:35])

    event = await router.last_word()
    assert (event.request_id, event.tenant, event.workload, event.outcome) == ("mine", "acme", "support", "length")
    assert (event.delivered_from, event.delivered_count, event.prompt_tokens) == (0, 5, 7)
    assert event.trace_id == answer.trace_id
    assert event.slo_met
    assert 0 < event.ttft_s <= event.e2e_s
    assert router.admitted[0].worker == "w0"
    assert router.admitted[0].at_unix_ms == event.admitted_unix_ms


async def test_the_worker_is_told_everything_it_needs(start_router: StartRouter) -> None:
    router = await start_router(secret="hush")
    worker = await router.worker("w0")
    await router.answer(3, slo_class="interactive", session_id="s")
    assert worker.metadata[0]["x-tokenworks-router"] == "router-0"
    assert worker.metadata[0]["x-tokenworks-mesh"] == "hush"
    order = worker.opened[0].order
    assert (order.tenant, order.priority, order.tpot_promise_s) == ("acme", 0, 0.03)
    assert order.ttft_promise_s == pytest.approx(0.5, abs=0.01)
    assert (order.request.slo_class, order.request.session_id, order.request.text) == ("interactive", "s", "river")
    assert order.request.request_id
    assert order.traceparent.startswith(TRACEPARENT[:35])


async def test_a_request_without_a_trace_gets_one(router: Router) -> None:
    worker = await router.worker("w0")
    answer = await router.answer(metadata=router.metadata[:1])
    assert len(answer.trace_id) == 32
    assert answer.trace_id in worker.opened[0].order.traceparent
    assert (await router.last_word()).trace_id == answer.trace_id


async def test_many_streams_share_one_session_and_each_is_contiguous(router: Router) -> None:
    worker = await router.worker("w0")
    answers = await asyncio.gather(*[router.answer(20) for _ in range(50)])
    assert [each.tokens for each in answers] == [20] * 50
    assert len(worker.metadata) == 1
    assert sorted(each.order.stream for each in worker.opened) == list(range(1, 51))
    await router.last_word(50)
    assert sum(each.delivered_count for each in router.finished) == 1000


BREAKS: Final[dict[str, Callable[[Opened], None]]] = {
    "the engine fails": lambda opened: opened.send(opened.error(EngineFailed("out of memory"))),
    "the worker drains": lambda opened: opened.send(opened.error(WorkerLost("draining"))),
    "the session ends": lambda opened: opened.session.put_nowait(None),
    "tokens are skipped": lambda opened: opened.send(opened.tokens(1, first=opened.sent + 3)),
    "tokens are repeated": lambda opened: opened.send(opened.tokens(1, first=opened.sent - 1)),
    "it is cancelled unasked": lambda opened: opened.send(opened.finish("cancelled")),
}


@pytest.mark.parametrize("name", BREAKS)
async def test_a_broken_stream_goes_on_elsewhere_and_the_client_sees_one(router: Router, name: str) -> None:
    await router.worker("w0", breaking(3, BREAKS[name]), rate_nusd_per_hour=1)
    second = await router.worker("w1")
    answer = await router.answer(8, request_id="mine")
    assert answer.tokens == 8
    order = second.opened[0].order
    assert order.request.resume_from == 3
    assert list(order.resumed_token_ids.ids) == [0, 1, 2]
    assert order.resumed_text == text_of(0, 3)
    assert order.request.sampling.max_tokens == 8
    assert [(each.worker, each.from_index, each.count) for each in answer.finish.segments] == [
        ("w0", 0, 3),
        ("w1", 3, 5),
    ]
    assert answer.finish.price_nusd == 7 * 50 + 8 * 100
    event = await router.last_word()
    assert (event.delivered_count, event.worker, event.outcome) == (8, "w1", "length")


async def test_a_killed_worker_loses_no_stream(router: Router) -> None:
    first = await router.worker("w0", breaking(2, say_nothing))
    asking = [asyncio.create_task(router.answer(6)) for _ in range(20)]
    await eventually(lambda: len(first.opened) == 20, "all are on the first worker")
    await router.worker("w1")
    await first.stop()
    assert [(await each).tokens for each in asking] == [6] * 20
    await router.last_word(20)


async def test_a_worker_that_comes_back_in_time_is_used_when_there_is_no_other(router: Router) -> None:
    worker = await router.worker("w0", breaking(2, BREAKS["the session ends"]))
    asking = asyncio.create_task(router.answer(5))
    await eventually(lambda: bool(worker.opened), "it has the stream")
    worker.behaviour = answer_at_once
    answer = await asking
    assert answer.tokens == 5
    assert len(worker.metadata) >= 2


async def test_a_stream_that_nobody_can_continue_ends_with_how_far_it_came(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.router.dispatch._RETRY_FOR_S", 0.2)
    worker = await router.worker("w0", breaking(3, say_nothing))
    call = router.generate(8)
    for _ in range(3):
        await call.read()
    await worker.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    error = error_of(caught.value)
    assert isinstance(error, WorkerLost)
    assert "after 3 tokens the answer could not be continued" in str(error)
    event = await router.last_word()
    assert (event.outcome, event.delivered_count, event.prompt_tokens, event.slo_met) == ("error", 3, 0, False)


async def test_a_full_worker_is_passed_over_and_nobody_notices(router: Router) -> None:
    await router.worker(
        "w0", lambda opened: opened.send(opened.error(QueueFull("64 requests wait"))), rate_nusd_per_hour=1
    )
    free = await router.worker("w1")
    answers = [await router.answer() for _ in range(4)]
    assert all(each.tokens == 4 for each in answers)
    assert len(free.opened) == 4
    await router.last_word(4)
    assert {each.worker for each in router.finished} == {"w1"}


async def test_when_every_worker_is_full_the_refusal_leaves_no_trace(router: Router) -> None:
    worker = await router.worker(
        "w0", lambda opened: opened.send(opened.error(QueueFull("64 requests wait", retry_after_s=3)))
    )
    code, error = await router.refusal(request_id="again")
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(error, QueueFull)
    assert error.retry_after_s == 3
    worker.behaviour = answer_at_once
    await router.answer(request_id="again")  # the same id may be sent again: nothing was made of it
    assert (await router.last_word()).request_id == "again"


@pytest.mark.parametrize("error", [PromptTooLong("9000 tokens"), Unsupported("no top_k here")])
async def test_what_only_the_worker_can_know_is_refused_without_a_trace(router: Router, error: TokenworksError) -> None:
    worker = await router.worker("w0", lambda opened: opened.send(opened.error(error)))
    _, refused = await router.refusal()
    assert type(refused) is type(error)
    assert str(refused) == str(error)
    assert len(worker.opened) == 1
    worker.behaviour = answer_at_once
    await router.answer()
    await router.last_word(1)


async def test_a_prompt_that_was_too_long_for_one_worker_may_fit_another(router: Router) -> None:
    await router.worker(
        "short", lambda opened: opened.send(opened.error(PromptTooLong("too long"))), context_tokens=1024,
        rate_nusd_per_hour=1,
    )  # fmt: skip
    long = await router.worker("long", context_tokens=8192)
    assert (await router.answer()).tokens == 4
    assert len(long.opened) == 1


REFUSED: Final = {
    "no key": ({"metadata": ()}, grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated"),
    "not a key": (
        {"metadata": (("authorization", "Bearer tw-guess"),)},
        grpc.StatusCode.UNAUTHENTICATED,
        "Unauthenticated",
    ),
    "unknown model": ({"model": "gpt"}, grpc.StatusCode.NOT_FOUND, "UnknownModel"),
    "bad sampling": ({"sampling": pb.Sampling(top_p=7)}, grpc.StatusCode.INVALID_ARGUMENT, "InvalidSampling"),
    "too long": (
        {"token_ids": pb.TokenIds(ids=range(9000)), "text": None},
        grpc.StatusCode.INVALID_ARGUMENT,
        "PromptTooLong",
    ),
    "resumed": ({"resume_from": 3}, grpc.StatusCode.FAILED_PRECONDITION, "ResumeRefused"),
    "too large": ({"text": "x" * (5 << 20)}, grpc.StatusCode.RESOURCE_EXHAUSTED, "MessageTooLarge"),
}


async def test_every_refusal_has_its_status_and_leaves_no_trace(router: Router) -> None:
    worker = await router.worker("w0")
    for what, (changes, code, reason) in REFUSED.items():
        got, error = await router.refusal(**changes)
        assert (got, error.reason) == (code, reason), what
    assert not worker.opened
    await router.answer()
    await router.last_word(1)


async def test_a_router_without_workers_says_so(router: Router) -> None:
    code, error = await router.refusal()
    assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "NoWorker")
    assert error.retry_after_s


async def test_a_full_router_and_a_running_id_are_refused(start_router: StartRouter) -> None:
    router = await start_router(max_in_flight=2)
    worker = await router.worker("w0", breaking(1, say_nothing))
    calls = [router.generate(request_id="a"), router.generate(request_id="b")]
    for call in calls:
        await call.read()
    assert (await router.refusal(request_id="a"))[1].reason == "DuplicateRequest"
    code, error = await router.refusal(request_id="c")
    assert (code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QueueFull")
    for opened in worker.opened:
        opened.send(opened.finish())
    for call in calls:
        assert (await call.read()).HasField("finish")
    await router.last_word(2)
    assert (await router.refusal(request_id="a"))[1].reason == "DuplicateRequest"  # it would be billed twice


async def test_an_exhausted_tenant_is_refused_until_it_has_credit(router: Router) -> None:
    await router.worker("w0")
    meter = router.broker.bus("meter", "meter-0")
    await meter.connect()

    def credit(at_unix_ms: int, *, exhausted: bool) -> CreditChanged:
        return CreditChanged(
            tenant="acme",
            limit_nusd=10,
            spent_nusd=10,
            remaining_nusd=0,
            unlimited=False,
            exhausted=exhausted,
            suspended=False,
            at_unix_ms=at_unix_ms,
        )

    meter.publish(credit(2, exhausted=True))
    known = router.running.dispatcher.credit
    await eventually(lambda: "acme" in known, "the router knows")
    assert (await router.refusal())[1].reason == "CreditExhausted"
    other = (("authorization", f"Bearer {router.other_key}"),)
    assert (await router.answer(metadata=other)).tokens == 4
    meter.publish(credit(1, exhausted=False))  # the last word, though this meter's host is behind
    await eventually(lambda: "acme" not in known, "the router knows")
    meter.publish(replace(credit(1, exhausted=False), unlimited=True))
    await eventually(lambda: "acme" not in known, "what bounds nothing is not kept")
    assert (await router.answer()).tokens == 4
    await meter.close()


@pytest.mark.parametrize("after", [0, 2])
async def test_a_client_that_leaves_cancels_the_worker_at_once(router: Router, after: int) -> None:
    worker = await router.worker("w0", breaking(after, say_nothing))
    call = router.generate(100)
    await eventually(lambda: bool(worker.opened), "the worker has it")
    for _ in range(after):
        await call.read()
    call.cancel()
    await eventually(lambda: worker.opened[0].cancelled == "cancelled", "the worker is told")
    event = await router.last_word()
    assert (event.outcome, event.delivered_count, event.prompt_tokens) == ("cancelled", after, 0)


async def test_a_deadline_cancels_the_worker(router: Router) -> None:
    worker = await router.worker("w0", say_nothing)
    request = pb.GenerateRequest(model=MODEL, text="river")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.stub.Generate(request, metadata=router.metadata, timeout=0.3).read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: worker.opened[0].cancelled == "cancelled", "the worker is told")
    assert (await router.last_word()).outcome == "cancelled"


async def test_a_slow_client_gets_every_token_in_fewer_messages(router: Router) -> None:
    worker = await router.worker("w0", say_nothing)
    call = router.generate(5000)
    await eventually(lambda: bool(worker.opened), "the worker has it")
    opened = worker.opened[0]
    for _ in range(500):  # far faster than it is read, far more than fits on the way
        opened.send(*[opened.tokens(10)])
    opened.send(opened.finish())
    answer = Answer()
    async for message in call:
        answer.add(message)
    assert answer.tokens == 5000
    assert len(answer.messages) <= 501


async def test_explain_tells_a_tenant_about_its_own_requests_only(router: Router) -> None:
    await router.worker("w0")
    await router.worker("w1", rate_nusd_per_hour=10_000_000_000)
    await router.answer(request_id="mine")
    asked = pb.ExplainRequest(request_id="mine")
    explained = await router.stub.Explain(asked, metadata=router.metadata, timeout=5)
    assert (explained.picked_worker, explained.outcome, explained.tenant) == ("w0", "length", "acme")
    assert [each.worker for each in explained.candidates] == ["w0", "w1"]
    best = explained.candidates[0]
    terms = best.use_usd + best.energy_usd + best.shadow_usd + best.slo_risk_usd - best.prefix_saving_usd
    assert best.score_usd == pytest.approx(terms)
    assert explained.decision_us > 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.stub.Explain(asked, metadata=(("authorization", f"Bearer {router.other_key}"),), timeout=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_models_are_those_that_a_worker_takes_requests_for(router: Router) -> None:
    await router.worker("w0", context_tokens=4096)
    second = await router.worker("w1", accelerator="nvidia-l4", simulated=False)

    async def models() -> list[pb.Model]:
        answer = await router.stub.ListModels(pb.ListModelsRequest(), metadata=router.metadata, timeout=5)
        return list(answer.models)

    (model,) = await models()
    assert (model.name, model.context_tokens, model.workers, model.simulated) == (MODEL, 8192, 2, False)
    assert list(model.accelerators) == ["nvidia-h100-sxm", "nvidia-l4"]
    second.beat(state="draining")
    await eventually(lambda: bool(router.running.fleet.worker("w1").closed_because), "it is known")  # type: ignore[union-attr]
    assert (await models())[0].workers == 1


async def test_a_slow_worker_loses_new_requests_and_gets_them_back(router: Router) -> None:
    slow, other = await router.worker("w0"), await router.worker("w1")

    async def share() -> float:
        before = len(slow.opened)
        await asyncio.gather(*[router.answer(1) for _ in range(20)])
        return (len(slow.opened) - before) / 20

    assert await share() > 0.2
    for _ in range(8):
        slow.observe_step(0.5)
    await eventually(lambda: router.running.fleet.models[MODEL].serving[0].slow > 10, "it is noticed")
    assert await share() == 0
    for _ in range(30):
        slow.observe_step(0.0065)
    await eventually(lambda: router.running.fleet.models[MODEL].serving[0].slow < 1.2, "it is noticed")
    assert await share() > 0.2
    assert other.opened


async def test_requests_leave_a_worker_that_stands_still(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.router.core.fleet._MOVE_WHEN_STALLED_S", 0.2)
    monkeypatch.setattr("services.router.core.known_worker.STALLED_AFTER_S", 0.1)
    hung = await router.worker("w0", breaking(2, say_nothing))
    asking = asyncio.create_task(router.answer(6))
    await eventually(lambda: bool(hung.opened), "the first worker has it")
    healthy = await router.worker("w1")
    started_unix_ms = hung.facts.get("at_unix_ms", 0)
    for tick in range(10):  # heartbeats 50 ms apart by their own clock, and the engine's steps stand still
        hung.beat(running=1, steps=99, at_unix_ms=started_unix_ms + 50 * tick)
        healthy.beat()
        await asyncio.sleep(0.05)
    assert (await asking).tokens == 6
    assert hung.opened[0].cancelled == "cancelled"
    assert healthy.opened[0].order.request.resume_from == 2


async def test_late_interactive_requests_leave_a_slow_worker_and_patient_ones_stay(router: Router) -> None:
    slow = await router.worker("w0", breaking(2, say_nothing))
    asking = [asyncio.create_task(router.answer(6, slo_class=each)) for each in ("interactive", "batch")]
    await eventually(lambda: len(slow.opened) == 2, "the first worker has both")
    healthy = await router.worker("w1")
    for _ in range(8):
        slow.observe_step(0.08)  # more than the 30 ms per token of "interactive", less than the 500 ms of "batch"
    urgent, patient = sorted(slow.opened, key=lambda each: each.order.request.slo_class == "batch")
    await eventually(lambda: bool(urgent.cancelled), "the late one leaves")
    assert healthy.opened[0].order.request.resume_from == 2
    assert not patient.cancelled
    patient.send(patient.tokens(4), patient.finish())
    assert [(await each).tokens for each in asking] == [6, 6]
    assert len(healthy.opened) == 1


async def test_late_requests_stay_where_no_other_worker_would_keep_their_promise(router: Router) -> None:
    slow = await router.worker("w0", breaking(2, say_nothing))
    asking = asyncio.create_task(router.answer(6, slo_class="interactive"))
    await eventually(lambda: bool(slow.opened), "the first worker has it")
    other = await router.worker("w1")
    for each in (slow, other):
        for _ in range(8):
            each.observe_step(0.08)
    fleet = router.running.fleet
    await eventually(lambda: len(fleet.slow(time.monotonic())) == 2, "both are seen to be slow")
    router.running.moves.look()
    assert not slow.opened[0].cancelled
    slow.opened[0].send(slow.opened[0].tokens(4), slow.opened[0].finish())
    assert (await asking).tokens == 6
    assert not other.opened


async def test_draining_finishes_what_runs_and_takes_nothing_new(start_router: StartRouter) -> None:
    router = await start_router(grace_s=5.0)
    worker = await router.worker("w0", breaking(1, say_nothing))
    call = router.generate(3)
    await call.read()
    stopping = asyncio.create_task(router.life.stop())
    await eventually(lambda: router.running.dispatcher.draining, "it drains")
    code, error = await router.refusal()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert error.retry_after_s
    opened = worker.opened[0]
    opened.send(opened.tokens(2), opened.finish())
    left = [await call.read()]
    while not left[-1].HasField("finish"):
        left.append(await call.read())
    assert sum(message.token_count for message in left) == 2
    await stopping
    assert (await router.last_word()).outcome == "length"


async def test_a_request_that_still_runs_where_it_was_lost_goes_on_at_a_third_worker(router: Router) -> None:
    def lose(opened: Opened) -> None:
        opened.send(opened.error(WorkerLost("the way to it broke")))

    def runs_already(opened: Opened) -> None:
        opened.send(opened.error(DuplicateRequest("it runs on this worker already")))

    await router.worker("w0", lose, rate_nusd_per_hour=1)
    cut_off = await router.worker("w1", runs_already, rate_nusd_per_hour=1_000_000)
    third = await router.worker("w2")
    assert (await router.answer(4)).tokens == 4
    assert (len(cut_off.opened), len(third.opened)) == (1, 1)


async def test_what_does_not_end_within_the_grace_is_cut_off(start_router: StartRouter) -> None:
    router = await start_router(grace_s=0.1)
    worker = await router.worker("w0", breaking(1, say_nothing))
    call = router.generate(3)
    await call.read()
    await router.life.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert worker.opened[0].cancelled == "cancelled"
    event = await router.last_word()
    assert (event.outcome, event.delivered_count) == ("cancelled", 1)


async def test_place_says_what_to_call_instead(router: Router) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.stub.Place(pb.GenerateRequest(model=MODEL, text="x"), metadata=router.metadata, timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def plan(version: int) -> RoutingPlan:
    return RoutingPlan(model=MODEL, version=version, made_unix_ms=version)


async def test_the_route_is_a_span_of_the_request_that_links_to_its_plan(start_router: StartRouter) -> None:
    exporter = InMemorySpanExporter()
    router = await start_router(exporter=exporter)
    await router.worker("w0")
    await router.worker("w1", accelerator="nvidia-l4", rate_nusd_per_hour=10**12)
    router.running.fleet.plan(plan(3), "00-11111111111111111111111111111111-2222222222222222-01", 0.0)
    answer = await router.answer(2, request_id="mine", workload="support")
    assert router.admitted == [] or router.admitted[0].plan == f"{MODEL}:3"
    await router.last_word()
    await router.life.stop()
    spans = {each.name: each for each in exporter.get_finished_spans()}
    served, route = spans["tokenworks.v1.Router/Generate"], spans[f"route {MODEL}"]
    assert served.context is not None
    assert route.parent is not None
    assert route.parent.span_id == served.context.span_id
    assert f"{served.context.trace_id:032x}" == answer.trace_id == TRACEPARENT[3:35]
    (link,) = route.links
    assert f"{link.context.trace_id:032x}" == "1" * 32
    assert route.attributes is not None
    assert route.attributes[names.WORKER] == "w0"
    candidates = route.attributes[names.CANDIDATES]
    assert [str(each).split("=")[0] for each in candidates] == ["w0", "w1"]  # type: ignore[union-attr]
    assert served.attributes is not None
    assert served.attributes[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 2
    assert served.attributes[names.WORKLOAD] == "support"
    assert served.attributes[names.PLAN] == f"{MODEL}:3"


async def test_a_refused_request_leaves_a_span_that_says_why(start_router: StartRouter) -> None:
    exporter = InMemorySpanExporter()
    router = await start_router(exporter=exporter)
    await router.worker("w0", context_tokens=16)
    await router.refusal(token_ids=pb.TokenIds(ids=range(9000)), text=None)
    await router.life.stop()
    spans = {each.name: each for each in exporter.get_finished_spans()}
    for name in ("tokenworks.v1.Router/Generate", f"route {MODEL}"):
        attributes = spans[name].attributes
        assert attributes is not None
        assert attributes[names.ERROR_TYPE] == "PromptTooLong"


async def test_how_long_a_plan_took_from_its_news_is_measured_once_and_in_its_own_trace(
    start_router: StartRouter,
) -> None:
    exporter = InMemorySpanExporter()
    router = await start_router(exporter=exporter)
    await router.worker("w0")
    optimizer = router.broker.bus("optimizer", "optimizer-0")
    await optimizer.connect()
    now_ms = time.time_ns() // 1_000_000
    published = "00-11111111111111111111111111111111-2222222222222222-01"
    for version, seen_unix_ms in ((1, 1), (2, 0), (3, now_ms + 1), (2, now_ms + 1)):  # old news; none; news; passed by
        evidence = replace(plan(1).evidence, trigger="fleet", seen_unix_ms=seen_unix_ms)
        optimizer.publish(replace(plan(version), evidence=evidence), traceparent=published)
    optimizer.publish(replace(plan(9), advisory=True), traceparent=published)
    applied = f"apply {MODEL}"
    await eventually(
        lambda: sum(each.name == applied for each in exporter.get_finished_spans()) == 5, "every plan leaves a span"
    )
    spans = [each for each in exporter.get_finished_spans() if each.name == applied]
    assert [dict(each.attributes or {})[names.PLAN_APPLIED] for each in spans] == [True, True, True, False, False]
    assert {f"{each.parent.trace_id:032x}" for each in spans if each.parent} == {"1" * 32}
    async with aiohttp.ClientSession() as http:
        url = f"http://{router.running.host}:{router.running.http_port}/metrics"
        async with http.get(url) as response:
            text = await response.text()
    counts = [line for line in text.splitlines() if "plan_reaction" in line and "_count" in line]
    assert len(counts) == 1
    assert 'trigger="fleet"' in counts[0]
    assert float(counts[0].split()[-1]) == 1.0
    await optimizer.close()
