"""Cases: a request that goes on after a break makes what it would have made without one."""

from typing import Any

import pytest

from services.mesh.errors import ResumeRefused
from services.worker.contract.generation import PROMPT, SOME
from services.worker.contract.running import Capability, Made, Running
from services.worker.engine import FinishReason


class Resuming:
    async def test_resumed_stream_equals_the_unbroken_one_at_every_cut(self, engine: Running) -> None:
        engine.need(Capability.RESUMING)
        whole = await engine.generate(PROMPT, max_tokens=SOME)
        assert whole.cuts
        for at in whole.cuts:
            rest = await _go_on(engine, whole, at)
            assert rest.count == SOME - at, at
            assert rest.text == whole.text[len(whole.shown_before(at)) :], at
            assert rest.token_ids == whole.token_ids[at:], at
            assert rest.prompt_tokens == whole.prompt_tokens, at
            assert rest.finish is FinishReason.LENGTH, at

    async def test_stream_that_breaks_again_and_again_is_one_stream(self, engine: Running) -> None:
        engine.need(Capability.RESUMING)
        engine.need(Capability.TOKEN_IDS)
        whole = await engine.generate(PROMPT, max_tokens=SOME)
        ids: tuple[int, ...] = ()
        text = ""
        while len(ids) < SOME:
            sequence = await engine.submit(
                PROMPT, max_tokens=SOME, resume_from=len(ids), resumed_token_ids=ids, resumed_text=text
            )
            part = await _break(engine, sequence)
            ids, text = ids + part.token_ids, text + part.text
        assert (ids, text) == (whole.token_ids, whole.text)

    async def test_resume_without_ids_is_faithful_or_refused(self, engine: Running) -> None:
        engine.need(Capability.RESUMING)
        whole = await engine.generate(PROMPT, max_tokens=SOME)
        for at, shown in list(whole.cuts.items())[:12:3]:
            try:
                rest = await engine.generate(PROMPT, max_tokens=SOME, resume_from=at, resumed_text=shown)
            except ResumeRefused:
                continue
            assert rest.text == whole.text[len(shown) :]
            assert rest.count == SOME - at

    async def test_resume_after_the_last_token_only_ends(self, engine: Running) -> None:
        whole = await engine.generate(PROMPT, max_tokens=SOME)
        rest = await _go_on(engine, whole, SOME)
        assert (rest.count, rest.text, rest.finish) == (0, "", FinishReason.LENGTH)

    async def test_stop_string_across_a_break_is_found(self, engine: Running) -> None:
        engine.need(Capability.TOKEN_IDS)  # without them, what was held back before a break cannot be known
        whole = await engine.generate(PROMPT, max_tokens=SOME)
        for at, shown in whole.cuts.items():
            seam = len(shown)
            stop = whole.text[seam - 2 : seam + 2]
            if whole.text.find(stop) != seam - 2:
                continue  # it would have ended earlier
            stopped = await engine.generate(PROMPT, max_tokens=SOME, stop=(stop,))
            if at in stopped.cuts:
                break
        else:
            pytest.fail("no token of the text begins a stop string that a later one ends")
        rest = await _go_on(engine, stopped, at, stop=(stop,))
        assert (stopped.shown_before(at) + rest.text, rest.finish) == (stopped.text, FinishReason.STOP)


async def _break(engine: Running, sequence: int) -> Made:
    """What was made of a sequence that is cancelled after its first token."""
    await engine.until(lambda: bool(engine.so_far(sequence).count))
    engine.engine.cancel(sequence)
    return await engine.made(sequence)


async def _go_on(engine: Running, whole: Made, at: int, **sampling: Any) -> Made:
    """What is made from token `at` on, with what was delivered of `whole` up to there."""
    return await engine.generate(
        PROMPT,
        max_tokens=SOME,
        resume_from=at,
        resumed_token_ids=whole.token_ids[:at],
        resumed_text=whole.shown_before(at),
        **sampling,
    )
