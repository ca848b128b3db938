"""Vendors' libraries and tools without their devices: the same names, the same answers, the same errors.

NVML is the real `pynvml` with its calls into the driver replaced. amdsmi loads its library as it is imported, so its
module is made here, of the names that the real one has. Tools are programs on PATH that print what their
documentation shows.
"""

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml
import pytest


@dataclass
class Gpu:
    """One device; None is what it does not support."""

    name: str
    memory_mib: int
    uuid: str = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
    power_mw: int | None = 412_345
    busy_percent: int | None = 93
    energy_mj: int | None = 7_000_000


H100 = ("NVIDIA H100 80GB HBM3", 81_559)


@dataclass
class Driver:
    """NVIDIA's driver, as NVML tells of it.

    Attributes:
        failing: an NVML error that every reading raises.
        calls: names of the functions called.
    """

    gpus: list[Gpu]
    failing: int | None = None
    calls: list[str] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        replaced: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: len(self.gpus),
            "nvmlDeviceGetHandleByIndex": lambda index: self.gpus[index],
            "nvmlDeviceGetName": lambda handle: handle.name,
            "nvmlDeviceGetUUID": lambda handle: handle.uuid,
            "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(total=handle.memory_mib << 20),
            "nvmlDeviceGetPowerUsage": lambda handle: self._told(handle.power_mw),
            "nvmlDeviceGetUtilizationRates": lambda handle: types.SimpleNamespace(
                gpu=self._told(handle.busy_percent), memory=40
            ),
            "nvmlDeviceGetTotalEnergyConsumption": lambda handle: self._told(handle.energy_mj),
        }
        for name, call in replaced.items():
            assert callable(getattr(pynvml, name)), name
            monkeypatch.setattr(pynvml, name, self._noting(name, call))

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            self.calls.append(name)
            return call(*arguments)

        return noted

    def _told(self, value: int | None) -> int:
        if self.failing is not None:
            raise pynvml.NVMLError(self.failing)
        if value is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value


AMDSMI_NAMES = (
    "AmdSmiException",
    "AmdSmiLibraryException",
    "AmdSmiMemoryType",
    "amdsmi_init",
    "amdsmi_shut_down",
    "amdsmi_get_processor_handles",
    "amdsmi_get_gpu_asic_info",
    "amdsmi_get_gpu_memory_total",
    "amdsmi_get_gpu_device_uuid",
    "amdsmi_get_gpu_enumeration_info",
    "amdsmi_get_power_info",
    "amdsmi_get_gpu_activity",
    "amdsmi_get_energy_count",
)
_NOT_SUPPORTED, _NO_PERM, _NO_DRV = 2, 10, 46


@dataclass
class Instinct:
    """One AMD device."""

    hip_id: int
    name: str = "AMD Instinct MI300X"
    memory_bytes: int = 196_592 << 20
    power: dict[str, Any] = field(
        default_factory=lambda: {
            "socket_power": 688,
            "current_socket_power": 688,
            "average_socket_power": "N/A",
            "power_limit": 750_000_000,
        }
    )
    gfx_activity: Any = 87
    energy_accumulator: int | None = 1_000_000


def amdsmi_module(devices: Sequence[Instinct]) -> Any:
    """A module like amdsmi 7.0.2: names, answers, and errors."""
    module: Any = types.ModuleType("amdsmi")

    class AmdSmiException(Exception):
        pass

    class AmdSmiLibraryException(AmdSmiException):
        def __init__(self, err_code: int) -> None:
            super().__init__(err_code)
            self.err_code = err_code

        def get_error_code(self) -> int:
            return self.err_code

    def energy(handle: Instinct) -> dict[str, Any]:
        if handle.energy_accumulator is None:
            raise AmdSmiLibraryException(_NOT_SUPPORTED)
        return {
            "energy_accumulator": handle.energy_accumulator,
            "counter_resolution": 15.259,
            "timestamp": 1,
        }

    module.AmdSmiException, module.AmdSmiLibraryException = AmdSmiException, AmdSmiLibraryException
    module.AmdSmiMemoryType = types.SimpleNamespace(VRAM=0)
    module.amdsmi_wrapper = types.SimpleNamespace(
        AMDSMI_STATUS_NOT_SUPPORTED=_NOT_SUPPORTED, AMDSMI_STATUS_NO_PERM=_NO_PERM
    )
    module.amdsmi_init = module.amdsmi_shut_down = lambda: None
    module.amdsmi_get_processor_handles = lambda: list(devices)
    module.amdsmi_get_gpu_asic_info = lambda handle: {"market_name": handle.name, "vendor_name": "AMD"}
    module.amdsmi_get_gpu_memory_total = lambda handle, _: handle.memory_bytes
    module.amdsmi_get_gpu_device_uuid = lambda handle: f"{handle.hip_id:08x}-0000-1000-80a1-5e73f8b0a2d4"
    module.amdsmi_get_gpu_enumeration_info = lambda handle: {
        "drm_render": 128,
        "drm_card": 0,
        "hsa_id": handle.hip_id + 1,
        "hip_id": handle.hip_id,
        "hip_uuid": f"GPU-{handle.hip_id:016x}",
    }
    module.amdsmi_get_power_info = lambda handle: handle.power
    module.amdsmi_get_gpu_activity = lambda handle: {
        "gfx_activity": handle.gfx_activity,
        "umc_activity": 12,
        "mm_activity": "N/A",
    }
    module.amdsmi_get_energy_count = energy
    return module


def put_tool(folder: Path, name: str, script: str) -> Path:
    """A program called `name`, the rest of whose shell script is `script`."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def pci_tree(root: Path, *devices: tuple[str, int, int, int]) -> Path:
    """A bus with devices of (address, vendor, device, class)."""
    for address, vendor, device, device_class in devices:
        folder = root / address
        folder.mkdir(parents=True)
        for name, value in (("vendor", vendor), ("device", device), ("class", device_class)):
            (folder / name).write_text(f"{value:#06x}\n", encoding="ascii")
    return root
