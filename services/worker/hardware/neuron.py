"""AWS's Trainium and Inferentia devices, by `neuron-ls`; their utilisation, by `neuron-monitor`. Neither tells watts.

`neuron-ls` tells cores and memory; what the chip is called stands in the driver's files. `neuron-monitor` goes on
printing a report per period, one line of JSON each, so it is started once.
Source of the fields: AWS Neuron documentation, "Neuron LS" and "Neuron Monitor" user guides.
"""

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from services.worker.core.devices import Device, Reading, visible
from services.worker.hardware.command import find_tool, number, output_of, parsed
from services.worker.hardware.source import SourceUnavailable

_TOOLS: Final = "/opt/aws/neuron/bin"
_SYSFS: Final = Path("/sys/devices/virtual/neuron_device")
_PERIOD_S: Final = 1.0
_DEADLINE_S: Final = 5.0
_MOST_LINE_BYTES: Final = 4 << 20
_CONFIG: Final = {
    "period": f"{_PERIOD_S:g}s",
    "neuron_runtimes": [{"tag_filter": ".*", "metrics": [{"type": "neuroncore_counters"}]}],
    "system_metrics": [],
}


class NeuronSource:
    """Implements `TelemetrySource`."""

    name = "neuron"
    measures = True
    lacking = "neuron-monitor tells no watts"
    interval_s = _PERIOD_S

    def __init__(self, sysfs: Path = _SYSFS) -> None:
        self._sysfs = sysfs
        self._cores: dict[int, list[int]] = {}  # by device
        self._monitor: asyncio.subprocess.Process | None = None
        self._config: Path | None = None

    async def open(self) -> Sequence[Device]:
        listed = parsed(await output_of(find_tool("neuron-ls", _TOOLS), "--json-output"), "neuron-ls")
        whole = listed if isinstance(listed, dict) else {}
        rows = whole.get("neuron_devices", []) if isinstance(listed, dict) else listed
        try:
            return [self._device(row, str(row.get("instance_type") or whole.get("instance_type", ""))) for row in rows]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SourceUnavailable(f"neuron-ls answers otherwise than documented: {error!r}") from error

    def visible(self, devices: Sequence[Device], environment: Mapping[str, str]) -> Sequence[Device]:
        named = environment.get("NEURON_RT_VISIBLE_CORES")
        if not named:
            return devices
        cores = _numbers(named)
        return visible(
            devices, ",".join(str(each.index) for each in devices if cores & set(self._cores.get(each.index, ())))
        )

    async def read(self, devices: Sequence[Device]) -> Sequence[Reading]:
        if self._monitor is None:
            self._monitor = await self._start()
        assert self._monitor.stdout is not None
        try:
            async with asyncio.timeout(_DEADLINE_S):
                line = await self._monitor.stdout.readline()
        except (TimeoutError, ValueError) as error:
            raise SourceUnavailable(f"neuron-monitor has not reported in {_DEADLINE_S:g} s") from error
        if not line:
            raise SourceUnavailable("neuron-monitor has ended")
        busy = _busy(parsed(line.decode(errors="replace"), "neuron-monitor"))
        return [Reading(utilisation=_mean(busy, self._cores.get(each.index, ()))) for each in devices]

    async def close(self) -> None:
        if self._monitor is not None and self._monitor.returncode is None:
            with suppress(ProcessLookupError):
                self._monitor.kill()
            await self._monitor.wait()
        if self._config is not None:
            self._config.unlink(missing_ok=True)

    def _device(self, row: Mapping[str, Any], instance_type: str) -> Device:
        index, count = int(row["neuron_device"]), int(row["nc_count"])
        self._cores[index] = list(row.get("neuroncore_ids") or range(index * count, (index + 1) * count))
        return Device(
            source=self.name,
            vendor="AWS",
            name=self._chip(index) or instance_type or "Neuron device",
            memory_bytes=int(row["memory_size"]),
            index=index,
            uuid=str(row.get("bdf", "")),
        )

    def _chip(self, index: int) -> str:
        try:
            return (self._sysfs / f"neuron{index}/info/architecture/device_name").read_text(encoding="ascii").strip()
        except OSError:
            return ""

    async def _start(self) -> asyncio.subprocess.Process:
        path = find_tool("neuron-monitor", _TOOLS)
        with tempfile.NamedTemporaryFile("w", suffix=".json", prefix="neuron-monitor-", delete=False) as file:
            json.dump(_CONFIG, file)
        self._config = Path(file.name)
        try:
            return await asyncio.create_subprocess_exec(
                path,
                "-c",
                file.name,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=_MOST_LINE_BYTES,
            )
        except OSError as error:
            raise SourceUnavailable(f"neuron-monitor cannot be started: {error}") from error


def _busy(report: Any) -> dict[int, float]:
    """Utilisation, 0 to 1, of the cores in use; of one that several programs use, together."""
    busy: dict[int, float] = {}
    for runtime in report.get("neuron_runtime_data", ()) if isinstance(report, dict) else ():
        counters = runtime.get("report", {}).get("neuroncore_counters", {}).get("neuroncores_in_use", {})
        for core, values in counters.items():
            busy[int(core)] = min(
                1.0, busy.get(int(core), 0.0) + (number(values["neuroncore_utilization"]) or 0.0) / 100
            )
    return busy


def _mean(busy: Mapping[int, float], cores: Sequence[int]) -> float:
    return sum(busy.get(core, 0.0) for core in cores) / max(1, len(cores))


def _numbers(text: str) -> set[int]:
    """The numbers of a list like "0,4-7"."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal():
            numbers |= set(range(int(first), int(last if last.isdecimal() else first) + 1))
    return numbers
