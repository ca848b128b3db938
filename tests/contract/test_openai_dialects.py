"""What each kind of server is known by, asked for and spared, as its documentation says."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from aiohttp import web

from services.mesh.errors import EngineFailed, ResumeRefused, Unsupported
from services.mesh.features import LOGPROBS, RESPONSE_FORMAT, TOOLS
from services.worker.contract.features import SCHEMA, TOOL
from services.worker.contract.running import Running, refused
from services.worker.engine import ChatMessage, FinishReason, Prompt, TokenLogprob
from tests.contract.openai_fake import Server, begin, piece, send, serving, usage, words

CHAT = Prompt(chat=(ChatMessage("user", "go"),))
_BUSY = 'vllm:num_requests_running{engine="0"} 7\nvllm:num_requests_waiting 2\nvllm:generation_tokens_total %d\n'
KNOWN_BY: dict[str, dict[str, Any]] = {
    "vllm": {"entry": {"owned_by": "vllm"}, "tells_ids": True},
    "sglang": {"pages": {"/get_model_info": {"model_path": "m"}}, "tells_ids": True},
    "nim": {
        "pages": {"/v1/metadata": {"version": "2"}, "/v1/health/ready": {}, "/v1/metrics": "num_requests_waiting 1\n"},
        "tells_ids": True,
    },
    "trtllm": {"entry": {"owned_by": "tensorrt_llm"}},
    "ollama": {"pages": {"/api/version": {"version": "0.40"}}},
    "tgi": {"pages": {"/info": {"max_total_tokens": 64, "router": "text-generation-router"}}},
    "plain": {},
}
FORBIDDEN = {  # that the kind refuses, or ignores without a word
    "trtllm": {"return_token_ids"},
    "ollama": {"return_token_ids", "top_k", "ignore_eos"},
    "tgi": {"return_token_ids", "top_k", "ignore_eos", "top_p"},
    "plain": {"return_token_ids"},
}


def spoken(engine: Running) -> str:
    return engine.info.note.rsplit(maxsplit=1)[-1]


@pytest.mark.parametrize("kind", KNOWN_BY)
async def test_kind_of_server_is_found_out_and_asked_for_no_more_than_it_takes(kind: str) -> None:
    async with serving(words(5), **KNOWN_BY[kind]) as (engine, server):
        assert spoken(engine) == kind
        made = await engine.generate("go", ignore_eos=False)
        assert (made.count, made.finish) == (5, FinishReason.STOP)
        assert not FORBIDDEN.get(kind, set()) & set(server.bodies[0])
        strict = kind in {"ollama", "tgi", "plain"}
        assert ("continuous_usage_stats" in server.bodies[0]["stream_options"]) != strict


@pytest.mark.parametrize("kind", ["vllm", "sglang", "nim"])
async def test_kind_that_tells_ids_says_so_and_gives_them(kind: str) -> None:
    async with serving(words(5), **KNOWN_BY[kind]) as (engine, server):
        assert "token_ids" not in dict(engine.info.lacks)
        assert (await engine.generate("go")).token_ids == (1, 2, 3, 4, 5)
        assert server.bodies[0]["prompt"] == [103, 111]


@pytest.mark.parametrize("kind", ["ollama", "tgi"])
@pytest.mark.parametrize(
    ("prompt", "sampling", "names"),
    [
        ("go", {"ignore_eos": True}, "ignore_eos"),
        ("go", {"ignore_eos": False, "top_k": 5}, "top_k"),
        (Prompt(token_ids=(1, 2)), {"ignore_eos": False}, "token ids"),
    ],
)
async def test_what_a_kind_does_not_take_is_refused_by_name(
    kind: str, prompt: str | Prompt, sampling: Mapping[str, Any], names: str
) -> None:
    async with serving(words(5), **KNOWN_BY[kind]) as (engine, server):
        message = await refused(engine, Unsupported, prompt, **sampling)
        assert names in message
        assert kind in message
        assert not server.bodies


async def test_ollama_s_context_is_that_of_the_loaded_model() -> None:
    loaded = {"models": [{"name": "served-name", "context_length": 4096}]}
    pages = {"/api/version": {"version": "0.40"}, "/api/ps": loaded}
    async with serving(words(5), pages=pages, context_tokens=0) as (engine, _):
        assert engine.info.context_tokens == 4096


async def test_ollama_with_no_model_loaded_asks_for_the_context() -> None:
    pages = {"/api/version": {"version": "0.40"}, "/api/ps": {"models": []}}
    with pytest.raises(EngineFailed, match="context_tokens"):
        async with serving(words(5), pages=pages, context_tokens=0):
            pass


async def test_tgi_s_context_is_the_most_it_takes_of_prompt_and_answer() -> None:
    async with serving(words(5), pages={"/info": {"max_total_tokens": 96}}, context_tokens=0) as (engine, _):
        assert engine.info.context_tokens == 96


async def test_dialect_that_was_asked_for_and_is_not_spoken_fails_the_start() -> None:
    with pytest.raises(EngineFailed, match="tokenize"):
        async with serving(words(5), openai_dialect="sglang"):
            pass


# What it can do, and how it is asked.

ASKED: dict[str, dict[str, Any]] = {
    LOGPROBS: {"logprobs": 2},
    RESPONSE_FORMAT: {"response_format_json": json.dumps(SCHEMA)},
    TOOLS: {"tools_json": json.dumps([TOOL]), "tool_choice_json": '"required"'},
}


async def test_plain_server_has_the_features_that_the_settings_say_and_no_others() -> None:
    async with serving(words(5), openai_features=("response_format",)) as (engine, server):
        assert engine.info.features == (RESPONSE_FORMAT,)
        assert TOOLS in await refused(engine, Unsupported, CHAT, **ASKED[TOOLS])
        await engine.generate(CHAT, **ASKED[RESPONSE_FORMAT])
        assert server.bodies[0]["response_format"] == SCHEMA


@pytest.mark.parametrize("feature", ASKED)
async def test_request_with_a_feature_does_not_go_on_after_a_break(feature: str) -> None:
    async with serving(words(5), **KNOWN_BY["vllm"]) as (engine, _):
        asked = {**ASKED[feature], "resume_from": 1, "resumed_token_ids": (7,), "resumed_text": "x"}
        assert feature in await refused(engine, ResumeRefused, CHAT, **asked)


async def test_tgi_takes_the_schema_itself() -> None:
    async with serving(words(5), **KNOWN_BY["tgi"]) as (engine, server):
        await engine.generate(CHAT, ignore_eos=False, **ASKED[RESPONSE_FORMAT])
        assert server.bodies[0]["response_format"] == {"type": "json_object", "value": SCHEMA["json_schema"]["schema"]}


async def test_sglang_is_asked_for_a_format_in_the_chat() -> None:
    async with serving(words(5), **KNOWN_BY["sglang"]) as (engine, server):
        await engine.generate(CHAT, **ASKED[RESPONSE_FORMAT])
        assert server.paths == ["/v1/chat/completions"]
        assert RESPONSE_FORMAT in await refused(engine, Unsupported, "go", **ASKED[RESPONSE_FORMAT])


CHAT_FORM = [{"token": "one", "logprob": -0.25, "top_logprobs": [{"token": "one", "logprob": -0.25}]}]
OLD_FORM = {"tokens": ["one"], "token_logprobs": [-0.25], "top_logprobs": [{"two": -3.0, "one": -0.25, "six": -9.0}]}


@pytest.mark.parametrize(
    ("told", "top"),
    [
        ({"content": CHAT_FORM}, (("one", -0.25),)),
        (OLD_FORM, (("one", -0.25), ("two", -3.0))),
    ],
    ids=["chat", "completion"],
)
async def test_log_probabilities_are_read_in_both_forms(told: Any, top: tuple[tuple[str, float], ...]) -> None:
    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin(request)
        await send(response, piece("one", "stop", logprobs=told, token_ids=[1]))
        await send(response, usage(1, 2))
        await send(response, "[DONE]")
        return response

    async with serving(answer, **KNOWN_BY["vllm"]) as (engine, _):
        made = await engine.generate("go", logprobs=2)
        assert made.logprobs == (TokenLogprob("one", -0.25, top),)


async def test_server_that_leaves_log_probabilities_out_is_not_taken_for_one_that_has_them() -> None:
    async with serving(words(5), **KNOWN_BY["ollama"]) as (engine, _):
        made = await engine.generate("go", ignore_eos=False, logprobs=1)
        assert (made.count, made.error[0]) == (0, "Unsupported")
        assert LOGPROBS in made.error[1]


def call_delta(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


async def test_calls_of_tools_come_as_the_server_streams_them_and_are_counted_by_its_usage() -> None:
    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin(request)
        opening = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look_up", "arguments": ""}}
        rest = {"index": 0, "function": {"arguments": '{"word": "it"}'}}
        await send(response, call_delta(role="assistant", content=None))
        await send(response, {**call_delta(tool_calls=[opening]), "usage": {"completion_tokens": 4}})
        await send(response, {**call_delta(tool_calls=[rest]), "usage": {"completion_tokens": 11}})
        await send(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
        await send(response, usage(12, 90))
        await send(response, "[DONE]")
        return response

    async with serving(answer, **KNOWN_BY["vllm"]) as (engine, server):
        made = await engine.generate(CHAT, **ASKED[TOOLS])
        told = [output.tool_calls_json for output in made.outputs if output.tool_calls_json]
        deltas = [delta for each in told for delta in json.loads(each)]
        assert [each["function"]["arguments"] for each in deltas] == ["", '{"word": "it"}']
        assert (made.text, made.finish, made.prompt_tokens) == ("", FinishReason.STOP, 90)
        assert made.count == 11  # the last one is not in any chunk, and is not believed
        assert server.paths == ["/v1/chat/completions"]
        assert server.bodies[0]["tools"] == [TOOL]
        assert server.bodies[0]["tool_choice"] == "required"


async def test_messages_keep_their_calls_and_answers() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}]
    chat = Prompt(
        chat=(
            ChatMessage("assistant", "", json.dumps(calls)),
            ChatMessage("tool", "a word", tool_call_id="c1", name="look_up"),
        )
    )
    async with serving(words(5)) as (engine, server):
        await engine.generate(chat)
        assert server.bodies[0]["messages"] == [
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "a word", "tool_call_id": "c1", "name": "look_up"},
        ]


# What it says of itself, and whether it is true.


@pytest.mark.parametrize(("ids", "told"), [(True, 3), (False, 5000)], ids=["ids were sent", "text was sent"])
async def test_prompt_that_cannot_be_as_told_is_complained_of_and_not_billed(ids: bool, told: int) -> None:
    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin(request)
        await send(response, piece("one", "stop"))
        await send(response, usage(1, told))
        await send(response, "[DONE]")
        return response

    async with serving(answer, tells_ids=ids) as (engine, _):
        made = await engine.generate("gogo")
        stats = engine.engine.stats()
        assert (made.prompt_tokens, stats.complaints) == (4 if ids else 1, 1)
        assert f"{told} prompt tokens" in stats.complaint


async def test_requests_of_others_there_count_while_the_server_gets_on() -> None:
    pages = {"/metrics": _BUSY % 1}
    async with serving(words(5), pages=pages, watch_s=0.01, **KNOWN_BY["plain"]) as (engine, server):
        tokens = 1

        def getting_on() -> bool:
            nonlocal tokens
            tokens += 1
            server.pages["/metrics"] = _BUSY % tokens
            return engine.engine.stats().running == 7

        await _eventually(getting_on)
        assert engine.engine.stats().waiting == 2
        await _eventually(lambda: engine.engine.stats().running == 0)  # its figures stand still now


async def test_server_whose_health_fails_fails_the_engine_with_what_it_answered() -> None:
    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with serving(words(5), watch_s=0.01, on_failure=failed.set_result) as (engine, server):
        server.healthy = False
        async with asyncio.timeout(10):
            assert "/health failed 3 times in a row, at last because it answers 500" in await failed
        await refused(engine, EngineFailed, "go")


async def test_busy_server_is_not_asked_before_it_wants_and_not_at_all_if_that_is_too_late() -> None:
    waits = ["0.3"]

    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if waits:
            busy = {"error": {"message": "busy"}}
            return web.json_response(busy, status=503, headers={"Retry-After": waits.pop()})
        return await words(5)(server, request, body)

    async with serving(answer) as (engine, server):
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        assert (await engine.generate("go")).count == 5
        assert loop.time() - begun_s >= 0.3
        waits.append("60")
        made = await engine.generate("go")
        assert (made.count, made.finish, len(server.bodies)) == (0, FinishReason.ERROR, 3)


async def test_stream_that_breaks_before_the_first_token_is_asked_for_again() -> None:
    breaks = [1, 1]

    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if breaks:
            breaks.pop()
            response = await begin(request)
            assert request.transport is not None
            request.transport.abort()
            return response
        return await words(5)(server, request, body)

    async with serving(answer) as (engine, server):
        assert (await engine.generate("go")).count == 5
        assert len(server.bodies) == 3


async def _eventually(condition: Callable[[], bool]) -> None:
    """Waits for what the engine's watch brings about, which has no event."""
    deadline_s = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline_s
        await asyncio.sleep(0.005)
