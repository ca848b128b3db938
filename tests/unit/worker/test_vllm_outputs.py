"""vLLM's outputs, read: what a request got, and whose prompts a step worked on."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from services.worker.core.measured_steps import Arrival
from services.worker.engine import EngineRequest, FinishReason, Prompt, Sampling, TokenLogprob
from services.worker.engines.prompts import EncodedRequest
from services.worker.engines.request_line import Job
from services.worker.engines.vllm_outputs import DeltaReader, prompts_worked_on


@dataclass
class Place:
    logprob: float
    decoded_token: str | None


@dataclass
class Delta:
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    logprobs: list[dict[int, Place]] | None = None


@dataclass
class Output:
    outputs: list[Delta]
    finished: bool = False
    num_cached_tokens: int | None = None


def output(text: str, *token_ids: int, finish: str | None = None, cached: int | None = None) -> Output:
    return Output([Delta(text, token_ids, finish)], finish is not None, cached)


@dataclass
class Asked:
    """A request for the reader."""

    sequence: int = 1
    prompt: int = 10  # tokens
    priority: int = 0
    stop: tuple[str, ...] = ()
    held: str = ""
    logprobs: int | None = None
    resumed: int = 0
    tells_prompt: bool = False
    special: frozenset[int] = field(default_factory=frozenset)

    def reader(self) -> DeltaReader:
        sampling = Sampling(max_tokens=9, stop=self.stop, logprobs=self.logprobs)
        request = EngineRequest(
            sequence=self.sequence, request_id="r", model="m", prompt=Prompt(text="x"), sampling=sampling
        )
        encoded = EncodedRequest(tuple(range(self.prompt + self.resumed)), self.prompt, 9, self.held)
        job = Job(self.priority, self.sequence, request, 0.0, encoded)
        return DeltaReader(job, self.special, tells_prompt=self.tells_prompt)


def test_first_token_tells_what_was_computed_and_what_was_cached() -> None:
    reader = Asked(prompt=10).reader()
    first = reader.read(output("a", 5, cached=4), 1.0)
    assert (first.prefill_tokens, first.cached_tokens, first.token_count, first.text) == (6, 4, 1, "a")
    second = reader.read(output("b", 6), 2.0)
    assert (second.prefill_tokens, second.finish) == (0, None)
    assert reader.lacking == 0


def test_fully_cached_prompt_still_computed_a_token() -> None:
    assert Asked(prompt=10).reader().read(output("a", 5, cached=10), 1.0).prefill_tokens == 1


def test_finish_reasons_are_told_in_our_words() -> None:
    for theirs, ours in (
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("abort", FinishReason.CANCELLED),
    ):
        assert Asked().reader().read(output("a", 5, finish=theirs), 1.0).finish is ours


def test_finish_that_nobody_knows_is_an_error_that_names_it() -> None:
    ended = Asked().reader().read(output("", finish="eclipse"), 1.0)
    assert ended.finish is FinishReason.ERROR
    assert ended.error is not None
    assert "eclipse" in ended.error[1]


def test_stop_string_over_two_outputs_ends_the_answer_before_it() -> None:
    reader = Asked(stop=("END",)).reader()
    assert reader.read(output("goE", 1), 1.0).text == "go"
    ended = reader.read(output("NDmore", 2), 2.0)
    assert (ended.text, ended.finish, reader.stopped) == ("", FinishReason.STOP, True)


def test_text_held_before_a_break_goes_out_with_the_next() -> None:
    reader = Asked(stop=("END",), held="xE").reader()
    assert reader.read(output("q", 1), 1.0).text == "xEq"


def test_cancelled_request_lets_out_what_it_held() -> None:
    reader = Asked(stop=("END",)).reader()
    reader.read(output("aE", 1), 1.0)
    ended = reader.cancelled(2.0)
    assert (ended.text, ended.finish, ended.token_count) == ("E", FinishReason.CANCELLED, 0)


def test_prompt_s_ids_are_told_once_and_without_resumed_ones() -> None:
    reader = Asked(prompt=4, resumed=2, tells_prompt=True).reader()
    assert tuple(reader.worked_on(3, 1.0).prompt_token_ids) == (0, 1, 2, 3)
    assert tuple(reader.read(output("a", 5), 2.0).prompt_token_ids) == ()


def test_log_probabilities_are_of_the_token_and_the_likeliest() -> None:
    reader = Asked(logprobs=2, special=frozenset({3})).reader()
    places = {1: Place(-3.0, "a"), 2: Place(-0.5, "b"), 3: Place(-1.0, "<end>")}
    told = reader.read(Output([Delta("a", (1,), None, [places])]), 1.0).logprobs
    assert told == (TokenLogprob("a", -3.0, (("b", -0.5), ("", -1.0))),)


def test_no_log_probabilities_unless_asked_for() -> None:
    told = Asked().reader().read(Output([Delta("a", (1,), None, [{1: Place(-1.0, "a")}])]), 1.0)
    assert told.logprobs == ()


def test_rest_of_a_step_s_prompt_goes_to_the_one_that_was_begun() -> None:
    soon, late = Asked(sequence=1, prompt=100).reader(), Asked(sequence=2, prompt=100).reader()
    late.worked_on(30, 0.0)
    told = prompts_worked_on([soon, late], [], 40, 1.0)
    assert [(each.sequence, each.prefill_tokens) for each in told] == [(2, 40)]


def test_rest_goes_on_to_the_next_in_order_of_priority() -> None:
    done = Arrival(sequence=9, at_s=1.0, token_count=1, prefill_tokens=10)
    low, high = Asked(sequence=1, prompt=50, priority=2).reader(), Asked(sequence=2, prompt=50, priority=1).reader()
    told = prompts_worked_on([low, high], [done], 30, 1.0)
    assert [(each.sequence, each.prefill_tokens) for each in told] == [(2, 20)]


@given(
    prompts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    priorities=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    budget=st.integers(2, 64),
)
def test_every_prompt_token_is_told_of_its_own_request_exactly_once(
    prompts: list[int], priorities: list[int], budget: int
) -> None:
    """A scheduler as vLLM's, without a cache: what it computes is what the arrivals say, request by request."""
    readers = [
        Asked(sequence=number, prompt=size, priority=priorities[number]).reader() for number, size in enumerate(prompts)
    ]
    left = dict(enumerate(prompts))
    told = dict.fromkeys(left, 0)
    truth = dict.fromkeys(left, 0)
    while any(left.values()):
        room, arrivals = budget, []
        for number in sorted(left, key=lambda each: (left[each] == prompts[each], priorities[each], each)):
            computed = min(room, left[number])
            if not computed:
                continue
            left[number] -= computed
            truth[number] += computed
            room -= computed
            if not left[number]:
                arrivals.append(readers[number].read(output("a", 1), 1.0))
        arrivals += prompts_worked_on(readers, arrivals, budget - room, 1.0)
        for arrival in arrivals:
            told[arrival.sequence] += arrival.prefill_tokens
        assert told == truth
