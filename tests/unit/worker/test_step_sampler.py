from services.mesh.timing import StepLoad
from services.worker.core.step_sampler import StepSampler

PREFILL, DECODE = StepLoad(prefill_tokens=100, decode_sequences=3), StepLoad(decode_sequences=3)


def test_samples_are_few_and_of_both_kinds() -> None:
    sampler = StepSampler()
    told = [load for step in range(500) if sampler.wants(load := PREFILL if step % 50 == 0 else DECODE, step * 0.01)]
    assert 45 <= told.count(DECODE) <= 50
    assert told.count(PREFILL) == 10


def test_the_first_step_is_told_of() -> None:
    assert StepSampler().wants(DECODE, 0.0)
