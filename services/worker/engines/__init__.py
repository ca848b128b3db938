"""Which engine a worker runs: from `worker.engine`, and from what can run on this machine.

auto        vLLM where it is installed and worker.vllm_model is set; else the small real model where it can run here;
            else a simulation that says why it is one
simulated   a simulated accelerator, whatever the model
llamacpp    llama.cpp in the process
vllm        vLLM in the process
openai      the OpenAI-compatible server at worker.openai_url
<name>      a plug-in: the entry point of that name in the group `tokenworks.engines`, called with
            (WorkerSettings, Clock), gives an `Engine`
"""

from importlib.metadata import entry_points
from typing import Final, cast

from services.mesh.clock import Clock
from services.mesh.errors import SettingInvalid
from services.mesh.settings import ENGINES, WorkerSettings
from services.worker.engine import Engine
from services.worker.engines.simulated import SimulatedEngine

ENTRY_POINTS: Final = "tokenworks.engines"
REAL_ON_CPU: Final = "smollm2-135m-instruct"  # small enough to run for real where there is no accelerator


def choose_engine(settings: WorkerSettings, clock: Clock) -> Engine:
    """The engine that the settings ask for, not started.

    Raises:
        SettingInvalid: `worker.engine` names none, or one that cannot run here; accelerator or model are not known.
    """
    if settings.engine == "simulated":
        return SimulatedEngine(settings, clock)
    if settings.engine == "auto":
        return _automatic(settings, clock)
    if settings.engine == "llamacpp":
        if why := _llamacpp_unavailable(settings):
            raise SettingInvalid(f"worker.engine = 'llamacpp' cannot run here: {why}; use 'auto' or 'simulated'")
        return _llamacpp(settings, clock)
    if settings.engine == "vllm":
        if why := _vllm_unavailable():
            raise SettingInvalid(f"worker.engine = 'vllm' cannot run here: {why}; or use 'auto' or 'simulated'")
        return _vllm(settings, clock)
    if settings.engine == "openai":
        from services.worker.engines.openai import OpenAiEngine

        return OpenAiEngine(settings, clock)
    return _plug_in(settings, clock)


def _automatic(settings: WorkerSettings, clock: Clock) -> Engine:
    if settings.vllm_model and not _vllm_unavailable():
        return _vllm(settings, clock)
    if REAL_ON_CPU not in settings.models:
        return SimulatedEngine(settings, clock)
    if settings.models != (REAL_ON_CPU,):
        return SimulatedEngine(settings, clock, f"{REAL_ON_CPU} is simulated here: it shares the worker with others")
    if why := _llamacpp_unavailable(settings):
        return SimulatedEngine(settings, clock, f"{REAL_ON_CPU} is simulated here: {why}")
    return _llamacpp(settings, clock)


def _llamacpp_unavailable(settings: WorkerSettings) -> str:
    from services.worker.engines.llamacpp import llamacpp_unavailable

    return llamacpp_unavailable(settings)


def _llamacpp(settings: WorkerSettings, clock: Clock) -> Engine:
    from services.worker.engines.llamacpp import LlamaCppEngine

    return LlamaCppEngine(settings, clock)


def _vllm_unavailable() -> str:
    from services.worker.engines.vllm import vllm_unavailable

    return vllm_unavailable()


def _vllm(settings: WorkerSettings, clock: Clock) -> Engine:
    from services.worker.engines.vllm import VllmEngine

    return VllmEngine(settings, clock)


def _plug_in(settings: WorkerSettings, clock: Clock) -> Engine:
    found = entry_points(group=ENTRY_POINTS, name=settings.engine)
    if not found:
        known = sorted({*ENGINES, *entry_points(group=ENTRY_POINTS).names})
        raise SettingInvalid(f"worker.engine = {settings.engine!r} is not known; use one of: {', '.join(known)}")
    (first, *_) = found
    return cast("Engine", first.load()(settings, clock))
