"""AMD's devices, by amdsmi: the `amdsmi` package that comes with ROCm, or from PyPI, and libamd_smi.

Watts, utilisation, and the energy accumulator, whose steps the library tells. HIP counts devices in its own order, so
a device's index is its HIP id where the library tells one.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.worker.core.devices import Device, Reading, visible
from services.worker.hardware.command import number
from services.worker.hardware.library_thread import LibraryThread
from services.worker.hardware.source import SourceUnavailable


class AmdSmiSource:
    """Implements `TelemetrySource`."""

    name = "amdsmi"
    measures = True
    lacking = ""
    interval_s = 0.1

    def __init__(self) -> None:
        self._thread = LibraryThread(self.name)
        self._smi: Any = None
        self._handles: dict[int, Any] = {}

    async def open(self) -> Sequence[Device]:
        return await self._thread.run(self._open)

    def visible(self, devices: Sequence[Device], environment: Mapping[str, str]) -> Sequence[Device]:
        left = visible(devices, environment.get("ROCR_VISIBLE_DEVICES"))
        # HIP counts what ROCR has left, from 0; it takes CUDA's variable where its own is not set.
        value = environment.get("HIP_VISIBLE_DEVICES", environment.get("CUDA_VISIBLE_DEVICES"))
        if value is None:
            return left
        counted = dict(enumerate(left))
        names = [name.strip() for name in value.split(",")]
        if all(name.isdecimal() for name in names):
            return tuple(counted[int(name)] for name in names if int(name) in counted) or left
        return visible(left, value)

    async def read(self, devices: Sequence[Device]) -> Sequence[Reading]:
        return await self._thread.run(lambda: [self._read(self._handles[each.index]) for each in devices])

    async def close(self) -> None:
        if self._smi is not None:
            await self._thread.run(self._close)
        self._thread.stop()

    def _open(self) -> list[Device]:
        try:
            smi = importlib.import_module("amdsmi")
        except ImportError as error:
            raise SourceUnavailable("amdsmi is not installed", would_do="pip install 'tokenworks[amd]'") from error
        except Exception as error:  # it loads its library as it is imported, and raises what it finds
            raise SourceUnavailable(f"amdsmi does not load: {error}", would_do="install ROCm") from error
        try:
            smi.amdsmi_init()
            self._smi = smi
            devices = [self._device(place, handle) for place, handle in enumerate(smi.amdsmi_get_processor_handles())]
        except smi.AmdSmiException as error:
            raise SourceUnavailable(f"amdsmi does not start: {error}", would_do="install AMD's driver") from error
        return sorted(devices, key=lambda each: each.index)

    def _device(self, place: int, handle: Any) -> Device:
        smi = self._smi
        enumerate_gpu = getattr(smi, "amdsmi_get_gpu_enumeration_info", None)  # since ROCm 6.4
        about = (self._told(enumerate_gpu, handle) if enumerate_gpu else None) or {}
        index = about.get("hip_id", place)
        index = index if isinstance(index, int) else place
        self._handles[index] = handle
        return Device(
            source=self.name,
            vendor="AMD",
            name=str(smi.amdsmi_get_gpu_asic_info(handle)["market_name"]),
            memory_bytes=int(smi.amdsmi_get_gpu_memory_total(handle, smi.AmdSmiMemoryType.VRAM)),
            index=index,
            uuid=str(about.get("hip_uuid") or smi.amdsmi_get_gpu_device_uuid(handle)),
        )

    def _read(self, handle: Any) -> Reading:
        smi = self._smi
        power = self._told(smi.amdsmi_get_power_info, handle) or {}
        # MI300 tells its current watts; its predecessors only an average.
        told = (number(power.get(name)) for name in ("current_socket_power", "average_socket_power", "socket_power"))
        activity = number((self._told(smi.amdsmi_get_gpu_activity, handle) or {}).get("gfx_activity"))
        counted = self._told(smi.amdsmi_get_energy_count, handle)
        return Reading(
            power_w=next((watts for watts in told if watts), None),
            utilisation=None if activity is None else min(1.0, activity / 100),
            energy_uj=None if counted is None else _energy_uj(counted),
        )

    def _told(self, ask: Callable[[Any], Any], handle: Any) -> Any:
        """The library's answer; None where this device does not have it."""
        smi = self._smi
        try:
            return ask(handle)
        except smi.AmdSmiLibraryException as error:
            unsupported = smi.amdsmi_wrapper.AMDSMI_STATUS_NOT_SUPPORTED, smi.amdsmi_wrapper.AMDSMI_STATUS_NO_PERM
            if error.get_error_code() in unsupported:
                return None
            raise SourceUnavailable(f"amdsmi: {error}") from error

    def _close(self) -> None:
        try:
            self._smi.amdsmi_shut_down()
        except self._smi.AmdSmiException:
            return  # it is gone already


def _energy_uj(counted: Mapping[str, Any]) -> int | None:
    """The accumulator times its resolution, which is in microjoules."""
    steps = counted.get("energy_accumulator", counted.get("power"))  # "power" before ROCm 6.2
    return None if not steps else int(steps * counted["counter_resolution"])
