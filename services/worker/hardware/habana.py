"""Intel's Gaudi devices, by `hl-smi`, which comes with their driver: watts and utilisation.

Source of the fields: Intel Gaudi documentation, "System Management Interface Tool", `-Q`.
"""

import csv
from collections.abc import Mapping, Sequence
from typing import Final

from services.worker.core.devices import Device, Reading, visible
from services.worker.hardware.command import find_tool, number, output_of
from services.worker.hardware.source import SourceUnavailable

_FIELDS: Final = ("index", "module_id", "uuid", "name", "memory.total", "power.draw", "utilization.aip")
_MIB: Final = 1 << 20


class HabanaSource:
    """Implements `TelemetrySource`."""

    name = "hl-smi"
    measures = True
    lacking = ""
    interval_s = 1.0  # a process each time

    def __init__(self) -> None:
        self._path = ""
        self._modules: dict[str, int] = {}  # index by module id

    async def open(self) -> Sequence[Device]:
        self._path = find_tool("hl-smi", "/usr/bin")
        rows = await self._rows()
        self._modules = {row["module_id"]: int(row["index"]) for row in rows}
        return [
            Device(
                source=self.name,
                vendor="Intel",
                name=row["name"],
                memory_bytes=int((number(row["memory.total"]) or 0) * _MIB),
                index=int(row["index"]),
                uuid=row["uuid"],
            )
            for row in rows
        ]

    def visible(self, devices: Sequence[Device], environment: Mapping[str, str]) -> Sequence[Device]:
        modules = environment.get("HABANA_VISIBLE_MODULES")
        if modules is not None:
            wanted = [self._modules.get(name.strip()) for name in modules.split(",")]
            return visible(devices, ",".join(str(index) for index in wanted if index is not None))
        return visible(devices, environment.get("HABANA_VISIBLE_DEVICES"))

    async def read(self, devices: Sequence[Device]) -> Sequence[Reading]:
        rows = {int(row["index"]): row for row in await self._rows()}
        missing = [str(each.index) for each in devices if each.index not in rows]
        if missing:
            raise SourceUnavailable(f"hl-smi no longer tells of device {', '.join(missing)}")
        return [_reading(rows[each.index]) for each in devices]

    async def close(self) -> None:
        """Nothing is kept open."""

    async def _rows(self) -> list[dict[str, str]]:
        text = await output_of(self._path, "-Q", ",".join(_FIELDS), "-f", "csv,noheader,nounits")
        rows = [
            dict(zip(_FIELDS, (value.strip() for value in row), strict=False))
            for row in csv.reader(text.splitlines())
            if row
        ]
        if any(len(row) < len(_FIELDS) or not row["index"].isdecimal() for row in rows):
            raise SourceUnavailable(f"hl-smi answers otherwise than documented: {text[:200]!r}")
        return rows


def _reading(row: Mapping[str, str]) -> Reading:
    percent = number(row["utilization.aip"])
    return Reading(
        power_w=number(row["power.draw"]), utilisation=None if percent is None else min(1.0, max(0.0, percent / 100))
    )
