from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from services.mesh.accelerators import load_catalogue
from services.mesh.clock import Clock, FakeClock, SystemClock
from services.mesh.errors import EngineFailed, SettingInvalid, UnknownModel
from services.mesh.settings import WorkerSettings
from services.worker.engine import EngineRequest, FinishReason, Prompt, Sampling, SequenceOutput, StepOutput
from services.worker.engines.simulated import SimulatedEngine
from services.worker.faults import CRASH_STATUS, Fault, FaultKind
from tests.unit.worker.waiting import until

MODEL = "llama-3.1-8b"


def settings(**values: object) -> WorkerSettings:
    return WorkerSettings.model_validate({"engine": "simulated", "speed": 200.0, **values})


def request(sequence: int, *, model: str = MODEL, max_tokens: int = 8, prompt: str = "hello") -> EngineRequest:
    return EngineRequest(
        sequence=sequence,
        request_id=str(sequence),
        model=model,
        prompt=Prompt(text=prompt),
        sampling=Sampling(max_tokens=max_tokens, ignore_eos=True),
    )


class Started:
    """A started engine and what it has reported."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine
        self.steps: list[StepOutput] = []
        self.failures: list[str] = []

    def on_step(self, steps: Sequence[StepOutput]) -> None:
        self.steps += steps

    @property
    def outputs(self) -> list[SequenceOutput]:
        return [output for step in self.steps for output in step.outputs]

    def finish(self, sequence: int) -> FinishReason | None:
        return next((each.finish for each in self.outputs if each.sequence == sequence and each.finish), None)

    def tokens(self, sequence: int) -> int:
        return sum(output.token_count for output in self.outputs if output.sequence == sequence)


Start = Callable[..., Awaitable[Started]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts an engine: `await start(clock, speed=…, …)`; stopped after the test."""
    engines: list[SimulatedEngine] = []

    async def started(clock: Clock | None = None, **values: object) -> Started:
        engine = SimulatedEngine(settings(**values), clock or SystemClock())
        run = Started(engine)
        await engine.start(run.on_step, run.failures.append)
        engines.append(engine)
        return run

    yield started
    for engine in engines:
        await engine.stop(0.0)


async def test_steps_last_as_the_catalogue_says_and_their_parts_add_up(start: Start) -> None:
    catalogue = load_catalogue()
    timing = catalogue.timing(catalogue.accelerator("nvidia-h100-sxm"), catalogue.model(MODEL))
    run = await start(speed=200.0)
    for sequence in range(5):
        await run.engine.submit(request(sequence, max_tokens=4 + sequence, prompt="some words " * 30))
    await until(lambda: all(run.finish(sequence) for sequence in range(5)), "all have ended")
    for step in run.steps:
        assert step.load is not None
        # An overloaded machine makes steps longer, never shorter.
        assert step.step_s >= timing.step_s(step.load) / 200.0 - 1e-9
        assert sum(output.device_ns for output in step.outputs) == round(step.step_s * 1e9)
    stats = run.engine.stats()
    assert stats.busy_ns == sum(output.device_ns for output in run.outputs)
    assert stats.steps == len(run.steps)
    assert stats.energy_uj >= sum(output.energy_uj for output in run.outputs) > 0
    assert [run.tokens(sequence) for sequence in range(5)] == [4, 5, 6, 7, 8]
    assert (stats.running, stats.waiting, stats.waiting_prefill_tokens, stats.kv_cache_usage) == (0, 0, 0, 0.0)
    await until(lambda: run.engine.stats().power_w == 105.0, "the idle engine draws idle watts")


async def test_time_that_the_host_lost_is_part_of_the_step(start: Start) -> None:
    clock = FakeClock()
    run = await start(clock, speed=0.1)
    await run.engine.submit(request(1, max_tokens=1))
    await until(lambda: run.engine.stats().running == 1, "its step is under way")
    clock.advance(1.5)
    await until(lambda: run.finish(1) is not None, "it has ended")
    assert run.steps[0].step_s == 1.5
    assert run.engine.stats().busy_ns == 1_500_000_000
    assert run.engine.stats().slowdown > 10


async def test_a_slow_engine_takes_longer_by_the_factor_and_tells_it(start: Start) -> None:
    run = await start()
    await run.engine.submit(request(1, max_tokens=20))
    await until(lambda: run.finish(1) is not None, "it has ended")
    healthy_s = run.steps[-1].step_s
    healthy = run.engine.stats().slowdown
    assert run.engine.inject(Fault(FaultKind.SLOW, 10.0)) == "steps take 10 times as long"
    await run.engine.submit(request(2, max_tokens=200))
    await until(lambda: run.finish(2) is not None, "it has ended")
    assert run.steps[-1].step_s >= 9.9 * healthy_s
    assert run.engine.stats().slowdown > healthy
    assert run.engine.inject(Fault(FaultKind.NONE)) == "healthy"


async def test_a_hanging_engine_ends_no_step_until_it_is_mended(start: Start) -> None:
    run = await start()
    run.engine.inject(Fault(FaultKind.HANG))
    await run.engine.submit(request(1))
    await until(lambda: run.engine.stats().running == 1, "its step is under way")
    run.engine.cancel(99)
    assert run.steps == []
    run.engine.inject(Fault(FaultKind.NONE))
    await until(lambda: run.finish(1) is FinishReason.LENGTH, "it has ended")


async def test_a_crash_ends_the_process_with_its_own_status() -> None:
    statuses: list[int] = []
    engine = SimulatedEngine(settings(), SystemClock(), exit_process=statuses.append)
    engine.inject(Fault(FaultKind.CRASH))
    assert statuses == [CRASH_STATUS]


async def test_a_cancelled_sequence_ends_with_the_step_under_way(start: Start) -> None:
    run = await start(speed=20.0, max_batch=1)
    await run.engine.submit(request(1, max_tokens=100_000))
    await run.engine.submit(request(2, max_tokens=1))
    await until(lambda: run.tokens(1) > 3, "it decodes")
    steps = run.engine.stats().steps
    run.engine.cancel(1)
    await until(lambda: run.finish(2) is not None, "the one that waited has its slot")
    assert run.finish(1) is FinishReason.CANCELLED
    cancelled_at = next(index for index, step in enumerate(run.steps) if any(each.finish for each in step.outputs))
    assert cancelled_at == steps


async def test_stopping_gives_grace_then_cancels_and_counts_the_step_it_cut(start: Start) -> None:
    run = await start(speed=0.001)
    await run.engine.submit(request(1, max_tokens=100_000))
    await run.engine.submit(request(2, max_tokens=100_000))
    await until(lambda: run.engine.stats().running == 2, "both run")
    await run.engine.stop(0.0)
    assert run.finish(1) is run.finish(2) is FinishReason.CANCELLED
    assert run.engine.stats().busy_ns == sum(output.device_ns for output in run.outputs)
    assert run.engine.stats().running == 0


async def test_stopping_waits_for_what_ends_within_the_grace(start: Start) -> None:
    run = await start()
    await run.engine.submit(request(1, max_tokens=30))
    await run.engine.stop(20.0)
    assert (run.finish(1), run.tokens(1)) == (FinishReason.LENGTH, 30)


async def test_a_hanging_engine_can_be_stopped(start: Start) -> None:
    run = await start()
    run.engine.inject(Fault(FaultKind.HANG))
    await run.engine.submit(request(1))
    await until(lambda: run.engine.stats().running == 1, "its step is under way")
    await run.engine.stop(0.0)
    assert run.finish(1) is FinishReason.CANCELLED


async def test_two_models_take_turns_on_one_accelerator(start: Start) -> None:
    small = "smollm2-135m-instruct"
    run = await start(models=(MODEL, small))
    await run.engine.submit(request(1, max_tokens=10))
    await run.engine.submit(request(2, model=small, max_tokens=10))
    await until(lambda: run.finish(1) is not None and run.finish(2) is not None, "both have ended")
    assert [step.model for step in run.steps][:6] == [MODEL, small] * 3
    assert run.engine.stats().busy_ns == sum(output.device_ns for output in run.outputs)


async def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    engine = SimulatedEngine(settings(accelerator="google-tpu-v5e"), SystemClock())
    with pytest.raises(EngineFailed, match=r"llama-3\.1-8b take 16\.1 GB of weights, and google-tpu-v5e has 14\.4 GB"):
        await engine.start(lambda _: None, lambda _: None)


async def test_a_model_or_an_accelerator_that_nobody_knows_is_refused(start: Start) -> None:
    with pytest.raises(SettingInvalid, match="abacus"):
        SimulatedEngine(settings(accelerator="abacus"), SystemClock())
    with pytest.raises(SettingInvalid, match="parrot"):
        SimulatedEngine(settings(models=("parrot",)), SystemClock())
    run = await start()
    with pytest.raises(UnknownModel, match="parrot"):
        await run.engine.submit(request(1, model="parrot"))


async def test_an_engine_that_breaks_says_why() -> None:
    failures: list[str] = []

    def broken(_: Sequence[StepOutput]) -> None:
        raise ZeroDivisionError("the reader is broken")

    engine = SimulatedEngine(settings(), SystemClock())
    await engine.start(broken, failures.append)
    await engine.submit(request(1))
    await until(lambda: bool(failures), "the failure is told")
    assert "the reader is broken" in failures[0]


async def test_the_context_is_what_the_settings_the_model_and_the_memory_allow() -> None:
    contexts = {}
    for accelerator, asked in (("amd-mi300x", 0), ("amd-mi300x", 4096), ("nvidia-l4", 0)):
        engine = SimulatedEngine(settings(accelerator=accelerator, context_tokens=asked), SystemClock())
        info = await engine.start(lambda _: None, lambda _: None)
        contexts[accelerator, asked] = info.context_tokens
        assert info.context_tokens <= info.kv_capacity_tokens
        await engine.stop(0.0)
    assert contexts["amd-mi300x", 0] == 131_072
    assert contexts["amd-mi300x", 4096] == 4096
    assert contexts["nvidia-l4", 0] < 131_072
