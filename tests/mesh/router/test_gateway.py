"""OpenAI's API on the router, as the official `openai` package and plain HTTP clients meet it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import openai
import pytest

from services.mesh.errors import QueueFull, WorkerLost
from tests.mesh.router.conftest import StartRouter
from tests.mesh.router.fake_worker import MODEL, answer_at_once, breaking, say_nothing, text_of
from tests.mesh.router.router_under_test import TRACEPARENT, Router, eventually

pytestmark = pytest.mark.mesh

HELLO: Final[list[Any]] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def client(router: Router) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{router.running.http_port}/v1", api_key=router.key, max_retries=0, timeout=20
    )
    yield client
    await client.close()


@pytest.fixture
async def http(router: Router) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {router.key}", "traceparent": TRACEPARENT}
    base = f"http://127.0.0.1:{router.running.http_port}"
    async with aiohttp.ClientSession(base, headers=headers) as session:
        yield session


async def test_a_chat_is_answered_whole(router: Router, client: openai.AsyncOpenAI) -> None:
    worker = await router.worker("w0")
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "developer", "content": "Be brief."}, *HELLO],
        max_completion_tokens=5,
        temperature=0.5,
        stop="\n",
        seed=7,
        extra_body={"slo_class": "interactive", "workload": "support", "request_id": "mine"},
    )
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (text_of(0, 5), "assistant", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 5, 12)
    assert (answer.id, answer.object, answer.model) == ("chatcmpl-mine", "chat.completion", MODEL)
    request = worker.opened[0].order.request
    assert [(each.role, each.content) for each in request.chat.messages] == [("system", "Be brief."), ("user", "Hello")]
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.seed) == (5, 0.5, 7)
    assert (list(request.sampling.stop), request.slo_class) == (["\n"], "interactive")
    event = await router.last_word()
    assert (event.request_id, event.workload, event.delivered_count, event.outcome) == ("mine", "support", 5, "length")
    assert 0 < event.ttft_s <= event.e2e_s


async def test_a_chat_is_streamed_with_its_usage(router: Router, client: openai.AsyncOpenAI) -> None:
    await router.worker("w0")
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == text_of(0, 6)
    reasons = [each.choices[0].finish_reason for each in chunks if each.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    assert all(each.usage is None for each in chunks[:-1])
    assert len({each.id for each in chunks}) == 1
    assert (await router.last_word()).delivered_count == 6


async def test_a_stream_without_usage_says_nothing_of_it(router: Router, client: openai.AsyncOpenAI) -> None:
    await router.worker("w0")
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2, stream=True)
    assert all([each.choices and each.usage is None async for each in stream])


async def test_completions_take_text_and_token_ids(router: Router, client: openai.AsyncOpenAI) -> None:
    worker = await router.worker("w0")
    prompts: list[Any] = ["100% sure", ["100% sure"], [1, 2, 3], [[1, 2, 3]]]
    for prompt in prompts:
        answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=3)
        assert (answer.choices[0].text, answer.object) == (text_of(0, 3), "text_completion")
    requests = [each.order.request for each in worker.opened]
    assert [each.text for each in requests[:2]] == ["100% sure"] * 2
    assert [list(each.token_ids.ids) for each in requests[2:]] == [[1, 2, 3]] * 2
    stream = await client.completions.create(model=MODEL, prompt="x", max_tokens=3, stream=True)
    assert "".join([each.choices[0].text async for each in stream]) == text_of(0, 3)


async def test_text_of_any_kind_arrives_as_it_was(router: Router, client: openai.AsyncOpenAI) -> None:
    odd = '%s 100%% "quoted" \\ \n 日本 \U0001f600 \u2028'

    def behave(opened: Any) -> None:
        chunk = opened.tokens(1)
        from tokenworks.v1 import inference_pb2 as wire

        response = wire.GenerateResponse.FromString(chunk.response)
        response.text = odd
        chunk.response = response.SerializeToString()
        opened.send(chunk, opened.finish("stop"))

    await router.worker("w0", behave)
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert "".join([each.choices[0].delta.content or "" async for each in stream]) == odd
    whole = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (odd, "stop")


async def test_models_are_listed(router: Router, client: openai.AsyncOpenAI) -> None:
    await router.worker("w0")
    assert [each.id async for each in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).owned_by == "tokenworks"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("some/other")


async def test_errors_have_openais_classes_and_name_what_is_wrong(router: Router, client: openai.AsyncOpenAI) -> None:
    worker = await router.worker("w0")

    async def refusal(**changes: Any) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **changes})
        return caught.value

    unknown = await refusal(model="gpt-9")
    assert isinstance(unknown, openai.NotFoundError)
    assert (unknown.code, unknown.type) == ("model_not_found", "invalid_request_error")
    hot = await refusal(temperature=3)
    assert isinstance(hot, openai.BadRequestError)
    assert hot.code == "InvalidSampling"
    assert "temperature = 3, must be from 0 to 2" in hot.message
    worker.behaviour = lambda opened: opened.send(opened.error(QueueFull("full", retry_after_s=2.5)))
    for stream in (False, True):  # refused by the worker: still a status, not an event
        full = await refusal(stream=stream)
        assert isinstance(full, openai.RateLimitError)
        assert full.code == "rate_limit_exceeded"
        assert (full.response.headers["retry-after"], full.response.headers["retry-after-ms"]) == ("3", "2500")
    stranger = openai.AsyncOpenAI(base_url=client.base_url, api_key="tw-guess", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        await stranger.models.list()
    await stranger.close()
    assert not router.published


@pytest.mark.parametrize(
    "field",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"logit_bias": {"50256": -100}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
    ],
)
async def test_what_no_engine_can_do_is_refused_by_name(
    router: Router, client: openai.AsyncOpenAI, field: dict[str, Any]
) -> None:
    await router.worker("w0")
    asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, **field}
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**asked)
    assert caught.value.code == "Unsupported"
    assert next(iter(field)).removesuffix("s") in caught.value.message


async def test_fields_that_ask_for_nothing_are_accepted(router: Router, client: openai.AsyncOpenAI) -> None:
    await router.worker("w0")
    parts: Any = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": parts}],
        n=1,
        logprobs=False,
        tool_choice="none",
        response_format={"type": "text"},
        user="someone",
        metadata={"a": "b"},
        max_tokens=1,
    )
    assert answer.choices[0].message.content == text_of(0, 1)


BAD_BODIES: Final = {
    "not json": ("{", "the body is not JSON"),
    "half a character": ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "the body is not Unicode"),
    "half a key": ('{"\\uDFFF": 1}', "the body is not Unicode"),
    "not an object": ("[]", "the body is not a JSON object"),
    "deep": ("[" * 100_000, "the body is not JSON"),
    "unknown field": ('{"messages": [], "magic": 1}', "magic is not a field"),
    "no messages": ('{"model": "llama-3.1-8b"}', "prompt.chat has no messages"),
    "messages": ('{"messages": "hi"}', 'messages = "hi", must be a list'),
    "message": ('{"messages": ["hi"]}', 'messages[0] = "hi", must be an object'),
    "role": ('{"messages": [{"content": "hi"}]}', "messages[0].role = null"),
    "model": ('{"messages": [{"role": "user", "content": ""}], "model": 7}', "model = 7, must be a string"),
    "max_tokens": ('{"messages": [], "max_tokens": -1}', "max_tokens = -1, must be a whole number"),
    "huge": ('{"messages": [], "max_tokens": 99999999999999999999}', "must be a whole number from 0 to 4294967295"),
    "temperature": ('{"messages": [], "temperature": "hot"}', 'temperature = "hot", must be a number'),
    "truth": ('{"messages": [], "temperature": true}', "temperature = true, must be a number"),
    "enormous": ('{"messages": [], "temperature": 1' + "0" * 400 + "}", "is out of range"),
    "nan": ('{"messages": [{"role":"user"}], "model": "llama-3.1-8b", "top_p": NaN}', "sampling.top_p = nan"),
    "stop": ('{"messages": [], "stop": [1]}', "stop = [1], must be a string or a list of strings"),
    "stream": ('{"messages": [], "stream": "yes"}', 'stream = "yes", must be true or false'),
    "options": ('{"messages": [], "stream_options": {"include_usage": true}}', "stream_options are for streams"),
}


async def test_every_bad_body_is_told_what_is_wrong_with_it(router: Router, http: aiohttp.ClientSession) -> None:
    await router.worker("w0")
    for what, (body, says) in BAD_BODIES.items():
        async with http.post("/v1/chat/completions", data=body) as response:
            answer = await response.json()
        assert response.status == 400, what
        assert says in answer["error"]["message"], what
        assert answer["error"]["type"] == "invalid_request_error"
    async with http.post("/v1/chat/completions", data=io.BytesIO(b"x" * (5 << 20))) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "MessageTooLarge"
    async with http.post("/v1/completions", json={"prompt": ["a", "b"], "model": MODEL}) as response:
        assert "2 prompts" in (await response.json())["error"]["message"]


async def test_bodies_and_keys_of_any_bytes_are_refused_by_name(router: Router, http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/completions", data="{}".encode("utf-16")) as response:
        assert response.status == 400
        assert "send UTF-8" in (await response.json())["error"]["message"]
    async with http.post("/v1/completions", data=b"{}", headers={"Content-Encoding": "gzip"}) as response:
        assert response.status == 400
        assert "the body can't be read" in (await response.json())["error"]["message"]
    reader, writer = await asyncio.open_connection("127.0.0.1", router.running.http_port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 401")


async def test_the_headers_name_request_trace_and_worker(router: Router, http: aiohttp.ClientSession) -> None:
    worker = await router.worker("w0")
    for stream in (False, True):
        body = {"model": MODEL, "messages": HELLO, "max_tokens": 2, "stream": stream}
        async with http.post("/v1/chat/completions", json=body) as response:
            await response.read()
            assert response.headers["x-tokenworks-trace-id"] == TRACEPARENT[3:35]
            assert response.headers["x-tokenworks-worker"] == "w0"
            assert response.headers["x-request-id"] == worker.opened[-1].request_id


async def test_a_stream_that_breaks_off_ends_with_an_error_and_no_done(
    router: Router, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.router.dispatch._RETRY_FOR_S", 0.1)
    worker = await router.worker("w0", breaking(2, say_nothing))
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200
        await worker.stop()
        text = (await response.read()).decode()
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert "after 2 tokens" in events[-1]["error"]["message"]
    assert events[-1]["error"]["code"] == "WorkerLost"
    assert "[DONE]" not in text
    assert (await router.last_word()).delivered_count == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 3])
async def test_a_client_that_disconnects_cancels_the_engine(
    router: Router, http: aiohttp.ClientSession, after: int, stream: bool
) -> None:
    worker = await router.worker("w0", breaking(after, say_nothing))
    body = {"model": MODEL, "messages": HELLO, "stream": stream}

    async def ask() -> None:
        async with http.post("/v1/chat/completions", json=body) as response:
            await response.read()

    asking = asyncio.create_task(ask())
    await eventually(lambda: bool(worker.opened), "the worker has it")
    if stream and after:
        relays = router.running.dispatcher.running
        await eventually(lambda: all(each.delivered_tokens == after for each in relays()), "it is delivered")
    asking.cancel()
    await eventually(lambda: worker.opened[0].cancelled == "cancelled", "the worker is told")
    event = await router.last_word()
    assert event.outcome == "cancelled"
    assert event.delivered_count == (after if stream else 0)


async def test_a_stream_is_resumed_elsewhere_unseen(router: Router, client: openai.AsyncOpenAI) -> None:
    lost = breaking(3, lambda opened: opened.send(opened.error(WorkerLost("draining"))))
    await router.worker("w0", lost, rate_nusd_per_hour=1)
    await router.worker("w1")
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=7, stream=True)
    assert "".join([each.choices[0].delta.content or "" async for each in stream]) == text_of(0, 7)


async def test_a_draining_router_says_come_back(start_router: StartRouter) -> None:
    router = await start_router(grace_s=5.0)
    worker = await router.worker("w0", breaking(1, say_nothing))
    running = router.generate(2)
    await running.read()
    stopping = asyncio.create_task(router.life.stop())
    await eventually(lambda: router.running.dispatcher.draining, "it drains")
    headers = {"Authorization": f"Bearer {router.key}"}
    url = f"http://127.0.0.1:{router.running.http_port}/v1/completions"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, json={"model": MODEL, "prompt": "x"}) as response,
    ):
        assert response.status == 503
        assert response.headers["retry-after"]
    worker.behaviour = answer_at_once
    opened = worker.opened[0]
    opened.send(opened.tokens(1), opened.finish())
    await stopping
