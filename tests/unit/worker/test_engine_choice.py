from importlib.metadata import EntryPoint, EntryPoints

import pytest

from services.mesh.clock import Clock, SystemClock
from services.mesh.errors import SettingInvalid
from services.mesh.settings import WorkerSettings
from services.worker import engines
from services.worker.engines import choose_engine, llamacpp, vllm
from services.worker.engines.llamacpp import LlamaCppEngine
from services.worker.engines.simulated import SimulatedEngine

SMALL = "smollm2-135m-instruct"
CPU = "cpu-epyc-turin"


class OtherEngine(SimulatedEngine):
    """A third party's engine."""


def make_other(settings: WorkerSettings, clock: Clock) -> OtherEngine:
    return OtherEngine(settings, clock)


async def note_of(settings: WorkerSettings) -> str:
    engine = choose_engine(settings, SystemClock())
    assert isinstance(engine, SimulatedEngine)
    info = await engine.start(lambda _: None, lambda _: None)
    await engine.stop(0.0)
    return info.note


async def test_a_large_model_is_simulated_without_excuse() -> None:
    assert await note_of(WorkerSettings()) == ""


async def test_the_small_model_is_real_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "llamacpp_unavailable", lambda _: "")
    settings = WorkerSettings(accelerator=CPU, models=(SMALL,))
    assert isinstance(choose_engine(settings, SystemClock()), LlamaCppEngine)


async def test_the_small_model_is_simulated_where_it_cannot_run_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "llamacpp_unavailable", lambda _: "xllamacpp has no wheel for riscv64")
    note = await note_of(WorkerSettings(accelerator=CPU, models=(SMALL,)))
    assert note == "smollm2-135m-instruct is simulated here: xllamacpp has no wheel for riscv64"


async def test_a_simulation_that_was_asked_for_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "llamacpp_unavailable", lambda _: "")
    assert await note_of(WorkerSettings(engine="simulated", accelerator=CPU, models=(SMALL,))) == ""


async def test_an_engine_that_was_asked_for_and_cannot_run_stops_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "llamacpp_unavailable", lambda _: "no weights")
    with pytest.raises(SettingInvalid, match="'llamacpp' cannot run here: no weights"):
        choose_engine(WorkerSettings(engine="llamacpp", models=(SMALL,)), SystemClock())


async def test_a_plug_in_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = EntryPoint("other", f"{__name__}:make_other", engines.ENTRY_POINTS)
    monkeypatch.setattr(engines, "entry_points", lambda **wanted: EntryPoints([ours]).select(**wanted))
    assert isinstance(choose_engine(WorkerSettings(engine="other"), SystemClock()), OtherEngine)
    with pytest.raises(
        SettingInvalid, match="'parrot' is not known; use one of: auto, llamacpp, openai, other, simulated"
    ):
        choose_engine(WorkerSettings(engine="parrot"), SystemClock())


async def test_weights_for_vllm_are_served_by_it_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WorkerSettings(accelerator=CPU, vllm_model="/weights")
    monkeypatch.setattr(vllm, "vllm_unavailable", lambda: "")
    assert isinstance(choose_engine(settings, SystemClock()), vllm.VllmEngine)
    monkeypatch.setattr(vllm, "vllm_unavailable", lambda: "vLLM is not installed")
    assert isinstance(choose_engine(settings, SystemClock()), SimulatedEngine)


async def test_vllm_that_was_asked_for_and_is_not_installed_stops_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "vllm_unavailable", lambda: "vLLM is not installed")
    with pytest.raises(SettingInvalid, match="'vllm' cannot run here: vLLM is not installed"):
        choose_engine(WorkerSettings(engine="vllm"), SystemClock())
