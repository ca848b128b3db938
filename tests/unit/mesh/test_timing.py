"""More work never takes less time, and a prompt takes what its steps take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.accelerators import load_catalogue
from services.mesh.errors import SettingInvalid
from services.mesh.timing import StepLoad, Timing

CATALOGUE = load_catalogue()
COEFFICIENTS = st.floats(0, 1e-2)
TIMINGS = st.builds(Timing, *[COEFFICIENTS] * 6)
COUNTS = st.integers(0, 10_000)
PAIRS = [(accelerator, model) for accelerator in CATALOGUE.accelerators for model in CATALOGUE.models]


@given(TIMINGS, st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), st.tuples(COUNTS, COUNTS, COUNTS, COUNTS))
def test_a_step_with_more_in_it_is_never_shorter(
    timing: Timing, load: tuple[int, int, int, int], more: tuple[int, int, int, int]
) -> None:
    larger = StepLoad(*[one + other for one, other in zip(load, more, strict=True)])
    assert timing.step_s(larger) >= timing.step_s(StepLoad(*load))


@given(TIMINGS, st.integers(1, 5000), st.integers(0, 5000), st.integers(1, 2048))
def test_a_prompts_prefill_is_the_sum_of_its_chunks(timing: Timing, fresh: int, cached: int, chunk: int) -> None:
    total_s, done = 0.0, cached
    while done < cached + fresh:
        tokens = min(chunk, cached + fresh - done)
        attended = sum(range(done + 1, done + tokens + 1))
        total_s += timing.step_s(StepLoad(prefill_tokens=tokens, attended_tokens=attended))
        done += tokens
    assert timing.prefill_s(cached + fresh, cached, chunk) == pytest.approx(total_s, rel=1e-9, abs=1e-12)


@given(TIMINGS, st.integers(1, 256), COUNTS)
def test_a_decode_step_is_a_step_that_only_decodes(timing: Timing, sequences: int, kv_tokens: int) -> None:
    step_s = timing.step_s(StepLoad(decode_sequences=sequences, kv_tokens=kv_tokens))
    assert timing.decode_s(sequences, kv_tokens) == pytest.approx(step_s)


@given(TIMINGS, st.floats(0.1, 20), st.integers(1, 256), COUNTS)
def test_a_slowed_accelerator_takes_so_much_longer(timing: Timing, factor: float, sequences: int, kv: int) -> None:
    assert timing.scaled(factor).decode_s(sequences, kv) == pytest.approx(timing.decode_s(sequences, kv) * factor)


def test_nothing_to_do_takes_no_time() -> None:
    timing = Timing(*[1.0] * 6)
    assert timing.step_s(StepLoad()) == 0.0
    assert timing.prefill_s(100, cached_tokens=100) == 0.0


@pytest.mark.parametrize(("accelerator", "model"), PAIRS)
def test_every_pair_of_the_catalogue_has_a_sensible_timing(accelerator: str, model: str) -> None:
    device, shape = CATALOGUE.accelerator(accelerator), CATALOGUE.model(model)
    timing = CATALOGUE.timing(device, shape)
    assert 0 < timing.decode_s(1, 100) < 60
    assert timing.prefill_s(2000) > timing.prefill_s(1000) > 0
    assert CATALOGUE.kv_capacity_tokens(device, shape) >= 0


@pytest.mark.parametrize("key", CATALOGUE.accelerators)
def test_every_accelerator_says_where_its_figures_are_from(key: str) -> None:
    device = CATALOGUE.accelerator(key)
    assert device.source
    assert device.rate_nusd_per_hour > 0
    assert device.power_w(-1) == device.idle_w < device.power_w(0.5) < device.power_w(2) == device.tdp_w


def test_what_the_catalogue_has_not_is_named_with_what_it_has() -> None:
    with pytest.raises(SettingInvalid, match=r"'abacus' is not in the catalogue; use one of: .*nvidia-h100-sxm"):
        CATALOGUE.accelerator("abacus")
    with pytest.raises(SettingInvalid, match="'eliza'"):
        CATALOGUE.model("eliza")
