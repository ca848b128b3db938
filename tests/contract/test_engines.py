"""What every engine promises a worker, whoever made it: the same cases, run against each engine of the register."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.mesh.errors import EngineFailed, PromptTooLong, QueueFull, ResumeRefused, UnknownModel
from services.worker.engine import ChatMessage, FinishReason, Prompt
from tests.contract.engine_subjects import SUBJECTS, Made, Running, Subject, refused

PROMPT = "the and of it was in there"
CHAT = Prompt(chat=(ChatMessage("system", "be brief"), ChatMessage("user", "who is there")))
SOME = 24  # tokens: enough to cut, stop and resume in

pytestmark = pytest.mark.asyncio(loop_scope="module")
Fresh = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.param
    if why := found.unavailable():
        pytest.skip(why)
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(subject: Subject, directory: Path) -> AsyncIterator[Running]:
    """One engine for the cases that leave it as they found it."""
    async with subject.serve(directory) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def engine(shared: Running) -> AsyncIterator[Running]:
    """The shared engine, idle before and after."""
    yield shared
    await shared.settled()


@pytest.fixture
def fresh(subject: Subject, directory: Path) -> Fresh:
    """An engine of the case's own, with changed settings."""

    def serve(**changes: Any) -> AbstractAsyncContextManager[Running]:
        return subject.serve(directory, **changes)

    return serve


async def test_tokens_are_counted_and_come_to_one_end(engine: Running) -> None:
    made = await engine.generate(PROMPT, max_tokens=SOME)
    assert made.count == SOME
    assert made.text
    assert made.finish is FinishReason.LENGTH
    assert [output.finish for output in made.outputs[:-1]] == [None] * (len(made.outputs) - 1)
    assert made.prompt_tokens > 0
    if engine.encode is not None:  # without a tokenizer they are known at the end only
        assert {output.prompt_tokens for output in made.outputs} == {made.prompt_tokens}


@pytest.mark.parametrize("prompt", [Prompt(text=PROMPT), CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("max_tokens", [1, 2, 7])
async def test_max_tokens_is_the_most_that_is_made(engine: Running, prompt: Prompt, max_tokens: int) -> None:
    made = await engine.generate(prompt, max_tokens=max_tokens)
    assert (made.count, made.finish) == (max_tokens, FinishReason.LENGTH)


async def test_answer_ends_where_the_context_does(engine: Running) -> None:
    made = await engine.generate(PROMPT, max_tokens=1_000_000)
    assert made.count == engine.info.context_tokens - made.prompt_tokens
    assert made.finish is FinishReason.LENGTH


async def test_ids_are_reported_where_they_are_promised(engine: Running, subject: Subject) -> None:
    made = await engine.generate(PROMPT, max_tokens=SOME)
    assert len(made.token_ids) == (SOME if subject.reports_ids else 0)


async def test_ids_decode_to_the_text(engine: Running) -> None:
    made = await engine.generate(PROMPT, max_tokens=SOME)
    if engine.decode is None or not made.token_ids:
        pytest.skip("the engine has no tokenizer to ask, or reports no ids")
    assert await engine.decode(made.token_ids) == made.text


async def test_greedy_sampling_repeats_itself_in_any_company(engine: Running) -> None:
    alone = await engine.generate(PROMPT, max_tokens=SOME)
    others = [await engine.submit(f"{word} {PROMPT}", max_tokens=SOME) for word in ("each", "some", "these")]
    again = await engine.generate(PROMPT, max_tokens=SOME)
    assert (again.text, again.token_ids) == (alone.text, alone.token_ids)
    for other in others:
        await engine.made(other)


async def test_a_seed_repeats_itself_and_others_differ(engine: Running) -> None:
    texts = [(await engine.generate(PROMPT, max_tokens=SOME, temperature=1.0, seed=n)).text for n in (7, 7, 8, 1 << 40)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


async def test_forms_of_one_prompt_give_the_same_tokens(engine: Running) -> None:
    if engine.encode is None:
        pytest.skip("the engine has no tokenizer to ask")
    text = await engine.generate(PROMPT, max_tokens=SOME)
    ids = await engine.generate(Prompt(token_ids=tuple(await engine.encode(PROMPT))), max_tokens=SOME)
    assert (ids.text, ids.prompt_tokens) == (text.text, text.prompt_tokens)


async def test_chat_equals_its_rendered_text(engine: Running) -> None:
    if engine.render is None:
        pytest.skip("the engine has no chat template to ask")
    chat = await engine.generate(CHAT, max_tokens=SOME)
    rendered = await engine.generate(await engine.render(CHAT.chat or ()), max_tokens=SOME)
    assert (rendered.text, rendered.prompt_tokens) == (chat.text, chat.prompt_tokens)


@pytest.mark.parametrize("length", [1, 4, 9])
async def test_stop_string_ends_the_answer_and_is_not_shown(engine: Running, length: int) -> None:
    whole = (await engine.generate(PROMPT, max_tokens=SOME)).text
    stop = whole[len(whole) // 2 :][:length]
    made = await engine.generate(PROMPT, max_tokens=SOME, stop=("\x00never", stop))
    assert made.text == whole[: whole.index(stop)]
    assert made.finish is FinishReason.STOP
    assert made.count < SOME


async def test_text_that_only_began_a_stop_string_is_shown(engine: Running) -> None:
    whole = await engine.generate(PROMPT, max_tokens=SOME)
    made = await engine.generate(PROMPT, max_tokens=SOME, stop=(whole.text[-5:] + "\x00",))
    assert (made.text, made.finish) == (whole.text, FinishReason.LENGTH)


async def _cut(engine: Running, whole: Made, at: int, **sampling: Any) -> Made:
    """What is made from token `at` on, with what was delivered of `whole` up to there."""
    shown = _shown_before(whole, at)
    return await engine.generate(
        PROMPT,
        max_tokens=SOME,
        resume_from=at,
        resumed_token_ids=whole.token_ids[:at],
        resumed_text=shown,
        **sampling,
    )


def _shown_before(whole: Made, at: int) -> str:
    """The text that came with the first `at` tokens; outputs of several tokens cannot be cut within."""
    shown, count = "", 0
    for output in whole.outputs:
        if count + output.token_count > at:
            break
        shown, count = shown + output.text, count + output.token_count
    if count != at:
        pytest.skip("the engine reported several tokens at once, across the cut")
    return shown


@pytest.mark.parametrize("at", [1, 5, SOME - 1])
async def test_resumed_stream_equals_the_unbroken_one(engine: Running, at: int) -> None:
    whole = await engine.generate(PROMPT, max_tokens=SOME)
    rest = await _cut(engine, whole, at)
    assert rest.count == SOME - at
    assert rest.text == whole.text[len(_shown_before(whole, at)) :]
    assert rest.token_ids == whole.token_ids[at:]
    assert rest.prompt_tokens == whole.prompt_tokens
    assert rest.finish is FinishReason.LENGTH


async def test_resume_without_ids_is_faithful_or_refused(engine: Running) -> None:
    whole = await engine.generate(PROMPT, max_tokens=SOME)
    for at in (1, 6, 11):
        shown = _shown_before(whole, at)
        try:
            rest = await engine.generate(PROMPT, max_tokens=SOME, resume_from=at, resumed_text=shown)
        except ResumeRefused:
            continue
        assert rest.text == whole.text[len(shown) :]
        assert rest.count == SOME - at


async def test_resume_after_the_last_token_only_ends(engine: Running) -> None:
    whole = await engine.generate(PROMPT, max_tokens=SOME)
    rest = await _cut(engine, whole, SOME)
    assert (rest.count, rest.text, rest.finish) == (0, "", FinishReason.LENGTH)


async def test_stop_string_across_a_break_is_found(engine: Running) -> None:
    whole = await engine.generate(PROMPT, max_tokens=SOME)
    if not whole.token_ids:
        pytest.skip("the engine reports no ids: what was held back before a break cannot be known")
    for at in range(1, SOME):
        seam = len(_shown_before(whole, at))
        stop = whole.text[seam - 2 : seam + 2]
        if whole.text.find(stop) != seam - 2:
            continue  # it would have ended earlier
        stopped = await engine.generate(PROMPT, max_tokens=SOME, stop=(stop,))
        if stopped.count > at:
            break
    else:
        pytest.fail("no token of the text begins a stop string that a later one ends")
    rest = await _cut(engine, stopped, at, stop=(stop,))
    assert (_shown_before(stopped, at) + rest.text, rest.finish) == (stopped.text, FinishReason.STOP)


async def test_cancelling_a_running_request_frees_its_place(engine: Running) -> None:
    sequence = await engine.submit(PROMPT, max_tokens=400)
    await engine.until(lambda: engine.so_far(sequence).count >= 2)
    engine.engine.cancel(sequence)
    made = await engine.made(sequence)
    assert made.finish is FinishReason.CANCELLED
    assert made.count < 400
    await engine.settled()
    assert (await engine.generate(PROMPT, max_tokens=3)).count == 3


async def test_cancelling_during_the_prompt_frees_its_place(engine: Running) -> None:
    sequence = await engine.submit(f"{PROMPT} " * 40, max_tokens=100)
    engine.engine.cancel(sequence)
    assert (await engine.made(sequence)).finish is FinishReason.CANCELLED
    await engine.settled()


async def test_cancelling_a_waiting_request_takes_it_out_of_the_queue(engine: Running) -> None:
    running = [await engine.submit(PROMPT, max_tokens=450) for _ in range(engine.info.max_batch)]
    waiting = await engine.submit(PROMPT, max_tokens=450)
    engine.engine.cancel(waiting)
    made = await engine.made(waiting)
    for sequence in running:
        engine.engine.cancel(sequence)
        assert (await engine.made(sequence)).finish in {FinishReason.CANCELLED, FinishReason.LENGTH}
    assert made.finish is FinishReason.CANCELLED


async def test_cancelling_what_is_unknown_or_over_changes_nothing(engine: Running) -> None:
    sequence = await engine.submit(PROMPT, max_tokens=2)
    made = await engine.made(sequence)
    engine.engine.cancel(sequence)
    engine.engine.cancel(10_000_000)
    assert (await engine.generate(PROMPT, max_tokens=2)).text == made.text


async def test_prompt_that_fills_the_context_is_refused_before_any_work(engine: Running) -> None:
    if engine.encode is None:
        pytest.skip("the engine has no tokenizer to ask")
    context = engine.info.context_tokens
    ids = tuple(await engine.encode(f"{PROMPT} " * context))
    message = await refused(engine, PromptTooLong, Prompt(token_ids=ids[:context]))
    assert str(context) in message
    await refused(engine, PromptTooLong, f"{PROMPT} " * context)
    made = await engine.generate(Prompt(token_ids=ids[: context - 1]), max_tokens=10)
    assert (made.count, made.finish) == (1, FinishReason.LENGTH)


async def test_model_that_is_not_served_is_refused(engine: Running) -> None:
    await refused(engine, UnknownModel, PROMPT, model="nobody-s-model")


async def test_64_requests_at_once_are_all_answered(engine: Running) -> None:
    alone = await engine.generate(PROMPT, max_tokens=12)
    sequences = await asyncio.gather(*(engine.submit(PROMPT, max_tokens=12) for _ in range(64)))
    made = [await engine.made(sequence) for sequence in sequences]
    assert {each.count for each in made} == {12}
    assert {each.text for each in made} == {alone.text}


async def test_queue_is_bounded_and_says_when_to_come_back(fresh: Fresh) -> None:
    async with fresh(max_batch=2, max_waiting=2) as engine:
        taken, refusal = await _until_full(engine)
        assert engine.engine.stats().waiting == 2
        assert refusal.retry_after_s
        for sequence in taken:
            engine.engine.cancel(sequence)
            await engine.made(sequence)
        assert (await engine.generate(PROMPT, max_tokens=3)).count == 3


async def _until_full(engine: Running) -> tuple[list[int], QueueFull]:
    """Submits long requests faster than they can be answered, until one is refused."""
    taken: list[int] = []
    while True:
        try:
            taken.append(await engine.submit(PROMPT, max_tokens=400))
        except QueueFull as refusal:
            return taken, refusal


async def test_lower_priority_values_go_first(fresh: Fresh) -> None:
    async with fresh(max_batch=1) as engine:
        first = await engine.submit(PROMPT, max_tokens=200)
        await engine.until(lambda: engine.so_far(first).count >= 1)
        late = await engine.submit(PROMPT, max_tokens=2, priority=5)
        soon = await engine.submit(PROMPT, max_tokens=2, priority=1)
        for sequence in (first, soon, late):
            await engine.made(sequence)
        outputs = [output for step in engine.steps for output in step.outputs]
        assert [output.sequence for output in outputs if output.finish is not None] == [first, soon, late]


async def test_parts_of_a_step_add_up_to_it(engine: Running) -> None:
    before, seen = engine.engine.stats(), len(engine.steps)
    sequences = [await engine.submit(f"{PROMPT} " * n, max_tokens=SOME) for n in (1, 9, 30)]
    for sequence in sequences:
        assert sum(output.device_ns for output in (await engine.made(sequence)).outputs) > 0
    after, steps = engine.engine.stats(), engine.steps[seen:]
    for step in steps:
        assert sum(output.device_ns for output in step.outputs) == round(step.step_s * 1e9)
    assert sum(output.device_ns for step in steps for output in step.outputs) == after.busy_ns - before.busy_ns
    assert 0 < sum(output.energy_uj for step in steps for output in step.outputs) <= after.energy_uj - before.energy_uj
    assert after.steps > before.steps


async def test_load_of_the_steps_tells_every_prompt_token_once(fresh: Fresh) -> None:
    async with fresh() as engine:
        made = await engine.generate(f"{PROMPT} " * 20, max_tokens=SOME)
        loads = [step.load for step in engine.steps if step.load is not None]
        if not loads or engine.encode is None:
            pytest.skip("the engine does not tell its load, or has no tokenizer to know it by")
        assert sum(load.prefill_tokens for load in loads) == made.prompt_tokens
        assert sum(load.decode_sequences for load in loads) == SOME - 1


async def test_statistics_follow_what_runs(engine: Running) -> None:
    sequence = await engine.submit(PROMPT, max_tokens=400)
    await engine.until(lambda: engine.so_far(sequence).count >= 1)
    stats = engine.engine.stats()
    assert stats.running == 1
    assert 0 < stats.kv_cache_usage <= 1
    assert stats.power_w > 0
    assert stats.slowdown > 0
    engine.engine.cancel(sequence)
    await engine.made(sequence)
    await engine.settled()
    assert engine.engine.stats().kv_cache_usage < stats.kv_cache_usage


async def test_stopping_ends_everything(fresh: Fresh) -> None:
    async with fresh(max_batch=2) as engine:
        sequences = [await engine.submit(PROMPT, max_tokens=450) for _ in range(5)]
        await engine.engine.stop(0.0)
        for sequence in sequences:
            assert engine.so_far(sequence).outputs[-1].finish is not None
        assert FinishReason.CANCELLED in {engine.so_far(sequence).finish for sequence in sequences}
        assert (engine.engine.stats().running, engine.engine.stats().waiting) == (0, 0)
        await refused(engine, EngineFailed, PROMPT)


async def test_stopping_with_grace_lets_requests_end(fresh: Fresh) -> None:
    async with fresh() as engine:
        sequence = await engine.submit(PROMPT, max_tokens=SOME)
        await engine.engine.stop(20.0)
        made = engine.so_far(sequence)
        assert (made.count, made.finish) == (SOME, FinishReason.LENGTH)
