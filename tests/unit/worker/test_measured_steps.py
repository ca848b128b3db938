"""Steps put together from arrivals: whose time adds up, and whose load is what was computed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.accelerators import load_catalogue
from services.mesh.timing import StepLoad
from services.worker.core.measured_steps import Arrival, MeasuredSteps
from services.worker.engine import FinishReason

CATALOGUE = load_catalogue()
CPU = CATALOGUE.accelerator("cpu-epyc-turin")
TIMING = CATALOGUE.timing(CPU, CATALOGUE.model("smollm2-135m-instruct"))


def steps(known: bool = True) -> MeasuredSteps:
    return MeasuredSteps("smollm2-135m-instruct", CPU, TIMING if known else None)


def token(sequence: int, at_s: float, **rest: object) -> Arrival:
    return Arrival(sequence=sequence, at_s=at_s, token_count=1, token_ids=(sequence,), text="x", **rest)  # type: ignore[arg-type]


def test_first_arrivals_of_all_sequences_are_one_step() -> None:
    measured = steps()
    measured.open(1, 10.0, prompt_tokens=4)
    measured.open(2, 10.0, prompt_tokens=4)
    told = measured.fold([token(1, 10.010), token(2, 10.011), token(1, 10.020), token(2, 10.021)])
    assert [[output.sequence for output in step.outputs] for step in told] == [[1, 2], [1, 2]]
    assert [step.step_s for step in told] == [pytest.approx(0.011), pytest.approx(0.010)]
    assert measured.steps == 2


def test_time_while_nothing_runs_belongs_to_no_step() -> None:
    measured = steps()
    measured.open(1, 0.0, prompt_tokens=4)
    measured.fold([token(1, 1.0, finish=FinishReason.LENGTH)])
    measured.open(2, 100.0, prompt_tokens=4)
    (step,) = measured.fold([token(2, 100.5)])
    assert step.step_s == pytest.approx(0.5)
    assert measured.busy_ns == 1_500_000_000


def test_finish_that_comes_alone_joins_the_token_it_came_with() -> None:
    measured = steps()
    measured.open(1, 0.0, prompt_tokens=4)
    end = Arrival(sequence=1, at_s=0.1, text=" rest", finish=FinishReason.STOP)
    (step,) = measured.fold([token(1, 0.1), end])
    (output,) = step.outputs
    assert (output.token_count, output.text, output.finish) == (1, "x rest", FinishReason.STOP)
    assert measured.kv_tokens == 0


def test_finish_that_comes_later_is_told_without_time() -> None:
    measured = steps()
    measured.open(1, 0.0, prompt_tokens=4)
    measured.fold([token(1, 0.1)])
    (step,) = measured.fold([Arrival(sequence=1, at_s=0.2, finish=FinishReason.CANCELLED)])
    assert (step.step_s, step.load, step.outputs[0].token_count) == (0.0, None, 0)
    assert step.outputs[0].finish is FinishReason.CANCELLED


def test_load_tells_prompt_and_decode_apart() -> None:
    measured = steps()
    measured.open(1, 0.0, prompt_tokens=100)
    measured.open(2, 0.0, prompt_tokens=10)
    first, second = measured.fold(
        [
            Arrival(sequence=1, at_s=0.1, prefill_tokens=64, cached_tokens=20),
            token(2, 0.1, prefill_tokens=10),
            token(1, 0.2, prefill_tokens=16, cached_tokens=20),
            token(2, 0.2),
        ]
    )
    # The 64 computed tokens attend to the 20 cached ones and to each other.
    assert first.load == StepLoad(74, 64 * 20 + 64 * 65 // 2 + 10 * 11 // 2, 0, 0)
    assert second.load == StepLoad(16, 16 * 84 + 16 * 17 // 2, 1, 11)
    assert second.outputs[0].cached_prompt_tokens == 20
    assert measured.kv_tokens == 101 + 12


def test_what_comes_for_a_closed_sequence_is_ignored() -> None:
    measured = steps()
    assert measured.fold([token(9, 1.0)]) == []


def test_slowdown_is_measured_over_modelled_seconds() -> None:
    measured = steps()
    measured.open(1, 0.0, prompt_tokens=10)
    modelled_s = TIMING.step_s(StepLoad(prefill_tokens=10, attended_tokens=55))
    measured.fold([token(1, 3 * modelled_s, prefill_tokens=10)])
    assert measured.slowdown == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("known", [True, False], ids=["in the catalogue", "not in it"])
@given(
    gaps=st.lists(
        st.tuples(st.integers(1, 4), st.floats(0, 0.5), st.integers(0, 64), st.integers(0, 3)), min_size=1, max_size=40
    ),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_parts_add_up_however_the_arrivals_are_cut(
    known: bool, gaps: list[tuple[int, float, int, int]], cuts: list[int]
) -> None:
    measured = steps(known)
    for sequence in range(1, 5):
        measured.open(sequence, 0.0, prompt_tokens=1000)
    now_s, arrivals = 0.0, []
    for sequence, gap_s, prefill, made in gaps:
        now_s += gap_s
        arrivals.append(Arrival(sequence=sequence, at_s=now_s, prefill_tokens=prefill, token_count=made))
    bounds = [0, *sorted(cuts), len(arrivals)]
    told = [step for a, b in pairwise(bounds) for step in measured.fold(arrivals[a:b])]
    for step in told:
        assert sum(output.device_ns for output in step.outputs) == round(step.step_s * 1e9)
    outputs = [output for step in told for output in step.outputs]
    assert sum(output.device_ns for output in outputs) == measured.busy_ns
    assert sum(output.energy_uj for output in outputs) == measured.energy_uj
    assert sum(output.token_count for output in outputs) == sum(made for _, _, _, made in gaps)
