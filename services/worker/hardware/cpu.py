"""The machine's processor, by /proc/cpuinfo, and its energy, by RAPL (/sys/class/powercap), where it may be read.

RAPL counts whole processor packages, and their memory where there is a counter of it: everything that runs on the
machine, not this worker alone. Since 2020 (CVE-2020-8694) only root may read it, unless the site allows it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from services.worker.core.devices import Device, Reading
from services.worker.hardware.source import SourceUnavailable

_PROC: Final = Path("/proc")
_POWERCAP: Final = Path("/sys/class/powercap")
_VENDORS: Final = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}


class CpuSource:
    """Implements `TelemetrySource`.

    Attributes:
        lacking: why watts cannot be read here; empty where they can.
    """

    name = "rapl"
    measures = True
    interval_s = 0.05

    def __init__(self, proc: Path = _PROC, powercap: Path = _POWERCAP) -> None:
        self._proc = proc
        self._powercap = powercap
        self._zones: list[_Zone] = []
        self.lacking = ""

    async def open(self) -> Sequence[Device]:
        try:
            facts = _facts(self._proc / "cpuinfo")
            memory_kib = int(_facts(self._proc / "meminfo").get("MemTotal", "0 kB").split()[0])
        except (OSError, ValueError) as error:
            raise SourceUnavailable(f"{self._proc} does not tell of the processor: {error}") from error
        name = facts.get("model name", "")
        if not name:
            raise SourceUnavailable(f"{self._proc / 'cpuinfo'} does not name the processor's model")
        self._zones, self.lacking = _zones(self._powercap)
        vendor = facts.get("vendor_id", "")
        return [
            Device(
                source="cpuinfo",
                vendor=_VENDORS.get(vendor, vendor),
                name=name,
                memory_bytes=memory_kib << 10,
                index=0,
                cpu=True,
            )
        ]

    def visible(self, devices: Sequence[Device], environment: Mapping[str, str]) -> Sequence[Device]:
        return devices

    async def read(self, devices: Sequence[Device]) -> Sequence[Reading]:
        if not self._zones:
            return [Reading() for _ in devices]
        try:
            return [Reading(energy_uj=sum(zone.total_uj() for zone in self._zones)) for _ in devices]
        except (OSError, ValueError) as error:
            raise SourceUnavailable(f"RAPL can no longer be read: {error}") from error

    async def close(self) -> None:
        """Nothing is kept open."""


class _Zone:
    """One counter, which starts again when it has reached its end."""

    def __init__(self, path: Path) -> None:
        self._counter = path / "energy_uj"
        self._range_uj = int((path / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last_uj = int(self._counter.read_text(encoding="ascii"))
        self._total_uj = 0

    def total_uj(self) -> int:
        """Since this was made."""
        now_uj = int(self._counter.read_text(encoding="ascii"))
        step_uj = now_uj - self._last_uj
        self._total_uj += step_uj if step_uj >= 0 else step_uj + self._range_uj
        self._last_uj = now_uj
        return self._total_uj


def _facts(path: Path) -> dict[str, str]:
    """The first value of each key of a file of `key: value` lines."""
    facts: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key.strip(), value.strip())
    return facts


def _zones(powercap: Path) -> tuple[list[_Zone], str]:
    """The counters of packages and of their memory, or why there are none."""
    zones = []
    for path in sorted(powercap.glob("*-rapl:*")):
        try:
            kind = (path / "name").read_text(encoding="ascii").strip()
            if kind.startswith("package-") or kind == "dram":
                zones.append(_Zone(path))
        except PermissionError as error:
            return [], f"RAPL may not be read ({error.filename}): run as root, or let the worker's group read it"
        except (OSError, ValueError):
            continue  # a zone without a counter
    return zones, "" if zones else f"the kernel offers no RAPL counters under {powercap}"
