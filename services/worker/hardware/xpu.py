"""Intel's GPUs, by `xpu-smi` of Intel XPU Manager: watts and utilisation.

Its energy figure is in joules to one of its documents and in millijoules to another, so it is not read.
Source of the fields: Intel XPU Manager documentation, "discovery" and "stats", and its statistics types.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.worker.core.devices import Device, Reading, visible
from services.worker.hardware.command import find_tool, number, output_of, parsed
from services.worker.hardware.source import SourceUnavailable

_POWER: Final = "XPUM_STATS_POWER"
_UTILISATION: Final = "XPUM_STATS_GPU_UTILIZATION"


class XpuSource:
    """Implements `TelemetrySource`."""

    name = "xpu-smi"
    measures = True
    lacking = ""
    interval_s = 1.0  # a process each time, which itself looks twice

    def __init__(self) -> None:
        self._path = ""

    async def open(self) -> Sequence[Device]:
        self._path = find_tool("xpu-smi")
        listed = await self._ask("discovery", "-j")
        rows = listed.get("device_list", []) if isinstance(listed, dict) else []
        return [await self._device(row) for row in rows]

    def visible(self, devices: Sequence[Device], environment: Mapping[str, str]) -> Sequence[Device]:
        mask = environment.get("ZE_AFFINITY_MASK")
        if mask is None:
            return devices
        # A mask may name tiles of a device, as "0.1": they draw the device's watts.
        numbers = dict.fromkeys(name.split(".")[0].strip() for name in mask.split(","))
        return visible(devices, ",".join(numbers))

    async def read(self, devices: Sequence[Device]) -> Sequence[Reading]:
        return [_reading(await self._ask("stats", "-d", str(each.index), "-j")) for each in devices]

    async def close(self) -> None:
        """Nothing is kept open."""

    async def _device(self, row: Mapping[str, Any]) -> Device:
        about = await self._ask("discovery", "-d", str(row["device_id"]), "-j")
        return Device(
            source=self.name,
            vendor="Intel",
            name=str(row["device_name"]),
            memory_bytes=int(number(about.get("memory_physical_size_byte")) or 0),
            index=int(row["device_id"]),
            uuid=str(row.get("uuid", "")),
        )

    async def _ask(self, *arguments: str) -> Any:
        answer = parsed(await output_of(self._path, *arguments), "xpu-smi")
        if isinstance(answer, dict) and (error := answer.get("error")):
            raise SourceUnavailable(f"xpu-smi: {error}")
        return answer


def _reading(stats: Mapping[str, Any]) -> Reading:
    device = {row.get("metrics_type"): number(row.get("value")) for row in stats.get("device_level", ())}
    tiles = [
        {row.get("metrics_type"): number(row.get("value")) for row in tile.get("data_list", ())}
        for tile in stats.get("tile_level", ())
    ]
    percent = device.get(_UTILISATION)
    if percent is None:
        told = [value for tile in tiles if (value := tile.get(_UTILISATION)) is not None]
        percent = sum(told) / len(told) if told else None
    return Reading(power_w=device.get(_POWER), utilisation=None if percent is None else min(1.0, percent / 100))
