"""What vLLM in the process promises beyond what every engine does: its caches, its steps, and how its core ends."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from services.mesh.clock import SystemClock
from services.mesh.errors import EngineFailed, InvalidRequest, ResumeRefused, Unsupported
from services.worker.contract.running import DEADLINE_S, Running, refused, started
from services.worker.engine import BlockChange, BlockKind, ChatMessage, FinishReason, Prompt
from services.worker.engines.vllm import VllmEngine
from tests.engines.conftest import unavailable, vllm_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

_LONG = "there was one which all of them would have been about if some other had not " * 4


class _Watched(Running):
    """A running engine with the changes of its blocks; `changed` is set at each."""

    def __init__(self, engine: VllmEngine, model: str) -> None:
        super().__init__(engine, model)
        self.changes: list[BlockChange] = []
        self.changed = asyncio.Event()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why := unavailable():
        pytest.skip(why)
    return tmp_path_factory.mktemp("vllm")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(directory: Path) -> AsyncIterator[_Watched]:
    vllm = VllmEngine(vllm_settings(directory), SystemClock())
    running = _Watched(vllm, "tiny")

    def on_blocks(changes: Sequence[BlockChange]) -> None:
        running.changes += changes
        running.changed.set()

    vllm.watch_blocks(on_blocks)
    async with started(running):
        yield running


async def test_prompt_seen_before_is_computed_for_its_tenant_only_once(engine: _Watched) -> None:
    first = await engine.generate(f"first {_LONG}", max_tokens=2, tenant="acme")
    again = await engine.generate(f"first {_LONG}", max_tokens=2, tenant="acme")
    other = await engine.generate(f"first {_LONG}", max_tokens=2, tenant="other")
    assert first.outputs[-1].cached_prompt_tokens == 0
    assert again.outputs[-1].cached_prompt_tokens > again.prompt_tokens // 2
    assert other.outputs[-1].cached_prompt_tokens == 0
    assert first.text == again.text == other.text


async def test_blocks_that_are_stored_are_told_with_the_tokens_of_the_prompt(engine: _Watched) -> None:
    before = len(engine.changes)
    made = await engine.generate(f"stored {_LONG}", max_tokens=2)
    prompt_ids = tuple(made.outputs[0].prompt_token_ids)
    assert len(prompt_ids) == made.prompt_tokens
    assert not any(output.prompt_token_ids for output in made.outputs[1:])

    def told() -> tuple[int, ...]:
        stored = [change for change in engine.changes[before:] if change.kind is BlockKind.STORED]
        return tuple(token_id for change in stored for token_id in change.token_ids)

    # They come by another way than the tokens.
    async with asyncio.timeout(DEADLINE_S):
        while len(told()) < len(prompt_ids) // 2:
            engine.changed.clear()
            await engine.changed.wait()
    (first, *rest) = [change for change in engine.changes[before:] if change.kind is BlockKind.STORED]
    assert first.parent is None
    assert prompt_ids[: len(told())] == told()[: len(prompt_ids)]
    for one, other in zip([first, *rest], rest, strict=False):
        assert other.parent == one.hashes[-1]
        assert len(one.token_ids) == len(one.hashes) * one.block_tokens


async def test_steps_tell_whose_prompt_they_worked_on(engine: _Watched) -> None:
    """A prompt of several steps, while another request makes tokens."""
    seen = len(engine.steps)
    talking = await engine.submit("the", max_tokens=300)
    await engine.until(lambda: engine.so_far(talking).count > 2)
    made = await engine.generate(f"long {_LONG} {_LONG}", max_tokens=3)
    engine.engine.cancel(talking)
    await engine.made(talking)
    assert made.prompt_tokens > 2 * engine.info.prefill_chunk_tokens
    without_token = [output for output in made.outputs if not output.token_count and output.finish is None]
    assert len(without_token) >= 2
    assert all(output.device_ns > 0 for output in without_token)
    loads = [step.load for step in engine.steps[seen:] if step.load is not None]
    one = len(await engine.engine.tokenizer.tokenize("the", special=True))  # type: ignore[attr-defined]
    assert sum(load.prefill_tokens for load in loads) == made.prompt_tokens + one
    assert max(load.prefill_tokens for load in loads) <= engine.info.prefill_chunk_tokens


async def test_statistics_count_the_prompt_that_is_not_computed_yet(engine: _Watched) -> None:
    sequence = await engine.submit(f"waiting {_LONG} {_LONG}", max_tokens=2)
    assert engine.engine.stats().waiting_prefill_tokens > engine.info.prefill_chunk_tokens
    await engine.made(sequence)
    await engine.settled()
    stats = engine.engine.stats()
    assert (stats.waiting_prefill_tokens, stats.kv_cache_usage) == (0, 0.0)


async def test_what_would_not_know_of_the_tokens_before_a_break_is_refused(engine: _Watched) -> None:
    resume = {"resume_from": 1, "resumed_token_ids": (5,), "resumed_text": "x"}
    for option in ({"frequency_penalty": 0.5}, {"presence_penalty": -0.5}):
        assert next(iter(option)) in await refused(engine, ResumeRefused, "the", **resume, **option)
    format_json = json.dumps({"type": "json_object"})
    await refused(engine, ResumeRefused, "the", **resume, response_format_json=format_json)


async def test_answer_of_any_json_is_an_object(engine: _Watched) -> None:
    format_json = json.dumps({"type": "json_object"})
    made = await engine.generate("the", max_tokens=400, seed=3, ignore_eos=False, response_format_json=format_json)
    assert made.text.lstrip().startswith("{")
    if made.finish is FinishReason.STOP:
        assert isinstance(json.loads(made.text), dict)


async def test_request_that_vllm_refuses_ends_with_what_it_says(engine: _Watched) -> None:
    await refused(engine, Unsupported, "the", response_format_json='{"type": "grammar"}')
    await refused(engine, InvalidRequest, "the", response_format_json='{"type": "json_schema"}')
    unknown = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    made = await engine.generate("the", response_format_json=json.dumps(unknown))
    assert made.error[0] == InvalidRequest.__name__
    assert (await engine.generate("the", max_tokens=2)).count == 2


async def test_chat_that_the_template_refuses_is_refused_in_its_words(engine: _Watched) -> None:
    chat = Prompt(chat=(ChatMessage("narrator", "it was there"),))
    assert "narrator" in await refused(engine, InvalidRequest, chat)


async def test_prompts_that_are_no_tokens_are_refused(engine: _Watched) -> None:
    assert "99999" in await refused(engine, InvalidRequest, Prompt(token_ids=(1, 99_999)))


async def test_end_of_the_model_s_own_ends_the_answer(engine: _Watched) -> None:
    # Hot sampling of a random model comes to its end token sooner or later.
    made = [
        await engine.generate("the", max_tokens=400, temperature=2.0, seed=seed, ignore_eos=False) for seed in range(6)
    ]
    assert FinishReason.STOP in {each.finish for each in made}


async def test_engine_says_what_it_runs_on(engine: _Watched) -> None:
    assert engine.info.platform == "cpu"
    assert engine.info.tokenizer
    assert not engine.info.simulated


async def test_ctrl_c_does_not_reach_the_core(engine: _Watched) -> None:
    """A terminal sends it to every process; the core has to outlive it while streams end."""
    os.kill(engine.engine.process_id, signal.SIGINT)  # type: ignore[attr-defined]
    assert (await engine.generate("the", max_tokens=20)).count == 20


async def test_weights_that_are_not_there_fail_the_start_with_their_name(directory: Path) -> None:
    missing = VllmEngine(vllm_settings(directory, vllm_model=str(directory / "nothing")), SystemClock())
    with pytest.raises(EngineFailed, match="nothing"):
        await missing.start(lambda _: None, lambda _: None)
    await missing.stop(0.0)


async def test_core_does_not_outlive_a_worker_that_is_killed(directory: Path) -> None:
    vllm_settings(directory)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.engines.vllm_worker", str(directory), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        core = psutil.Process(int(await worker.stdout.readline()))
    worker.kill()
    await worker.wait()
    await asyncio.to_thread(core.wait, DEADLINE_S)
