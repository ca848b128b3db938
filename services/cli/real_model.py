"""A real model beside the simulated pools: what `tokenworks up --engine … --model …` adds to the fleet.

In: what the command line says. Out: a `RealModel`: the worker that runs it, the interpreter it needs, and the shape by
which simulated accelerators serve the same name.
"""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from services.cli.model_shape import STAND_IN, Row, is_known, model_name, row_of
from services.cli.output import CommandFailed
from services.mesh.accelerators import load_catalogue

SIMULATING: Final = ("auto", "simulated")
DETECTED: Final = "auto"  # the accelerator that the worker finds on its machine
_DEVICES: Final = (
    "/dev/nvidia0",
    "/dev/kfd",
    "/dev/accel/accel0",
    "/dev/accel0",
    "/dev/neuron0",
    "/dev/dri/renderD128",
)
# vLLM would take most of the machine's memory for its cache, and minutes to compile; here are other services too.
_ON_CPU: Final = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30}
_ENVIRONMENT: Final = ".venv-engines"  # which scripts/set_up_engines.py fills


@dataclass(frozen=True, slots=True, kw_only=True)
class RealModel:
    """What the worker on this machine's own hardware runs instead of its own; what is empty stays as the fleet says.

    Attributes:
        accelerator: what it runs on, where that is not the processor.
        model: what the mesh calls it.
        worker: more settings of its worker, by name.
        python: interpreter of its worker's process; empty: this one.
        shape: row for `[catalogue.models]`; None where the catalogue has the model, or none is named.
        note: what a person should know of it; empty: nothing.
    """

    engine: str = ""
    model: str = ""
    accelerator: str = ""
    worker: Mapping[str, Any] = field(default_factory=dict)
    python: str = ""
    shape: Row | None = None
    note: str = ""


def real_model(*, engine: str = "", model: str = "", url: str = "", shape: str = "") -> RealModel:
    """
    Args:
        engine: of `settings.ENGINES`; empty: as the fleet says.
        model: a directory, a GGUF file, or a name.
        url: of an OpenAI-compatible server.
        shape: what simulated accelerators take the model for: as `model_shape.row_of` takes it; empty: the model's own.

    Raises:
        CommandFailed: something is missing; says what.
    """
    if url and engine != "openai":
        raise CommandFailed(f"--url {url} is for --engine openai", reason="OptionMissing")
    if engine in ("vllm", "openai") and not model:
        raise CommandFailed(f"--engine {engine} serves one model: name it with --model", reason="OptionMissing")
    name = model_name(model)
    worker: dict[str, Any] = {}
    python = accelerator = ""
    if engine == "vllm":
        worker["vllm_model"] = str(Path(model).absolute()) if Path(model).exists() else model
        python = _python_with_vllm()
        if any(Path(each).exists() for each in _DEVICES):
            accelerator = DETECTED
        else:
            worker["vllm_arguments"] = _ON_CPU
    elif engine == "llamacpp" and Path(model).is_file():
        worker["llamacpp_model_path"] = str(Path(model).absolute())
    elif engine == "openai":
        if not url:
            raise CommandFailed("--engine openai needs the server's address: --url http://…", reason="OptionMissing")
        worker["openai_url"] = url
    row, note = _shape(name, model, shape)
    return RealModel(
        engine=engine, model=name, accelerator=accelerator, worker=worker, python=python, shape=row, note=note
    )


def _shape(name: str, model: str, shape: str) -> tuple[Row | None, str]:
    if shape:
        return row_of(shape), ""
    if not name or name in load_catalogue().models:
        return None, ""
    if is_known(model):
        return row_of(model), ""
    return row_of(STAND_IN), f"nothing tells the shape of {name}: simulated accelerators take it for {STAND_IN}"


def _python_with_vllm() -> str:
    """The interpreter to run vLLM with; empty: this one. Raises CommandFailed: vLLM is not installed."""
    if importlib.util.find_spec("vllm") is not None:
        return ""
    for home in (Path.cwd(), Path(__file__).resolve().parents[2]):
        python = home / _ENVIRONMENT / "bin" / "python"
        if python.exists():
            return str(python)
    raise CommandFailed(
        f"vLLM is not installed for {sys.executable}: install the build for this machine's accelerator there (pip"
        " install vllm), or, in a checkout, `make run ENGINE=vllm MODEL=…` makes an environment with its CPU build",
        reason="EngineMissing",
    )
