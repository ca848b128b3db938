"""Cases: what ends a request early, and that its place is free afterwards."""

import pytest

from services.mesh.errors import DuplicateRequest, EngineFailed
from services.worker.contract.generation import PROMPT, SOME, long_prompt
from services.worker.contract.running import Running, refused
from services.worker.contract.subject import Fresh
from services.worker.engine import FinishReason


class Ending:
    @pytest.mark.parametrize("length", [1, 4, 9])  # the longer ones span tokens
    async def test_stop_string_ends_the_answer_and_is_not_shown(self, engine: Running, length: int) -> None:
        whole = (await engine.generate(PROMPT, max_tokens=SOME)).text
        stop = whole[len(whole) // 2 :][:length]
        made = await engine.generate(PROMPT, max_tokens=SOME, stop=("\x00never", stop))
        assert made.text == whole[: whole.index(stop)]
        assert made.finish is FinishReason.STOP
        assert made.count < SOME

    async def test_text_that_only_began_a_stop_string_is_shown(self, engine: Running) -> None:
        whole = await engine.generate(PROMPT, max_tokens=SOME)
        made = await engine.generate(PROMPT, max_tokens=SOME, stop=(whole.text[-5:] + "\x00",))
        assert (made.text, made.finish) == (whole.text, FinishReason.LENGTH)

    async def test_cancelling_between_tokens_frees_the_place(self, engine: Running) -> None:
        sequence = await engine.submit(PROMPT, max_tokens=400)
        await engine.until(lambda: engine.so_far(sequence).count >= 2)
        engine.engine.cancel(sequence)
        made = await engine.made(sequence)
        assert made.finish is FinishReason.CANCELLED
        assert made.count < 400
        await _all_places_are_free(engine)

    async def test_cancelling_during_the_prompt_frees_the_place(self, engine: Running) -> None:
        sequence = await engine.submit(await long_prompt(engine, 0.7), max_tokens=100)
        engine.engine.cancel(sequence)
        assert (await engine.made(sequence)).finish is FinishReason.CANCELLED
        await _all_places_are_free(engine)

    async def test_cancelling_a_waiting_request_takes_it_out_of_the_queue(self, engine: Running) -> None:
        running = [await engine.submit(PROMPT, max_tokens=450) for _ in range(engine.info.max_batch)]
        waiting = await engine.submit(PROMPT, max_tokens=450)
        engine.engine.cancel(waiting)
        made = await engine.made(waiting)
        for sequence in running:
            engine.engine.cancel(sequence)
            assert (await engine.made(sequence)).finish in {FinishReason.CANCELLED, FinishReason.LENGTH}
        assert made.finish is FinishReason.CANCELLED

    async def test_cancelling_what_is_unknown_or_over_changes_nothing(self, engine: Running) -> None:
        sequence = await engine.submit(PROMPT, max_tokens=2)
        made = await engine.made(sequence)
        engine.engine.cancel(sequence)
        engine.engine.cancel(10_000_000)
        assert (await engine.generate(PROMPT, max_tokens=2)).text == made.text

    async def test_a_sequence_that_runs_is_not_taken_twice(self, engine: Running) -> None:
        sequence = await engine.submit(PROMPT, max_tokens=400)
        message = await refused(engine, DuplicateRequest, PROMPT, sequence=sequence)
        assert str(sequence) in message
        engine.engine.cancel(sequence)
        assert (await engine.made(sequence)).finish is FinishReason.CANCELLED

    async def test_stopping_ends_everything(self, fresh: Fresh) -> None:
        async with fresh(max_batch=2) as engine:
            sequences = [await engine.submit(PROMPT, max_tokens=450) for _ in range(5)]
            await engine.engine.stop(0.0)
            for sequence in sequences:
                assert engine.so_far(sequence).finish is not None
            assert FinishReason.CANCELLED in {engine.so_far(sequence).finish for sequence in sequences}
            assert (engine.engine.stats().running, engine.engine.stats().waiting) == (0, 0)
            await refused(engine, EngineFailed, PROMPT)

    async def test_stopping_with_grace_lets_requests_end(self, fresh: Fresh) -> None:
        async with fresh() as engine:
            sequence = await engine.submit(PROMPT, max_tokens=SOME)
            await engine.engine.stop(20.0)
            made = engine.so_far(sequence)
            assert (made.count, made.finish) == (SOME, FinishReason.LENGTH)


async def _all_places_are_free(engine: Running) -> None:
    """As many requests as there are places run at once, and are answered."""
    await engine.settled()
    sequences = [await engine.submit(PROMPT, max_tokens=3) for _ in range(min(8, engine.info.max_batch))]
    for sequence in sequences:
        assert (await engine.made(sequence)).count == 3
