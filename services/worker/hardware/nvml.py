"""NVIDIA's devices, by NVML: the `nvidia-ml-py` package (module `pynvml`) and the driver's libnvidia-ml.

Watts, utilisation, and the energy counter that devices since Volta have; it counts from the driver's start.
A part of a device (MIG) has no watts of its own: its worker's figures are the catalogue's.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from services.worker.core.devices import Device, Reading, visible
from services.worker.hardware.library_thread import LibraryThread
from services.worker.hardware.source import SourceUnavailable

_PCI_ORDER: Final = "PCI_BUS_ID"


class NvmlSource:
    """Implements `TelemetrySource`."""

    name = "nvml"
    measures = True
    lacking = ""
    interval_s = 0.1  # how often the driver renews its counters

    def __init__(self) -> None:
        self._thread = LibraryThread(self.name)
        self._nvml: Any = None
        self._handles: dict[int, Any] = {}

    async def open(self) -> Sequence[Device]:
        return await self._thread.run(self._open)

    def visible(self, devices: Sequence[Device], environment: Mapping[str, str]) -> Sequence[Device]:
        value = environment.get("CUDA_VISIBLE_DEVICES")
        by_index = value is not None and any(name.strip().isdecimal() for name in value.split(","))
        alike = len({each.name for each in devices}) <= 1
        if by_index and not alike and environment.get("CUDA_DEVICE_ORDER") != _PCI_ORDER:
            # CUDA counts the fastest first, NVML by bus: an index would name two different devices.
            raise SourceUnavailable(
                f"CUDA_VISIBLE_DEVICES = {value!r} counts unlike devices",
                would_do=f"set CUDA_DEVICE_ORDER={_PCI_ORDER}, or name devices by UUID",
            )
        if value is not None and value.strip().startswith("MIG-"):
            raise SourceUnavailable(
                f"CUDA_VISIBLE_DEVICES = {value!r} names a part of a device, which NVML measures only as a whole",
                would_do="declare worker.accelerator",
            )
        return visible(devices, value)

    async def read(self, devices: Sequence[Device]) -> Sequence[Reading]:
        return await self._thread.run(lambda: [self._read(self._handles[each.index]) for each in devices])

    async def close(self) -> None:
        if self._nvml is not None:
            await self._thread.run(self._close)
        self._thread.stop()

    def _open(self) -> list[Device]:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError as error:
            raise SourceUnavailable(
                "nvidia-ml-py is not installed", would_do="pip install 'tokenworks[nvidia]'"
            ) from error
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise SourceUnavailable(f"NVML does not start: {error}", would_do="install NVIDIA's driver") from error
        self._nvml = nvml
        try:
            count = nvml.nvmlDeviceGetCount()
            self._handles = {index: nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)}
            return [
                Device(
                    source=self.name,
                    vendor="NVIDIA",
                    name=_text(nvml.nvmlDeviceGetName(handle)),
                    memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                    index=index,
                    uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                )
                for index, handle in self._handles.items()
            ]
        except nvml.NVMLError as error:
            raise SourceUnavailable(f"NVML does not tell of the devices: {error}") from error

    def _read(self, handle: Any) -> Reading:
        nvml = self._nvml
        power_mw = self._told(nvml.nvmlDeviceGetPowerUsage, handle)
        rates = self._told(nvml.nvmlDeviceGetUtilizationRates, handle)
        energy_mj = self._told(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        return Reading(
            power_w=None if power_mw is None else power_mw / 1000,
            utilisation=None if rates is None else min(1.0, rates.gpu / 100),
            energy_uj=None if energy_mj is None else int(energy_mj) * 1000,
        )

    def _told(self, ask: Callable[[Any], Any], handle: Any) -> Any:
        """The library's answer; None where this device does not have it."""
        nvml = self._nvml
        try:
            return ask(handle)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_NO_PERMISSION):
                return None
            raise SourceUnavailable(f"NVML: {error}") from error

    def _close(self) -> None:
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            return  # it is gone already


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
