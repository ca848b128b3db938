import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from services.mesh.accelerators import load_catalogue
from services.mesh.errors import PromptTooLong, QueueFull
from services.worker.core import tokenizer
from services.worker.core.batching import BatchLimits
from services.worker.core.simulation import SimulatedModel
from services.worker.engine import ChatMessage, EngineRequest, FinishReason, Prompt, Sampling, SequenceOutput

CATALOGUE = load_catalogue()
MODEL = "llama-3.1-8b"
TIMING = CATALOGUE.timing(CATALOGUE.accelerator("nvidia-h100-sxm"), CATALOGUE.model(MODEL))


def model(
    context_tokens: int = 4096, max_waiting: int = 100, kv_blocks: int = 1000, max_batch: int = 16
) -> SimulatedModel:
    limits = BatchLimits(max_batch=max_batch, max_waiting=max_waiting, prefill_chunk_tokens=256, kv_blocks=kv_blocks)
    return SimulatedModel(MODEL, TIMING, limits, context_tokens)


def request(
    sequence: int = 1,
    prompt: str = "hello",
    *,
    max_tokens: int = 4096,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
    ignore_eos: bool = False,
    resume_from: int = 0,
    resumed_token_ids: tuple[int, ...] = (),
    resumed_text: str = "",
    resumed_tokenizer: str = "",
) -> EngineRequest:
    return EngineRequest(
        sequence=sequence,
        request_id=f"request-{sequence}",
        model=MODEL,
        prompt=Prompt(text=prompt),
        sampling=Sampling(max_tokens=max_tokens, seed=seed, stop=stop, ignore_eos=ignore_eos),
        resume_from=resume_from,
        resumed_token_ids=resumed_token_ids,
        resumed_text=resumed_text,
        resumed_tokenizer=resumed_tokenizer,
    )


def run(model: SimulatedModel, now_s: float = 0.0) -> list[SequenceOutput]:
    outputs = list(model.take_ended())
    while model.plan_step(now_s) is not None:
        outputs += model.complete_step(1000, 700)
        outputs += model.take_ended()
    return outputs + list(model.take_ended())


def ids_of(outputs: list[SequenceOutput], sequence: int = 1) -> list[int]:
    return [each for output in outputs if output.sequence == sequence for each in output.token_ids]


def text_of(outputs: list[SequenceOutput], sequence: int = 1) -> str:
    return "".join(output.text for output in outputs if output.sequence == sequence)


def answer(*requests: EngineRequest) -> list[SequenceOutput]:
    simulated = model()
    for each in requests:
        simulated.submit(each, 0.0)
    return run(simulated)


@given(st.integers(0, 300))
@settings(deadline=None)
def test_a_resumed_stream_is_the_undisturbed_one_token_by_token(cut: int) -> None:
    whole = answer(request(seed=3, max_tokens=300, ignore_eos=True))
    rest = answer(request(seed=3, max_tokens=300, ignore_eos=True, resume_from=cut))
    told = answer(
        request(seed=3, max_tokens=300, ignore_eos=True, resume_from=cut, resumed_token_ids=tuple(ids_of(whole)[:cut]))
    )
    assert ids_of(rest) == ids_of(told) == ids_of(whole)[cut:]
    assert rest[-1].finish == whole[-1].finish == FinishReason.LENGTH
    assert rest[-1].prompt_tokens == whole[-1].prompt_tokens


@given(st.integers(0, 200))
@settings(deadline=None)
def test_a_stop_string_across_the_seam_of_a_resumed_stream_still_stops_it(cut: int) -> None:
    whole = answer(request(seed=3, max_tokens=300, ignore_eos=True))
    words = text_of(whole).split(" ")
    stop = (" ".join(words[100:102]),)
    stopped = answer(request(seed=3, max_tokens=300, ignore_eos=True, stop=stop))
    cut = min(cut, len(ids_of(stopped)) - 1)
    before = [output for output in stopped if output.token_count][:cut]
    rest = answer(request(seed=3, max_tokens=300, ignore_eos=True, stop=stop, resume_from=cut))
    assert stopped[-1].finish == rest[-1].finish == FinishReason.STOP
    assert ids_of(before) + ids_of(rest) == ids_of(stopped)
    assert text_of(before) + text_of(rest) == text_of(stopped)
    assert text_of(whole).startswith(text_of(stopped))
    assert stop[0] not in text_of(stopped)


@pytest.mark.parametrize("text", ["A word or two.", "x" * 400])
def test_what_another_tokenizer_made_is_replayed_as_text_and_keeps_its_index(text: str) -> None:
    whole = answer(request(seed=3, max_tokens=300, ignore_eos=True))
    rest = answer(
        request(
            seed=3,
            max_tokens=300,
            ignore_eos=True,
            resume_from=20,
            resumed_token_ids=tuple(range(20)),
            resumed_text=text,
            resumed_tokenizer="another",
        )
    )
    assert ids_of(rest) == ids_of(whole)[20:]
    assert (rest[-1].finish, rest[-1].prompt_tokens) == (FinishReason.LENGTH, whole[-1].prompt_tokens)


def test_an_answer_whose_foreign_text_fills_the_context_ends() -> None:
    simulated = model(context_tokens=64)
    simulated.submit(request(ignore_eos=True, resume_from=2, resumed_text="é" * 100, resumed_tokenizer="another"), 0.0)
    (last,) = run(simulated)
    assert (last.token_count, last.finish) == (0, FinishReason.LENGTH)


def test_answers_end_by_themselves_at_the_same_token_wherever_they_are_resumed() -> None:
    whole = answer(request(seed=11))
    assert whole[-1].finish is FinishReason.STOP
    assert text_of(whole).endswith(".")
    made = len(ids_of(whole))
    for cut in (1, made - 1, made, made + 5):
        rest = answer(request(seed=11, resume_from=cut))
        assert rest[-1].finish is FinishReason.STOP
        assert ids_of(rest) == ids_of(whole)[cut:]


def test_the_three_forms_of_a_prompt_give_the_same_tokens() -> None:
    ids = tuple(tokenizer.encode_prompt("hello"))
    simulated = model()
    simulated.submit(request(1, "hello", max_tokens=20), 0.0)
    by_ids = EngineRequest(
        sequence=2, request_id="2", model=MODEL, prompt=Prompt(token_ids=ids), sampling=Sampling(max_tokens=20)
    )
    simulated.submit(by_ids, 0.0)
    outputs = run(simulated)
    assert ids_of(outputs, 1) == ids_of(outputs, 2)


def test_max_tokens_is_cut_to_the_room_in_the_context() -> None:
    simulated = model(context_tokens=64)
    prompt = "a " * 20
    simulated.submit(request(prompt=prompt, ignore_eos=True), 0.0)
    outputs = run(simulated)
    assert len(ids_of(outputs)) == 64 - len(tokenizer.encode_prompt(prompt))
    assert outputs[-1].finish is FinishReason.LENGTH


def test_a_prompt_that_leaves_no_room_is_refused_with_its_length() -> None:
    with pytest.raises(PromptTooLong, match="has 102 tokens"):
        model(context_tokens=64).submit(request(prompt="a " * 100), 0.0)


def test_a_full_queue_is_said() -> None:
    simulated = model(max_waiting=2)
    simulated.submit(request(1), 0.0)
    simulated.submit(request(2), 0.0)
    with pytest.raises(QueueFull, match="2 requests wait"):
        simulated.submit(request(3), 0.0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(0, 10**9),
    st.integers(8, 30),
    st.integers(0, 10),
)
def test_parts_add_up_to_every_step_and_everyone_is_told_of_the_end_once(
    requests: list[tuple[int, int]], step_ns: int, kv_blocks: int, cancel_at: int
) -> None:
    simulated = model(context_tokens=kv_blocks * 16, kv_blocks=kv_blocks, max_batch=4)
    for sequence, (prompt, tokens) in enumerate(requests):
        simulated.submit(request(sequence, "a " * (prompt // 2), max_tokens=tokens, ignore_eos=True), 0.0)
    outputs: list[SequenceOutput] = []
    steps = 0
    while simulated.plan_step(0.0) is not None:
        steps += 1
        if steps == cancel_at:
            simulated.cancel(0)
            simulated.cancel(len(requests) - 1)
        made = simulated.complete_step(step_ns, step_ns // 3)
        assert sum(output.device_ns for output in made) == step_ns
        assert sum(output.energy_uj for output in made) == step_ns // 3
        assert len({output.sequence for output in made}) == len(made)
        outputs += [*made, *simulated.take_ended()]
    ends = [output.sequence for output in outputs if output.finish is not None]
    assert sorted(ends) == list(range(len(requests)))
    for sequence, (_, tokens) in enumerate(requests):
        finish = next(each.finish for each in outputs if each.sequence == sequence and each.finish)
        if finish is FinishReason.LENGTH:
            assert len(ids_of(outputs, sequence)) == tokens
        else:
            assert finish is FinishReason.CANCELLED


def test_cancelling_before_the_first_step_ends_the_sequence_without_one() -> None:
    simulated = model()
    simulated.submit(request(), 0.0)
    assert simulated.cancel(1)
    assert simulated.plan_step(0.0) is None
    (output,) = simulated.take_ended()
    assert (output.finish, output.token_count) == (FinishReason.CANCELLED, 0)
    assert not simulated.cancel(1)


def test_a_second_turn_reuses_what_the_first_computed_the_answer_included() -> None:
    simulated = model()
    chat = [("user", "tell me of lakes " * 20)]

    def turn(sequence: int, messages: list[tuple[str, str]]) -> list[SequenceOutput]:
        simulated.submit(
            EngineRequest(
                sequence=sequence,
                request_id=str(sequence),
                model=MODEL,
                prompt=Prompt(chat=tuple(ChatMessage(*message) for message in messages)),
                sampling=Sampling(max_tokens=100, ignore_eos=True),
            ),
            0.0,
        )
        return run(simulated)

    first = turn(1, chat)
    second = turn(2, [*chat, ("assistant", text_of(first)), ("user", "more")])
    together = first[-1].prompt_tokens + 100
    assert first[-1].cached_prompt_tokens == 0
    assert together - 32 < second[-1].cached_prompt_tokens <= together


def test_queueing_is_told_in_seconds() -> None:
    simulated = model()
    simulated.submit(request(max_tokens=2), 5.0)
    outputs = run(simulated, now_s=5.25)
    assert outputs[-1].queue_s == 0.25
