import asyncio
import json
import re

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.mesh import conventions as names
from services.mesh.errors import EngineFailed, InvalidSampling, NoWorker, QueueFull, UnknownModel
from tests.unit.client.fake_router import KEY, FakeRouter, serving
from tokenworks import CallError, Client, GenerateError, TokenLogprob
from tokenworks.identity import new_request_id

SOON_S = 0.01


async def test_stream_gives_contiguous_pieces_and_then_the_result():
    async with serving(FakeRouter()) as address, Client(address, KEY) as client:
        stream = client.generate(text="hello", model="m", max_tokens=3, slo_class="batch", workload="w/x")
        pieces = [piece async for piece in stream]
        assert [piece.first_index for piece in pieces] == [0, 1, 2]
        assert "".join(piece.text for piece in pieces) == "w0 w1 w2 "
        assert [list(piece.token_ids) for piece in pieces] == [[0], [1], [2]]
        result = stream.result
        assert result is not None
        assert (result.reason, result.completion_tokens, result.cached_prompt_tokens) == ("length", 3, 2)
        assert (result.price_nusd, result.segments[0].accelerator) == (1234, "nvidia-h100-sxm")


async def test_request_carries_prompt_sampling_and_labels():
    router = FakeRouter()
    async with serving(router) as address, Client(address, KEY) as client:
        await client.generate(
            chat=[{"role": "user", "content": "hi"}],
            model="m",
            max_tokens=1,
            temperature=0.0,
            stop=["."],
            session_id="s",
            request_id="mine",
        ).text()
        await client.generate(token_ids=[1, 2, 3], max_tokens=1, ignore_eos=True).text()
    first, second = router.requests
    assert (first.chat.messages[0].content, first.sampling.temperature, first.request_id) == ("hi", 0.0, "mine")
    assert first.sampling.HasField("temperature")
    assert not first.sampling.HasField("top_p")
    assert (list(first.sampling.stop), first.session_id) == (["."], "s")
    assert (list(second.token_ids.ids), second.sampling.ignore_eos) == ([1, 2, 3], True)


async def test_features_are_asked_for_and_come_with_the_pieces():
    tools = [{"type": "function", "function": {"name": "clock"}}]
    chat = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "clock"}}]},
        {"role": "tool", "content": "noon", "tool_call_id": "c1"},
    ]
    router = FakeRouter()
    async with serving(router) as address, Client(address, KEY) as client:
        stream = client.generate(
            chat=chat,
            max_tokens=1,
            logprobs=1,
            response_format={"type": "json_object"},
            tools=tools,
            tool_choice="auto",
        )
        (piece,) = [each async for each in stream]
    asked = router.requests[0]
    assert json.loads(asked.tools_json) == tools
    assert (asked.response_format_json, asked.tool_choice_json) == ('{"type": "json_object"}', '"auto"')
    assert asked.sampling.logprobs == 1
    assert [each.tool_call_id for each in asked.chat.messages] == ["", "", "c1"]
    assert json.loads(asked.chat.messages[1].tool_calls_json)[0]["id"] == "c1"
    assert piece.logprobs == (TokenLogprob("w0 ", -0.5, (("x ", -1.5),)),)
    assert piece.tool_calls == ({"index": 0, "function": {"arguments": "{}"}},)


async def test_empty_token_ids_are_still_a_prompt_of_that_form():
    router = FakeRouter()
    async with serving(router) as address, Client(address, KEY) as client:
        await client.generate(token_ids=[], max_tokens=1).text()
    assert router.requests[0].WhichOneof("prompt") == "token_ids"


@pytest.mark.parametrize("prompts", [{}, {"text": "a", "token_ids": [1]}])
async def test_exactly_one_form_of_prompt_is_taken(prompts):
    async with Client("127.0.0.1:1", KEY) as client:
        with pytest.raises(ValueError, match="exactly one of text, token_ids and chat"):
            client.generate(**prompts)


async def test_refusal_is_raised_with_its_name_and_code():
    router = FakeRouter()
    router.refusals.append(UnknownModel("model 'x' is not served; use one of: y"))
    async with serving(router) as address, Client(address, KEY) as client:
        stream = client.generate(text="a", model="x")
        with pytest.raises(GenerateError) as caught:
            await stream.text()
    error = caught.value
    assert (error.reason, error.code, error.retry_after_s) == ("UnknownModel", grpc.StatusCode.NOT_FOUND, None)
    assert "use one of" in error.message
    assert (error.request_id, error.trace_id, error.next_index) == (stream.request_id, stream.trace_id, 0)
    assert len(router.requests) == 1


async def test_wrong_key_is_unauthenticated():
    async with serving(FakeRouter()) as address, Client(address, "tw-wrong") as client:
        with pytest.raises(GenerateError) as caught:
            await client.generate(text="a").text()
        assert caught.value.reason == "Unauthenticated"
        with pytest.raises(CallError) as refused:
            await client.models()
        assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED


async def test_failure_before_the_first_token_is_retried_with_the_same_request_id():
    router = FakeRouter()
    router.refusals.extend([NoWorker("none", retry_after_s=SOON_S), QueueFull("full", retry_after_s=SOON_S)])
    async with serving(router) as address, Client(address, KEY) as client:
        stream = client.generate(text="a", max_tokens=2)
        assert await stream.text() == "w0 w1 "
    assert stream.attempts == 3
    assert {each.request_id for each in router.requests} == {stream.request_id}
    assert len(set(router.traceparents)) == 1


async def test_retries_are_bounded():
    router = FakeRouter()
    router.refusals.extend(NoWorker("none", retry_after_s=SOON_S) for _ in range(5))
    async with serving(router) as address, Client(address, KEY, max_attempts=2) as client:
        with pytest.raises(GenerateError, match="NoWorker"):
            await client.generate(text="a", max_tokens=2).text()
    assert len(router.requests) == 2


async def test_retry_that_would_pass_the_deadline_is_not_waited_for():
    router = FakeRouter()
    router.refusals.append(NoWorker("none", retry_after_s=3600))
    async with serving(router) as address, Client(address, KEY) as client:
        with pytest.raises(GenerateError) as caught:
            await client.generate(text="a", max_tokens=2, deadline_s=60).text()
    assert caught.value.retry_after_s == 3600


async def test_wrong_requests_are_not_retried():
    router = FakeRouter()
    router.refusals.append(InvalidSampling("temperature 9 is above 2"))
    async with serving(router) as address, Client(address, KEY) as client:
        with pytest.raises(GenerateError, match="InvalidSampling"):
            await client.generate(text="a", temperature=9).text()
    assert len(router.requests) == 1


async def test_break_in_mid_stream_names_the_index_reached():
    router = FakeRouter(break_at={2: EngineFailed("after 2 tokens the answer could not be continued")})
    async with serving(router) as address, Client(address, KEY) as client:
        stream = client.generate(text="a", max_tokens=4)
        with pytest.raises(GenerateError) as caught:
            await stream.text()
    assert (caught.value.reason, caught.value.next_index) == ("EngineFailed", 2)
    assert len(router.requests) == 1


async def test_gap_in_the_indexes_is_an_error_and_not_handed_on():
    router = FakeRouter(skip={1})
    async with serving(router) as address, Client(address, KEY) as client:
        stream = client.generate(text="a", max_tokens=3)
        assert (await anext(stream)).first_index == 0
        with pytest.raises(GenerateError, match="token 1 was due and token 2 came"):
            await anext(stream)


async def test_leaving_early_cancels_the_request():
    router = FakeRouter(hold_at=1)
    async with serving(router) as address, Client(address, KEY) as client:
        async with client.generate(text="a", max_tokens=3) as stream:
            assert (await anext(stream)).text == "w0 "
        async with asyncio.timeout(10):
            await router.cancelled.wait()
        assert stream.result is None
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_closing_from_another_task_ends_the_iteration():
    router = FakeRouter(hold_at=1)
    async with serving(router) as address, Client(address, KEY) as client:
        stream = client.generate(text="a", max_tokens=3)
        reading = asyncio.create_task(stream.text())
        async with asyncio.timeout(10):
            await router.reached_hold.wait()
            await stream.aclose()
            await reading
            await router.cancelled.wait()


async def test_cancelling_the_reading_task_cancels_the_request():
    router = FakeRouter(hold_at=1)
    async with serving(router) as address, Client(address, KEY) as client:
        reading = asyncio.create_task(client.generate(text="a", max_tokens=3).text())
        async with asyncio.timeout(10):
            await router.reached_hold.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await router.cancelled.wait()


async def test_deadline_ends_the_stream():
    router = FakeRouter(hold_at=1)
    async with serving(router) as address, Client(address, KEY) as client:
        with pytest.raises(GenerateError) as caught:
            await client.generate(text="a", max_tokens=3, deadline_s=0.3).text()
    assert (caught.value.reason, caught.value.code) == ("RequestTimedOut", grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_absent_router_is_unreachable_after_the_attempts():
    async with Client("127.0.0.1:1", KEY, max_attempts=2) as client:
        stream = client.generate(text="a")
        with pytest.raises(GenerateError) as caught:
            await stream.text()
        assert (caught.value.reason, stream.attempts) == ("Unreachable", 2)
        with pytest.raises(CallError, match=r"no router answers at 127\.0\.0\.1:1"):
            await client.connected(0.2)


async def test_request_without_a_tracer_has_a_trace_of_its_own_unsampled():
    router = FakeRouter()
    async with serving(router) as address, Client(address, KEY) as client:
        stream = client.generate(text="a", max_tokens=1)
        await stream.text()
    assert re.fullmatch(rf"00-{stream.trace_id}-[0-9a-f]{{16}}-00", router.traceparents[0])
    assert stream.trace_id != "0" * 32


async def test_traced_request_is_one_client_span_with_usage():
    router, kept, provider = FakeRouter(), InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    async with serving(router) as address, Client(address, KEY, tracer=provider.get_tracer("test")) as client:
        stream = client.generate(text="a", model="m", max_tokens=2)
        await stream.text()
    (span,) = kept.get_finished_spans()
    provider.shutdown()
    assert (span.name, span.kind) == (names.CLIENT_SPAN.replace("{model}", "m"), SpanKind.CLIENT)
    version, trace_id, span_id, flags = router.traceparents[0].split("-")
    assert (version, trace_id, span_id) == ("00", stream.trace_id, f"{span.context.span_id:016x}")
    assert int(flags, 16) & 1, "a recorded span is sampled"
    assert dict(span.attributes) == {
        names.GEN_AI_OPERATION: "chat",
        names.GEN_AI_PROVIDER: names.PROVIDER,
        names.GEN_AI_REQUEST_MODEL: "m",
        names.GEN_AI_REQUEST_MAX_TOKENS: 2,
        names.REQUEST_ID: stream.request_id,
        names.GEN_AI_RESPONSE_FINISH_REASONS: ("length",),
        names.GEN_AI_USAGE_INPUT_TOKENS: 5,
        names.GEN_AI_USAGE_CACHED_TOKENS: 2,
        names.GEN_AI_USAGE_OUTPUT_TOKENS: 2,
        names.PRICE_NUSD: 1234,
    }


async def test_models_and_explanations_are_answered():
    async with serving(FakeRouter()) as address, Client(address, KEY) as client:
        assert [model.name for model in await client.models()] == ["llama-3.1-8b"]
        assert (await client.explain("known")).picked_worker == "h100-0"
        with pytest.raises(CallError, match="UnknownRequest"):
            await client.explain("never seen")


def test_request_ids_are_version_7_and_sort_by_time():
    made = [new_request_id() for _ in range(3)]
    assert all(
        re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", each) for each in made
    )
    assert [each[:13] for each in made] == sorted(each[:13] for each in made)


def test_client_names_a_bad_setting():
    with pytest.raises(ValueError, match=r"deadline_s 0.*must be > 0"):
        Client("127.0.0.1:1", KEY, deadline_s=0)
