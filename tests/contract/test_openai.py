"""What the OpenAI engine promises with servers that are busy, lying, broken or gone, and with those that tell ids."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from services.mesh.clock import SystemClock
from services.mesh.errors import EngineFailed, PromptTooLong, ResumeRefused
from services.mesh.settings import WorkerSettings
from services.worker.contract.running import Running, refused
from services.worker.engine import ChatMessage, FinishReason, Prompt
from services.worker.engines.openai import OpenAiEngine
from tests.contract.engine_subjects import OPENAI_LLAMACPP, llamacpp_process
from tests.contract.openai_fake import WORDS, Server, begin, complaints, piece, send, serving, words


async def test_honest_server_is_counted_without_complaint() -> None:
    async with serving(words(5)) as (engine, server):
        made = await engine.generate("go")
        assert (made.count, made.text, made.finish) == (5, "".join(WORDS), FinishReason.STOP)
        assert made.prompt_tokens == 5
        assert complaints(engine) == 0
        assert server.bodies[0]["model"] == "served-name"


async def test_usage_corrects_chunks_that_held_several_tokens() -> None:
    async with serving(words(7)) as (engine, _):
        assert (await engine.generate("go")).count == 7
        assert complaints(engine) == 0


@pytest.mark.parametrize("told", [3, 5000], ids=["less than came", "more than can be"])
async def test_usage_that_cannot_be_is_complained_of_and_not_billed(
    told: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(words(told)) as (engine, _):
        assert (await engine.generate("go", max_tokens=1000)).count == 5
        assert complaints(engine) == 1
        assert str(told) in caplog.text


async def test_ids_outweigh_what_the_usage_says() -> None:
    async with serving(words(9), tells_ids=True) as (engine, _):
        made = await engine.generate("go")
        assert (made.count, made.token_ids) == (5, (1, 2, 3, 4, 5))
        assert complaints(engine) == 1


async def test_server_with_a_tokenizer_gets_ids_for_every_form_of_prompt() -> None:
    pages = {"/metrics": '# TYPE x gauge\nvllm:kv_cache_usage_perc{engine="0"} 0.25\n'}
    async with serving(words(5), tells_ids=True, pages=pages) as (engine, server):
        await engine.generate("go")
        await engine.generate(Prompt(chat=(ChatMessage("user", "go"),)))
        await engine.generate("go", resume_from=2, resumed_token_ids=(111, 110))
        assert [body["prompt"] for body in server.bodies] == [[103, 111], [103, 111], [103, 111, 111, 110]]
        assert "64" in await refused(engine, PromptTooLong, "x" * 64)
        assert engine.engine.stats().kv_cache_usage == 0.25


async def test_text_prompt_is_continued_by_text_and_a_chat_is_not() -> None:
    async with serving(words(5)) as (engine, server):
        await engine.generate("go", resume_from=1, resumed_text=" on")
        assert server.bodies[0]["prompt"] == "go on"
        chat = Prompt(chat=(ChatMessage("user", "go"),))
        await refused(engine, ResumeRefused, chat, resume_from=1, resumed_text=" on")


async def test_busy_server_is_asked_again_before_the_first_token() -> None:
    refusals = [503, 429]

    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if refusals:
            return web.json_response({"error": {"message": "busy"}}, status=refusals.pop())
        return await words(5)(server, request, body)

    async with serving(answer) as (engine, server):
        assert (await engine.generate("go")).count == 5
        assert len(server.bodies) == 3


async def test_server_that_stays_busy_gives_its_error() -> None:
    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "too many"}}, status=429)

    async with serving(answer) as (engine, _):
        made = await engine.generate("go")
        assert made.outputs[-1].error is not None
        assert made.outputs[-1].error[0] == "QueueFull"
        assert "too many" in made.outputs[-1].error[1]


@pytest.mark.parametrize(
    ("message", "error"),
    [("maximum context length is 64 tokens", "PromptTooLong"), ("no such thing as top_k", "InvalidRequest")],
)
async def test_refusal_of_the_server_is_told_by_its_name(message: str, error: str) -> None:
    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=400)

    async with serving(answer) as (engine, server):
        made = await engine.generate("go")
        assert made.outputs[-1].error is not None
        assert made.outputs[-1].error[0] == error
        assert len(server.bodies) == 1


async def _cut(response: web.StreamResponse, request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


async def _ended_early(response: web.StreamResponse, request: web.Request) -> None:
    await send(response, "[DONE]")


async def _error(response: web.StreamResponse, request: web.Request) -> None:
    await send(response, {"error": {"message": "CUDA error"}})


async def _nonsense(response: web.StreamResponse, request: web.Request) -> None:
    await send(response, "{not json")


@pytest.mark.parametrize("break_off", [_cut, _ended_early, _error, _nonsense])
async def test_stream_that_breaks_after_a_token_ends_once_and_is_not_asked_for_again(
    break_off: Callable[[web.StreamResponse, web.Request], Awaitable[None]],
) -> None:
    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin(request)
        await send(response, piece("one"))
        await break_off(response, request)
        return response

    async with serving(answer) as (engine, server):
        made = await engine.generate("go")
        assert (made.count, made.finish) == (1, FinishReason.ERROR)
        assert made.outputs[-1].error is not None
        assert made.outputs[-1].error[0] == "EngineFailed"
        assert len(server.bodies) == 1


@pytest.mark.parametrize("tokens_before", [0, 2], ids=["before the first token", "between tokens"])
async def test_cancelling_closes_the_stream_at_the_server(tokens_before: int) -> None:
    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin(request)
        for word in WORDS[:tokens_before]:
            await send(response, piece(word))
        await asyncio.sleep(60)
        return response

    async with serving(answer) as (engine, server):
        sequence = await engine.submit("go")
        async with asyncio.timeout(10):
            await server.asked.wait()
            await engine.until(lambda: engine.so_far(sequence).count == tokens_before)
            engine.engine.cancel(sequence)
            made = await engine.made(sequence)
            await server.left.wait()
        assert (made.count, made.finish) == (tokens_before, FinishReason.CANCELLED)
        await engine.settled()


async def test_silent_server_is_given_up() -> None:
    async def answer(server: Server, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin(request)
        await send(response, piece("one"))
        await asyncio.sleep(60)
        return response

    async with serving(answer, openai_timeout_s=0.2) as (engine, _):
        made = await engine.generate("go")
        assert (made.count, made.finish) == (1, FinishReason.ERROR)


async def test_start_names_what_is_wrong() -> None:
    def engine(**settings: Any) -> OpenAiEngine:
        return OpenAiEngine(WorkerSettings(models=("ours",), **settings), SystemClock())

    async def failure(**settings: Any) -> str:
        broken = engine(**settings)
        with pytest.raises(EngineFailed) as raised:
            await broken.start(lambda _: None, lambda _: None)
        await broken.stop(0.0)
        return str(raised.value)

    server = Server(words(5))
    await server.http.start_server()
    url = str(server.http.make_url(""))
    assert "openai_url" in await failure()
    assert "127.0.0.1:9" in await failure(openai_url="http://127.0.0.1:9")
    assert "served-name" in await failure(openai_url=url, openai_model="other")
    assert "context_tokens" in await failure(openai_url=url)
    await server.http.close()


async def test_server_killed_in_mid_stream_fails_the_engine_with_a_reason(tmp_path: Path) -> None:
    if why := OPENAI_LLAMACPP.unavailable():
        pytest.skip(why)
    async with llamacpp_process(tmp_path) as (address, process):
        failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        engine = OpenAiEngine(WorkerSettings(models=("tiny",), openai_url=address), SystemClock(), watch_s=0.02)
        running = Running(engine, "tiny", on_failure=failed.set_result)
        await running.start()
        sequences = [await running.submit("the and of it", max_tokens=450) for _ in range(8)]
        await running.until(lambda: all(running.so_far(sequence).count for sequence in sequences[:4]))
        process.kill()
        made = [await running.made(sequence) for sequence in sequences]
        assert FinishReason.ERROR in {each.finish for each in made}
        assert {each.finish for each in made} <= {FinishReason.ERROR, FinishReason.LENGTH}
        async with asyncio.timeout(20):
            assert address in await failed
        await refused(running, EngineFailed, "the")
        await engine.stop(0.0)
