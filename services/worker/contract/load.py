"""Cases: many requests at once, limits that hold, and figures that add up."""

import asyncio

from services.mesh.errors import PromptTooLong, QueueFull, UnknownModel
from services.worker.contract.generation import PROMPT, SOME, long_prompt
from services.worker.contract.running import Capability, Running, refused
from services.worker.contract.subject import Fresh
from services.worker.engine import FinishReason, Prompt


class Load:
    async def test_64_requests_at_once_are_all_answered(self, engine: Running) -> None:
        alone = await engine.generate(PROMPT, max_tokens=12)
        sequences = await asyncio.gather(*(engine.submit(PROMPT, max_tokens=12) for _ in range(64)))
        made = [await engine.made(sequence) for sequence in sequences]
        assert {each.count for each in made} == {12}
        assert {each.text for each in made} == {alone.text}

    async def test_prompt_that_fills_the_context_is_refused_before_any_work(self, engine: Running) -> None:
        context = engine.info.context_tokens
        ids = tuple(await engine.tokenizer.tokenize(f"{PROMPT} " * context, special=True))
        message = await refused(engine, PromptTooLong, Prompt(token_ids=ids[:context]))
        assert str(context) in message
        await refused(engine, PromptTooLong, f"{PROMPT} " * context)
        made = await engine.generate(Prompt(token_ids=ids[: context - 1]), max_tokens=10)
        assert (made.count, made.finish) == (1, FinishReason.LENGTH)

    async def test_model_that_is_not_served_is_refused(self, engine: Running) -> None:
        await refused(engine, UnknownModel, PROMPT, model="nobody-s-model")

    async def test_queue_is_bounded_and_says_when_to_come_back(self, fresh: Fresh) -> None:
        async with fresh(max_batch=2, max_waiting=2) as engine:
            taken, refusal = await _until_full(engine)
            assert engine.engine.stats().waiting == 2
            assert refusal.retry_after_s
            for sequence in taken:
                engine.engine.cancel(sequence)
                await engine.made(sequence)
            assert (await engine.generate(PROMPT, max_tokens=3)).count == 3

    async def test_lower_priority_values_go_first(self, fresh: Fresh) -> None:
        async with fresh(max_batch=1) as engine:
            engine.need(Capability.PRIORITY)
            first = await engine.submit(PROMPT, max_tokens=200)
            await engine.until(lambda: engine.so_far(first).count >= 1)
            late = await engine.submit(PROMPT, max_tokens=2, priority=5)
            soon = await engine.submit(PROMPT, max_tokens=2, priority=1)
            for sequence in (first, soon, late):
                await engine.made(sequence)
            outputs = [output for step in engine.steps for output in step.outputs]
            assert [output.sequence for output in outputs if output.finish is not None] == [first, soon, late]

    async def test_parts_of_a_step_add_up_to_it(self, engine: Running) -> None:
        prompts = [await long_prompt(engine, share) for share in (0.05, 0.2, 0.5)]
        await engine.settled()
        before, seen = engine.engine.stats(), len(engine.steps)
        sequences = [await engine.submit(prompt, max_tokens=SOME) for prompt in prompts]
        for sequence in sequences:
            assert sum(output.device_ns for output in (await engine.made(sequence)).outputs) > 0
        after, steps = engine.engine.stats(), engine.steps[seen:]
        for step in steps:
            assert sum(output.device_ns for output in step.outputs) == round(step.step_s * 1e9)
        parts_ns = sum(output.device_ns for step in steps for output in step.outputs)
        parts_uj = sum(output.energy_uj for step in steps for output in step.outputs)
        assert parts_ns == after.busy_ns - before.busy_ns
        assert 0 < parts_uj <= after.energy_uj - before.energy_uj
        assert after.steps > before.steps

    async def test_load_of_the_steps_tells_every_prompt_token_that_was_computed_once(self, fresh: Fresh) -> None:
        async with fresh() as engine:
            engine.need(Capability.LOAD)
            engine.need(Capability.TOKENIZER)  # without one, what the prompt's tokens are shows at the end only
            prompt = await long_prompt(engine, 0.4)
            seen = len(engine.steps)
            made = await engine.generate(prompt, max_tokens=SOME)
            loads = [step.load for step in engine.steps[seen:] if step.load is not None]
            assert sum(load.prefill_tokens for load in loads) == made.prompt_tokens - made.cached_prompt_tokens
            # Fewer where several tokens came at once, and were taken for one step.
            assert 0 < sum(load.decode_sequences for load in loads) < SOME

    async def test_statistics_follow_what_runs(self, engine: Running) -> None:
        sequence = await engine.submit(PROMPT, max_tokens=400)
        await engine.until(lambda: engine.so_far(sequence).count >= 1)
        stats = engine.engine.stats()
        assert stats.running == 1
        assert 0 <= stats.kv_cache_usage <= 1
        assert stats.power_w > 0
        assert stats.slowdown > 0
        engine.engine.cancel(sequence)
        await engine.made(sequence)
        await engine.settled()
        assert engine.engine.stats().kv_cache_usage <= stats.kv_cache_usage


async def _until_full(engine: Running) -> tuple[list[int], QueueFull]:
    """Submits long requests faster than they can be answered, until one is refused."""
    taken: list[int] = []
    while True:
        try:
            taken.append(await engine.submit(PROMPT, max_tokens=400))
        except QueueFull as refusal:
            return taken, refusal
