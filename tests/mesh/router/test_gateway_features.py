"""What only some engines can do, through OpenAI's API, as the official `openai` package asks for it and reads it."""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import openai
import pytest

from services.mesh.errors import WorkerLost
from tests.mesh.router.fake_worker import MODEL, Opened, breaking, text_of
from tests.mesh.router.router_under_test import Router, eventually
from tokenworks.v1 import inference_pb2 as wire

pytestmark = pytest.mark.mesh

HELLO: Final[list[Any]] = [{"role": "user", "content": "Hello"}]
TOOL: Final[Any] = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
ALL: Final = ("logprobs", "response_format", "tools")
ASKED: Final[dict[str, dict[str, Any]]] = {
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "response_format": {"response_format": {"type": "json_object"}},
    "tools": {"tools": [TOOL], "tool_choice": "auto"},
}


@pytest.fixture
async def client(router: Router) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{router.running.http_port}/v1", api_key=router.key, max_retries=0, timeout=20
    )
    yield client
    await client.close()


def with_more(chunk: wire.StreamChunk, **fields: Any) -> wire.StreamChunk:
    """The chunk, its response with these fields too."""
    response = wire.GenerateResponse.FromString(chunk.response)
    response.MergeFrom(wire.GenerateResponse(**fields))
    chunk.response = response.SerializeToString()
    return chunk


def logprob(text: str, *others: str) -> wire.TokenLogprob:
    top = [
        wire.TokenLogprob.Alternative(text=each, logprob=-float(index)) for index, each in enumerate((text, *others))
    ]
    return wire.TokenLogprob(text=text, logprob=-0.5, top=top)


@pytest.mark.parametrize("feature", ASKED)
async def test_feature_goes_to_the_worker_that_has_it(router: Router, client: openai.AsyncOpenAI, feature: str) -> None:
    without = await router.worker("w0")
    able = await router.worker("w1", features=(feature,))
    for _ in range(4):
        await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1, **ASKED[feature])
    assert not without.opened
    request = able.opened[0].order.request
    told = {
        "logprobs": request.sampling.HasField("logprobs") and request.sampling.logprobs == 2,
        "response_format": request.response_format_json == json.dumps({"type": "json_object"}),
        "tools": request.tools_json == json.dumps([TOOL]),
    }
    assert told[feature]


@pytest.mark.parametrize("feature", ASKED)
async def test_feature_that_nobody_has_is_named(router: Router, client: openai.AsyncOpenAI, feature: str) -> None:
    await router.worker("w0", features=tuple(each for each in ALL if each != feature))
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=HELLO, **ASKED[feature])
    assert caught.value.code == "Unsupported"
    assert f"{feature}: no engine that serves model {MODEL!r} does that" in caught.value.message
    assert not router.published


async def test_log_probabilities_reach_the_client_in_both_forms(router: Router, client: openai.AsyncOpenAI) -> None:
    def behave(opened: Opened) -> None:
        for text in ("t0 ", "t1 "):
            opened.send(with_more(opened.tokens(1), logprobs=[logprob(text, "else")]))
        opened.send(opened.finish("stop"))

    await router.worker("w0", behave, features=ALL)
    chat = await client.chat.completions.create(model=MODEL, messages=HELLO, **ASKED["logprobs"])
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert [(each.token, each.logprob) for each in content] == [("t0 ", -0.5), ("t1 ", -0.5)]
    assert [top.token for top in content[0].top_logprobs] == ["t0 ", "else"]
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, **ASKED["logprobs"])
    told, text = [], ""
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs is not None:
            told += chunk.choices[0].logprobs.content or []
    assert ([each.token for each in told], text) == (["t0 ", "t1 "], text_of(0, 2))
    old = await client.completions.create(model=MODEL, prompt="x", logprobs=1)
    assert old.choices[0].logprobs is not None
    assert old.choices[0].logprobs.tokens == ["t0 ", "t1 "]
    assert old.choices[0].logprobs.text_offset == [0, 3]


async def test_calls_of_tools_reach_the_client_whole_and_streamed(router: Router, client: openai.AsyncOpenAI) -> None:
    deltas = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "look_up", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"word":'}},
        {"index": 0, "function": {"arguments": ' "it"}'}},
    ]

    def behave(opened: Opened) -> None:
        for delta in deltas:
            chunk = with_more(opened.tokens(1), tool_calls_json=json.dumps([delta]))
            response = wire.GenerateResponse.FromString(chunk.response)
            response.text = ""
            chunk.response = response.SerializeToString()
            opened.send(chunk)
        opened.send(opened.finish("stop"))

    await router.worker("w0", behave, features=ALL)
    whole = await client.chat.completions.create(model=MODEL, messages=HELLO, **ASKED["tools"])
    (choice,) = whole.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.id, call.function.name, call.function.arguments) == ("c1", "look_up", '{"word": "it"}')
    arguments, reasons = "", []
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, **ASKED["tools"])
    async for chunk in stream:
        reasons.append(chunk.choices[0].finish_reason)
        for each in chunk.choices[0].delta.tool_calls or ():
            assert each.function is not None
            arguments += each.function.arguments or ""
    assert (arguments, reasons[-1]) == ('{"word": "it"}', "tool_calls")


async def test_a_turn_with_a_tool_s_answer_reaches_the_worker_as_it_is(
    router: Router, client: openai.AsyncOpenAI
) -> None:
    worker = await router.worker("w0")
    calls: Any = [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}]
    messages: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "a word", "tool_call_id": "c1"},
    ]
    await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    _, said, answered = worker.opened[0].order.request.chat.messages
    assert json.loads(said.tool_calls_json) == calls
    assert (answered.role, answered.content, answered.tool_call_id) == ("tool", "a word", "c1")


@pytest.mark.parametrize("feature", ASKED)
async def test_answer_with_a_feature_is_not_gone_on_with_by_another_worker(
    router: Router, client: openai.AsyncOpenAI, feature: str
) -> None:
    breaks = breaking(2, lambda opened: opened.send(opened.error(WorkerLost("gone"))))
    workers = [await router.worker(name, breaks, features=ALL) for name in ("w0", "w1")]
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=5, stream=True, **ASKED[feature]
    )
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "ResumeRefused"
    assert feature in caught.value.message
    assert "gone" in caught.value.message
    assert sum(len(worker.opened) for worker in workers) == 1


async def test_several_answers_are_several_requests_each_billed(router: Router, client: openai.AsyncOpenAI) -> None:
    worker = await router.worker("w0")
    answer = await client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=3, n=3, seed=7, extra_body={"request_id": "mine"}
    )
    assert [(each.index, each.message.content) for each in answer.choices] == [(n, text_of(0, 3)) for n in range(3)]
    assert answer.id == "chatcmpl-mine"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (21, 9)
    requests = [opened.order.request for opened in worker.opened]
    assert [each.request_id for each in requests] == ["mine", "mine-1", "mine-2"]
    assert [each.sampling.seed for each in requests] == [7, 8, 9]

    def finished() -> set[str]:
        return {event.request_id for event in router.finished}

    await eventually(lambda: finished() == {"mine", "mine-1", "mine-2"}, "each has its last word")


async def test_several_answers_stream_side_by_side_and_end_once(router: Router, client: openai.AsyncOpenAI) -> None:
    await router.worker("w0")
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, reasons, usages = {0: "", 1: ""}, {}, []
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        if chunk.usage is not None:
            usages.append(chunk.usage)
    assert texts == {0: text_of(0, 4), 1: text_of(0, 4)}
    assert reasons == {0: "length", 1: "length"}
    assert [each.completion_tokens for each in usages] == [8]


async def test_one_answer_that_is_refused_refuses_the_call(router: Router, client: openai.AsyncOpenAI) -> None:
    worker = await router.worker("w0")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=HELLO, n=0)
    assert "n = 0, must be from 1 to" in caught.value.message
    assert not worker.opened
