"""What llama.cpp in the process promises beyond what every engine does: real text, whole characters, our signals."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from services.mesh.clock import SystemClock
from services.mesh.errors import EngineFailed, InvalidRequest, ResumeRefused, Unsupported
from services.mesh.settings import WorkerSettings
from services.worker.contract.features import TOOL
from services.worker.contract.running import Running, refused, started
from services.worker.engine import ChatMessage, FinishReason, Prompt
from services.worker.engines.llamacpp import WHEEL_MODEL, LlamaCppEngine, llamacpp_unavailable
from tests.contract.engine_subjects import tiny_llamacpp_settings
from tests.contract.tiny_gguf import TOOL_TEMPLATE, write_tiny_gguf

CALLS = json.dumps([{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}])
REAL = WorkerSettings(models=(WHEEL_MODEL,), accelerator="cpu-epyc-turin", llamacpp_slots=2, llamacpp_slot_tokens=256)


def needs(settings: WorkerSettings) -> WorkerSettings:
    if why := llamacpp_unavailable(settings):
        pytest.skip(why)
    return settings


def running(settings: WorkerSettings) -> Running:
    return Running(LlamaCppEngine(settings, SystemClock()), settings.models[0])


async def test_small_real_model_speaks_english() -> None:
    async with started(running(needs(REAL))) as engine:
        made = await engine.generate("The capital of France is", max_tokens=8)
        assert made.text.startswith(" Paris")
        chat = await engine.generate(
            Prompt(chat=(ChatMessage("user", "Who are you?"),)), max_tokens=24, ignore_eos=False
        )
        assert len(chat.text.split()) > 8
        assert not engine.info.simulated


async def test_characters_of_several_tokens_come_whole() -> None:
    async with started(running(needs(REAL))) as engine:
        party = "\N{PARTY POPPER} \N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C}"
        made = await engine.generate(f"{party} {party} {party} {party}", max_tokens=20)
        assert "\N{PARTY POPPER}" in made.text
        assert "\ufffd" not in made.text
        assert made.count == 20
        # Some of their ids are not known, so the stream goes on from its text, or not at all.
        at, shown = 0, ""
        for output in made.outputs[:4]:
            at, shown = at + output.token_count, shown + output.text
        try:
            rest = await engine.generate(
                f"{party} {party} {party} {party}", max_tokens=20, resume_from=at, resumed_text=shown
            )
        except ResumeRefused:
            return
        assert shown + rest.text == made.text


async def test_signals_stay_with_the_loop(tmp_path: Path) -> None:
    settings = needs(tiny_llamacpp_settings(tmp_path))
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, heard.set)
    try:
        async with started(running(settings)) as engine:
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(5):
                await heard.wait()
            assert (await engine.generate("the", max_tokens=3)).count == 3
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_prompt_seen_before_is_not_computed_again(tmp_path: Path) -> None:
    async with started(running(needs(tiny_llamacpp_settings(tmp_path, llamacpp_slots=1)))) as engine:
        first = await engine.generate("of the and it was there " * 10, max_tokens=2)
        again = await engine.generate("of the and it was there " * 10, max_tokens=2)
        assert first.outputs[-1].cached_prompt_tokens == 0
        assert again.outputs[-1].cached_prompt_tokens == again.prompt_tokens - 1


async def test_prompts_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    async with started(running(needs(tiny_llamacpp_settings(tmp_path)))) as engine:
        await refused(engine, InvalidRequest, "")
        assert "99999" in await refused(engine, InvalidRequest, Prompt(token_ids=(1, 99_999)))


async def test_end_of_the_model_s_own_ends_the_answer(tmp_path: Path) -> None:
    async with started(running(needs(tiny_llamacpp_settings(tmp_path)))) as engine:
        # Hot sampling of a random model comes to its end token sooner or later.
        made = [
            await engine.generate("the", max_tokens=480, temperature=2.0, seed=seed, ignore_eos=False)
            for seed in range(6)
        ]
        assert FinishReason.STOP in {each.finish for each in made}
        assert all(each.count == 480 for each in made if each.finish is FinishReason.LENGTH)


async def test_file_that_is_no_model_fails_the_start_with_its_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and then nothing")
    engine = LlamaCppEngine(needs(tiny_llamacpp_settings(tmp_path, llamacpp_model_path=str(broken))), SystemClock())
    with pytest.raises(EngineFailed, match=r"broken\.gguf"):
        await engine.start(lambda _: None, lambda _: None)
    await engine.stop(0.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (WorkerSettings(models=("tiny",), llamacpp_model_path="/nowhere/to.gguf"), "/nowhere/to.gguf"),
        (WorkerSettings(models=("llama-3.1-8b",)), "llama-3.1-8b"),
    ],
    ids=["missing file", "no weights for the model"],
)
def test_why_it_cannot_run_is_said(settings: WorkerSettings, says: str) -> None:
    assert says in llamacpp_unavailable(settings)


async def test_tools_are_taken_where_the_template_has_a_place_for_them(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", TOOL_TEMPLATE)
    tools = json.dumps([TOOL])
    chat = Prompt(chat=(ChatMessage("user", "what is it"),))
    async with started(running(needs(tiny_llamacpp_settings(tmp_path)))) as engine:
        assert engine.info.features == ("logprobs", "response_format", "tools")
        plain = await engine.generate(chat, max_tokens=12)
        made = await engine.generate(chat, max_tokens=12, ignore_eos=False, tools_json=tools)
        # The model is random, so it calls nothing; but it reads of the tools, and what it makes is counted and told.
        assert made.prompt_tokens > plain.prompt_tokens + len(tools) // 4
        assert (made.count, made.finish) == (12, FinishReason.LENGTH)
        assert made.text
        assert not engine.engine.stats().complaints
        forced = {"tools_json": tools, "tool_choice_json": '"required"'}
        assert "tool_choice" in await refused(engine, Unsupported, chat, **forced)
        assert "logprobs" in await refused(engine, Unsupported, chat, tools_json=tools, logprobs=1)
        assert "tools" in await refused(engine, InvalidRequest, "what is it", tools_json=tools)
        assert "response_format" in await refused(engine, InvalidRequest, chat, response_format_json='{"type": "poem"}')
        answered = (*(chat.chat or ()), ChatMessage("assistant", "", CALLS), ChatMessage("tool", "a word", "", "c1"))
        assert (await engine.generate(Prompt(chat=answered), max_tokens=2)).count == 2
